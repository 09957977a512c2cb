package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// prepare finds or builds the programs that the labs run, and returns what
// removes them.
func (b *bench) prepare(ctx context.Context) (clean func(), err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this needs root, for network namespaces and devices (try: sudo, or --only overlap)")
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if b.bin != "" {
		return func() {}, nil
	}
	if b.bin, err = os.MkdirTemp("", "flatmesh-bench-"); err != nil {
		return nil, err
	}
	clean = func() { os.RemoveAll(b.bin) }
	progress("building the programs of the lab")
	const module = "github.com/flatmesh/flatmesh"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", b.bin, module+"/cmd/agent", module+"/cmd/controlplane", module+"/cmd/gateway", module+"/hack/lab", module+"/hack/meshecho")
	if out, err := cmd.CombinedOutput(); err != nil {
		clean()
		return nil, fmt.Errorf("build the programs (run bench in the module's folder, or give --bin): %w: %s", err, out)
	}
	return clean, nil
}
