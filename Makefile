# Short names for what is done often. The logic is in hack/.
.DEFAULT_GOAL := help
.PHONY: help demo build test unit race lint fuzz e2e bench generate clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## bring up three clusters on this machine and show what flatmesh does (needs root)
	@bin/demo

build: ## build all programs into bin/
	@hack/build.sh

test: ## run everything that has to hold: lint, unit, race and namespace tests
	@hack/test.sh

unit: ## run the tests of all packages, quickly: no race detector, no whole mesh
	@go test ./api/... ./cmd/... ./hack/... ./internal/... ./pkg/...

race: ## run all tests with the race detector
	@go test -race ./...

e2e: ## run the tests of the whole mesh in network namespaces (needs root)
	@CI=true go test -count=1 -v ./test/...

lint: ## check the code without running it
	@hack/lint.sh

fuzz: ## fuzz every target for FUZZTIME (10s)
	@hack/fuzz.sh

bench: build ## measure everything side by side with what users would use instead, an hour (needs root)
	@bin/bench --bin bin

generate: ## make the Go code of api/ from its .proto files (needs protoc)
	@hack/generate.sh

clean: ## remove bin/
	@rm -rf bin
