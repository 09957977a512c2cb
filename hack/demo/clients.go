package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
)

// client is a gRPC client in a pod that calls the service at a steady rate: plain
// grpc-go, told of the mesh over xDS alone.
type client struct {
	host string
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	calls []report.Call
}

const (
	service  = "xds:///echo.demo:80"
	interval = 10 * time.Millisecond
)

// clients starts a client in each of the hosts and waits until each is answered.
func (d *demo) clients(ctx context.Context, hosts ...string) ([]*client, error) {
	var out []*client
	for _, h := range hosts {
		// Certificates and the pods' servers come a moment after the tunnels.
		if _, err := d.await(ctx, func() error {
			_, err := d.lab.Exec(ctx, h, "meshecho", "call", service, "--count", "30")
			return err
		}); err != nil {
			return nil, err
		}
	}
	for _, h := range hosts {
		c, err := d.client(ctx, h)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (d *demo) client(ctx context.Context, host string) (*client, error) {
	cmd, err := d.lab.Command(ctx, host, "meshecho", "call", service, "--count", "0", "--interval", interval.String(), "--timeout", "3s", "--concurrency", "512", "-o", "json")
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &client{host: host, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			var line report.Line
			if json.Unmarshal(scanner.Bytes(), &line) == nil && line.Call != nil {
				c.mu.Lock()
				c.calls = append(c.calls, *line.Call)
				c.mu.Unlock()
			}
		}
	}()
	return c, nil
}

// since returns the calls that began at a time or later, and have ended.
func (c *client) since(t time.Time) []report.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []report.Call
	for _, call := range c.calls {
		if !call.Start.Before(t) {
			out = append(out, call)
		}
	}
	return out
}

// ended returns an error while a call that began before t has not ended.
func (c *client) ended(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[int]bool, len(c.calls))
	last := 0
	for _, call := range c.calls {
		seen[call.N] = true
		if call.Start.Before(t) {
			last = max(last, call.N)
		}
	}
	for n := 1; n <= last; n++ {
		if !seen[n] {
			return fmt.Errorf("call %d of %s has not ended", n, c.host)
		}
	}
	return nil
}

// stop ends the client, which first waits for what is under way.
func (c *client) stop() []report.Call {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	<-c.done
	_ = c.cmd.Wait() // exit code 1 says that a call failed, which the calls do too
	return c.since(time.Time{})
}

// ways waits until calls that begin from now on reach each of the pods on its
// way, "west/n1/p1": "direct", and none on another; it returns how long that took.
func (d *demo) ways(ctx context.Context, c *client, want map[string]report.Via) (time.Duration, error) {
	from := time.Now()
	return d.await(ctx, func() error {
		got := map[string]report.Via{}
		for _, call := range c.since(from) {
			if !call.OK {
				continue
			}
			if way, ok := want[call.Pod]; ok && way != call.Via {
				from = time.Now() // on its old way still
				return fmt.Errorf("%s reached %s %s", c.host, call.Pod, call.Via)
			}
			got[call.Pod] = call.Via
		}
		for pod := range want {
			if _, ok := got[pod]; !ok {
				return fmt.Errorf("%s has not reached %s: %v", c.host, pod, got)
			}
		}
		return nil
	})
}

// summary prints what a client's calls came to.
func summary(host string, calls []report.Call) report.Summary {
	s := report.NewSummary()
	for _, c := range calls {
		s.Add(c)
	}
	fmt.Printf("   %s: %d calls, %d answered", host, s.Calls, s.OK)
	for _, cluster := range slices.Sorted(maps.Keys(s.Clusters)) {
		fmt.Printf(", %d by %s", s.Clusters[cluster], cluster)
	}
	fmt.Printf("; %d failed\n", s.Failed)
	return s
}

// failed returns the calls that failed, and for how long they began to.
func failed(calls []report.Call) (bad []report.Call, span time.Duration) {
	for _, c := range calls {
		if !c.OK {
			bad = append(bad, c)
		}
	}
	if len(bad) == 0 {
		return nil, 0
	}
	slices.SortFunc(bad, func(a, b report.Call) int { return a.Start.Compare(b.Start) })
	return bad, bad[len(bad)-1].Start.Sub(bad[0].Start) + interval
}

