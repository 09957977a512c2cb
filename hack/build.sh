#!/usr/bin/env bash
# Builds all programs into bin/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=hack/lib.sh
. hack/lib.sh
need_go
flags=()
# Go refuses to build where git will not tell the version: in a tarball, or in a
# clone that belongs to another user.
if ! git rev-parse HEAD >/dev/null 2>&1; then
	flags+=(-buildvcs=false)
fi
mkdir -p bin
go build "${flags[@]}" -o bin/ ./cmd/... ./hack/...
