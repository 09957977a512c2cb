#!/usr/bin/env bash
# Checks the code without running it. With no argument it does all checks; each
# can be named: format vet staticcheck rules shell generated modules.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=hack/lib.sh
. hack/lib.sh
need_go

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# go_files lists the Go files that people write, tests included.
go_files() {
	find . \( -path ./bin -o -path ./.git \) -prune -o -name '*.go' ! -name '*.pb.go' -print | sed 's|^\./||' | sort
}

check_format() {
	local bad
	bad=$(go_files | xargs gofmt -l)
	[[ -z $bad ]] || fail "not formatted; run gofmt -w on: ${bad//$'\n'/ }"
}

check_vet() { go vet ./...; }

# The list of checks, and why one is left out, is in staticcheck.conf.
check_staticcheck() { go tool staticcheck ./...; }

# rule NAME FILES PATTERN ALLOWED looks for an extended regular expression in the
# Go files that match FILES. Lines that match ALLOWED, written FILE:LINE:TEXT, are
# left out; so are comments.
rule() {
	local name=$1 files=$2 pattern=$3 allowed=$4 found
	found=$(go_files | { grep -E "$files" || true; } | xargs -r grep -nHE "$pattern" |
		{ grep -vE '^[^:]*:[0-9]+:[[:space:]]*//' || true; } |
		{ grep -vE "$allowed" || true; }) || true
	if [[ -n $found ]]; then
		echo "$name:"
		# shellcheck disable=SC2001 # indenting lines
		sed 's/^/  /' <<<"$found"
		broken=1
	fi
}

# What code looks like that keeps to CONTRIBUTING.md, as far as a line shows it.
# What a rule allows is listed with it; another exception needs a reason there.
check_rules() {
	broken=0
	local none='^$' tests_too='_test\.go:'
	local any='\.go$' tests='_test\.go$' ours='^pkg/' programs='^(cmd|pkg|internal|hack)/'

	rule 'time.Sleep: wait for a condition, or use a ticker' "$any" '\btime\.Sleep\(' "$none"
	rule 'time.After in a test: wait for a condition, or give a context a deadline' "$tests" '\btime\.(After|Tick)\(' "$none"
	# In pkg/ a clock is passed in or a ticker is stopped; programs may wait for a person.
	rule 'time.After in pkg/: use a ticker or a timer that is stopped' "$ours" '\btime\.(After|Tick)\(' "$tests_too"

	# net.IP is for libraries that know nothing else, and never parsed: convert a
	# netip.Addr. The test builds nexthops as the netlink library has them.
	rule 'net.ParseIP: use net/netip' "$any" '\bnet\.Parse(IP|CIDR)\(' '^pkg/route/local_test\.go:'

	# Contexts come from main by way of arguments. The exceptions have none to take:
	# where a program begins; the WireGuard engine calls back without one; reading
	# a folder once has nobody who could cancel it; a handler of the logger.
	rule 'context.Background: take a context from the caller' "$programs" '\bcontext\.(Background|TODO)\(\)' \
		'_test\.go:|^internal/cli/cli\.go:|^hack/[a-z]+/main\.go:|^pkg/wg/userspace/log\.go:|^pkg/source/dir/state\.go:|^pkg/controlplane/loop\.go:'

	# A flag that is marked as required and does not exist is a mistake of the
	# lines above it, which every run of the program shows.
	rule 'panic: return an error' "$any" '\bpanic\(' '^cmd/[a-z]+/[a-z]+\.go:[0-9]+:.*panic\(err\) // a flag that is not there|/testdata/'

	rule 'fmt.Print in pkg/: return it, or log it' "$ours" '\b(fmt\.Print(ln|f)?|println|print)\(' '_test\.go:'
	rule 'func init: do it where it is needed' "$any" '^func init\(\)' "$none"
	rule 'unfinished: say it in an issue, not in the code' "$any" '\b(TODO|FIXME|XXX)\b' "$none"

	local file lines
	while read -r file; do
		lines=$(wc -l <"$file")
		if ((lines > 600)); then
			echo "too long: $file has $lines lines, 600 are the limit and 400 the habit: one concept a file"
			broken=1
		fi
	done < <(go_files)
	((broken == 0)) || fail "the rules above are broken"
}

check_shell() {
	# shellcheck disable=SC2310 # the answer is what is wanted
	if ! apt_install shellcheck shellcheck; then
		skip "shell scripts: shellcheck is missing"
		return
	fi
	shellcheck -x hack/*.sh .ci/run
}

# The generated code is what its .proto files say. Which protoc made it is
# written into it and does not matter.
check_generated() {
	if ! have protoc; then
		skip "generated code: protoc is missing"
		return
	fi
	mkdir "$tmp/tree"
	cp -r --parents api hack/meshecho/v1 hack/generate.sh go.mod go.sum "$tmp/tree/"
	"$tmp/tree/hack/generate.sh"
	local dir
	for dir in api hack/meshecho/v1; do
		diff -r -I '^//.*protoc' "$dir" "$tmp/tree/$dir" || fail "the generated code in $dir is not that of the .proto files: run make generate"
	done
}

check_modules() {
	local out
	# Tidying looks at the tests of dependencies too, which may not be here.
	if ! out=$(go mod tidy -diff 2>&1); then
		if grep -qE 'dial tcp|no such host|module lookup disabled|i/o timeout|connection refused' <<<"$out"; then
			skip "go mod tidy: modules are missing here and cannot be fetched"
		else
			echo "$out"
			fail "go.mod is not tidy: run go mod tidy"
		fi
	fi
	go mod verify
}

# skip says what was left out. hack/test.sh collects it by $SKIPS.
skip() {
	echo "skipped: $*"
	if [[ -n ${SKIPS:-} ]]; then
		printf '%s\n' "$*" >>"$SKIPS"
	fi
}

for check in "${@:-all}"; do
	case $check in
	all) for c in format vet staticcheck rules shell generated modules; do "check_$c"; done ;;
	format | vet | staticcheck | rules | shell | generated | modules) "check_$check" ;;
	*) fail "no check is called $check" ;;
	esac
done
