#!/usr/bin/env bash
# Makes the Go code of all .proto files. Needs protoc; the plugins are the
# module's own tools.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH="$bin:$PATH" protoc --go_out=. --go_opt=module=github.com/flatmesh/flatmesh \
	--go-grpc_out=. --go-grpc_opt=module=github.com/flatmesh/flatmesh api/*/v1/*.proto hack/meshecho/v1/*.proto
