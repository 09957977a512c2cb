#!/usr/bin/env bash
# Runs all that has to hold before a change is good: lint, build, tests with the
# race detector, tests in network namespaces, the seeds of the fuzz targets. It
# leaves nothing behind, and says at the end what it had to skip and why.
#
# With CI set nothing that matters may be skipped, and the fuzz targets run for
# a moment beyond their seeds; FUZZTIME=30s makes them run anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=hack/lib.sh
. hack/lib.sh
need_go

# Nothing here depends on the version that git knows, and git may refuse to tell
# it: in a clone that belongs to another user.
export GOFLAGS="${GOFLAGS:-} -buildvcs=false"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# Lines of what was skipped: by the steps, and by tests.
export SKIPS=$tmp/skips
touch "$SKIPS" "$tmp/tests"
matters=0 # something was skipped that CI insists on
failed=()

# tree prints what git sees changed, to find out whether a test leaves files.
tree() { git status --porcelain 2>/dev/null || true; }
before=$(tree)

step() {
	local name=$1 start=$SECONDS status
	shift
	printf '\n== %s\n' "$name"
	# Not in a condition: there "set -e" would not end the step at its first error.
	set +e
	(
		set -e
		"$@"
	)
	status=$?
	set -e
	if ((status != 0)); then
		failed+=("$name")
		echo "== $name: FAILED after $((SECONDS - start)) s"
	else
		echo "== $name: $((SECONDS - start)) s"
	fi
}

race=(-race)
preparations() {
	printf '%s, %s CPUs, %s\n' "$(go version)" "$(nproc)" "$(uname -sr)"
	if [[ $(id -u) != 0 ]]; then
		echo "not root: tests that need network namespaces are skipped"
	fi
	go build -o "$tmp/testreport" ./internal/testreport
}

# The race detector is C.
prepare_race() {
	if have "$(go env CC)"; then
		return
	fi
	# shellcheck disable=SC2310 # the answer is what is wanted
	if ! apt_install gcc gcc libc6-dev; then
		race=()
		matters=1
		echo "race detector: no C compiler" >>"$SKIPS"
	fi
}

# tests PACKAGE... runs them, never from the cache: it knows nothing of the kernel.
tests() {
	go test "${race[@]}" -count=1 -timeout 8m -json "$@" | "$tmp/testreport" -skipped "$tmp/tests"
}

# The whole mesh has the machine for itself: it keeps times.
unit_tests() {
	local packages
	mapfile -t packages < <(go list ./... | grep -v "/flatmesh/test/")
	tests "${packages[@]}"
}

whole_tests() {
	if [[ ! -d test ]]; then
		echo "there are none"
		return
	fi
	tests ./test/...
}

fuzz_step() {
	if [[ -n ${FUZZTIME:-} ]]; then
		hack/fuzz.sh
	elif [[ -n ${CI:-} ]]; then
		FUZZTIME=3s hack/fuzz.sh
	else
		echo "fuzz targets beyond their seeds: set FUZZTIME=3s, or run make fuzz" | tee -a "$SKIPS"
	fi
}

nothing_left() {
	local after
	after=$(tree)
	[[ $before == "$after" ]] || fail "the tests changed the tree:"$'\n'"$after"
}

step "preparations" preparations
prepare_race
step "formatted" hack/lint.sh format
step "go vet" hack/lint.sh vet
step "staticcheck" hack/lint.sh staticcheck
step "rules" hack/lint.sh rules
step "shell scripts" hack/lint.sh shell
step "generated code" hack/lint.sh generated
step "modules" hack/lint.sh modules
step "build" go build ./...
step "tests" unit_tests
step "tests of the whole" whole_tests
step "fuzz" fuzz_step
# People edit while tests run; CI does not.
if [[ -n ${CI:-} ]]; then
	step "nothing left behind" nothing_left
fi

printf '\n== summary after %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
sed 's/^/skipped: /' "$SKIPS"
# By reason, with how many tests and in which packages.
sort "$tmp/tests" | awk -F '\t' '
	{ count[$1]++; sub(/.*\/flatmesh\//, "", $2); if (!(($1, $2) in seen)) { seen[$1, $2] = 1; in_[$1] = in_[$1] " " $2 } }
	END { for (r in count) printf "skipped: %d tests: %s (%s)\n", count[r], r, substr(in_[r], 2) }'
if [[ ! -s $SKIPS && ! -s $tmp/tests ]]; then
	echo "nothing was skipped"
fi
if ((${#failed[@]} > 0)); then
	printf 'FAILED: %s\n' "${failed[@]}"
	exit 1
fi
if [[ -n ${CI:-} ]] && { ((matters)) || [[ -s $tmp/tests ]]; }; then
	echo "FAILED: CI may skip nothing that matters"
	exit 1
fi
echo "all good"
