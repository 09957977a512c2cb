// Command demo shows on one machine what flatmesh does: three clusters, real
// WireGuard between them, a range that overlaps, a path that is cut and healed,
// and a service that gRPC clients call all the while.
// It prints each step with its measured time and ends with exit code 0 only if
// every step held.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
)

const name = "demo"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	t, err := lab.ParseTopology("demo topology", []byte(topology))
	if err != nil {
		return err
	}
	d := &demo{begin: time.Now()}
	d.say("Three clusters of two nodes each, every node, pod and router a network namespace of its own:")
	fmt.Print(topology)
	l, err := lab.Up(ctx, t, lab.Options{Name: name, Bin: filepath.Dir(exe)})
	if err != nil {
		return err
	}
	d.lab = l
	defer func() {
		// Also when it was interrupted: nothing stays on the machine.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.Down(clean))
		if err == nil {
			d.say("Every step held. The lab is removed; the whole took %v.", time.Since(d.begin).Round(time.Millisecond))
		}
	}()
	for _, s := range steps {
		if err := d.step(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