// The pods of the service, and how the two clients reach them when all is well.
var allDirect = map[string]report.Via{
	"east/n1/p1": report.Direct, "east/n2/p1": report.Direct, "west/n1/p1": report.Direct, "west/n2/p1": report.Direct,
	"south/n1/p1": report.Gateway, "south/n2/p1": report.Gateway,
}

// services shows that a service whose pods are in three clusters answers from all
// of them, each on the way that there is, and that only the cut pair changes.
func (d *demo) services(ctx context.Context) error {
	clients, err := d.clients(ctx, nearPod, otherNear)
	if err != nil {
		return err
	}
	near, other := clients[0], clients[1]
	stopped := false
	defer func() {
		if !stopped {
			near.stop()
			other.stop()
		}
	}()
	for _, c := range clients {
		if _, err := d.ways(ctx, c, allDirect); err != nil {
			return err
		}
	}
	fmt.Printf("   %s and %s each call %s every %v: all six pods answer, those of south through its gateway\n", nearPod, otherNear, service, interval)
	if err := d.show(ctx, nearNode, "agent", "path", "echo.demo:80"); err != nil {
		return err
	}

	cut := time.Now()
	if err := d.lab.Cut(ctx, nearNode, farNode, false); err != nil {
		return err
	}
	byGateway := maps.Clone(allDirect)
	byGateway[farPod] = report.Gateway
	if _, err := d.ways(ctx, near, byGateway); err != nil {
		return err
	}
	switched := time.Now()
	if _, err := d.ways(ctx, other, allDirect); err != nil {
		return err
	}
	fmt.Printf("   cut: %s reaches %s through the gateway, %s goes on directly\n", nearPod, farPod, otherNear)
	// The path stays cut until those calls have ended that were on it.
	if _, err := d.await(ctx, func() error { return near.ended(switched) }); err != nil {
		return err
	}
	if err := d.show(ctx, nearNode, "agent", "path", "echo.demo:80"); err != nil {
		return err
	}
	if err := d.lab.Heal(ctx, nearNode, farNode, false); err != nil {
		return err
	}
	took, err := d.ways(ctx, near, allDirect)
	if err != nil {
		return err
	}
	fmt.Printf("   healed: %s reaches %s directly again, %v later\n", nearPod, farPod, took.Round(time.Millisecond))

	stopped = true
	nearCalls, otherCalls := near.stop(), other.stop()
	summary(nearPod, nearCalls)
	if s := summary(otherNear, otherCalls); s.Failed > 0 {
		return fmt.Errorf("%d calls of %s failed, which the cut does not concern", s.Failed, otherNear)
	}
	return d.judge(nearCalls, cut, switched)
}

// judge checks that only calls on the path that went silent failed, and says how
// many and for how long.
func (d *demo) judge(calls []report.Call, cut, switched time.Time) error {
	silent, err := d.address(farPod)
	if err != nil {
		return err
	}
	bad, span := failed(calls)
	for _, c := range bad {
		if !strings.HasPrefix(c.Peer, silent.String()+":") || c.Start.After(switched) || c.Start.Before(cut.Add(-time.Second)) {
			return fmt.Errorf("call %d to %s failed, which was not on the silent path: %s", c.N, c.Peer, c.Error)
		}
	}
	if len(bad) == 0 {
		fmt.Println("   no call failed")
		return nil
	}
	i := slices.IndexFunc(calls, func(c report.Call) bool { return c.OK && c.Pod == farPod && c.Via == report.Gateway })
	if i < 0 {
		return errors.New("no call went through the gateway")
	}
	fmt.Printf("   all %d calls that failed were on the silent path; they began within %v, from %v after the cut on\n",
		len(bad), span.Round(time.Millisecond), bad[0].Start.Sub(cut).Round(time.Millisecond))
	return nil
}
