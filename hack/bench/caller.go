package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	echo "github.com/flatmesh/flatmesh/hack/meshecho/report"
	"github.com/flatmesh/flatmesh/internal/lab"
)

const (
	callEvery = 10 * time.Millisecond
	// callLimit is longer than TCP repeats what a path that heals has lost, so that
	// it ends no call that something else would have ended.
	callLimit = 2 * time.Minute
)

// caller is a gRPC client in a pod that calls a service at a steady rate. It is
// plain grpc-go: what it knows of the mesh it is told over xDS.
type caller struct {
	host string
	cmd  *exec.Cmd
	done chan struct{}

	mu sync.Mutex
	// calls have ended, in that order, and were not taken yet.
	calls []echo.Call
	// All calls up to number low have ended, and of later ones those in beyond.
	low    int
	beyond map[int]bool
}

// startCaller starts a client in a pod. It is killed when ctx ends.
func startCaller(ctx context.Context, l *lab.Lab, host, target string) (*caller, error) {
	cmd, err := l.Command(ctx, host, "meshecho", "call", target, "--count", "0", "--interval", callEvery.String(),
		"--timeout", callLimit.String(), "--concurrency", "65536", "-o", "json")
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a client in %s: %w", host, err)
	}
	c := &caller{host: host, cmd: cmd, done: make(chan struct{}), beyond: map[int]bool{}}
	go c.read(out)
	return c, nil
}

func (c *caller) read(out io.Reader) {
	defer close(c.done)
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		var line echo.Line
		if json.Unmarshal(scanner.Bytes(), &line) == nil && line.Call != nil {
			c.add(*line.Call)
		}
	}
}

func (c *caller) add(one echo.Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, one)
	c.beyond[one.N] = true
	for c.beyond[c.low+1] {
		c.low++
		delete(c.beyond, c.low)
	}
}

// stop ends the client and does not wait for what is under way.
func (c *caller) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGKILL) // it may have ended
	<-c.done
	_ = c.cmd.Wait() // it was killed
}

// running returns an error when the client has ended by itself.
func (c *caller) running() error {
	select {
	case <-c.done:
		return fmt.Errorf("the client in %s has ended", c.host)
	default:
		return nil
	}
}

// since returns the calls that began after t and have ended.
func (c *caller) since(t time.Time) []echo.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.calls), func(o echo.Call) bool { return !o.Start.After(t) })
}

// ended reports whether all calls have that began before t.
func (c *caller) ended(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Numbers are in the order of the beginnings, so that the first call after t
	// tells which ones came before.
	first := 0
	for _, o := range c.calls {
		if !o.Start.Before(t) && (first == 0 || o.N < first) {
			first = o.N
		}
	}
	return first > 0 && c.low >= first-1
}

// take returns the calls that began before t, and forgets them.
func (c *caller) take(t time.Time) []echo.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out, rest []echo.Call
	for _, o := range c.calls {
		if o.Start.Before(t) {
			out = append(out, o)
		} else {
			rest = append(rest, o)
		}
	}
	c.calls = rest
	return out
}

// peerOfCall returns the address that a call went to; the zero Addr where it was
// never sent.
func peerOfCall(c echo.Call) netip.Addr {
	ap, err := netip.ParseAddrPort(c.Peer)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// endOfCall returns when a call ended.
func endOfCall(c echo.Call) time.Time { return c.Start.Add(seconds(c.LatencySeconds)) }
