#!/usr/bin/env bash
# Runs every fuzz target for FUZZTIME (default 10s) each. An input that fails is
# written to the package's testdata/fuzz, to be fixed and committed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=hack/lib.sh
. hack/lib.sh
need_go
time=${FUZZTIME:-10s}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

failed=()
while IFS=: read -r file target; do
	package=./$(dirname "$file")
	if go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -timeout 10m "$package" >"$tmp/out" 2>&1; then
		printf '%s %s: %s\n' "$package" "$target" "$(grep '^fuzz: elapsed' "$tmp/out" | tail -1 | sed 's/^fuzz: //')"
	elif grep -q 'context deadline exceeded' "$tmp/out" && ! grep -q 'Failing input' "$tmp/out"; then
		# The go command at times takes the end of the fuzzing time itself for a failure.
		printf '%s %s: ended at its deadline\n' "$package" "$target"
	else
		cat "$tmp/out"
		failed+=("$target")
	fi
done < <(grep -rn --include='*_test.go' '^func Fuzz' . | sed -E 's|^\./||; s|^([^:]*):[0-9]+:func (Fuzz[A-Za-z0-9_]*)\(.*|\1:\2|' | sort)
((${#failed[@]} == 0)) || fail "failed: ${failed[*]}"
