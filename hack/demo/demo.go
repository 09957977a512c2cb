package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// patience bounds every wait of the demo.
const patience = 60 * time.Second

// demo is the lab and what the steps ask of it.
type demo struct {
	lab   *lab.Lab
	begin time.Time
}

// step is one thing that the demo shows: it fails if it does not hold.
type step struct {
	title string
	run   func(*demo, context.Context) error
}

func (d *demo) step(ctx context.Context, s step) error {
	d.say("%s", s.title)
	begin := time.Now()
	if err := s.run(d, ctx); err != nil {
		return fmt.Errorf("this step did not hold: %s: %w", s.title, err)
	}
	fmt.Printf("   held, after %v\n", time.Since(begin).Round(time.Millisecond))
	return nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("\n== %6.2fs  %s\n", time.Since(d.begin).Seconds(), fmt.Sprintf(format, args...))
}

// await waits until check holds and returns how long that took.
func (d *demo) await(ctx context.Context, check func() error) (time.Duration, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return time.Since(begin), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("%w (given up after %v)", err, patience)
		}
	}
}

// show runs a command in a host and prints it with its output, as a person would
// see it.
func (d *demo) show(ctx context.Context, host string, argv ...string) error {
	fmt.Printf("   %s$ %s\n", host, strings.Join(argv, " "))
	out, err := d.lab.Exec(ctx, host, argv...)
	for line := range strings.Lines(string(out)) {
		fmt.Print("   | ", line)
	}
	// Exit code 1 is what the command found, and was shown.
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil
	}
	return err
}

func (d *demo) status(ctx context.Context, node string) (agent.Status, error) {
	var s agent.Status
	out, err := d.lab.Exec(ctx, node, "agent", "status", "-o", "json")
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// tunnel waits until node's tunnel to peer is in a state, while every other one
// is Up, and returns how long that took.
func (d *demo) tunnel(ctx context.Context, node, peer string, want mesh.TunnelState) (time.Duration, error) {
	return d.await(ctx, func() error {
		s, err := d.status(ctx, node)
		if err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.Node.String() == peer && p.State != want {
				return fmt.Errorf("the tunnel %s to %s is %v, %s", node, peer, p.State, p.Reason)
			}
			if p.Node.String() != peer && p.State != mesh.Up {
				return fmt.Errorf("the tunnel %s to %v is %v, %s", node, p.Node, p.State, p.Reason)
			}
		}
		return nil
	})
}

// address returns a pod's.
func (d *demo) address(pod string) (netip.Addr, error) {
	hosts, err := d.lab.Hosts()
	if err != nil {
		return netip.Addr{}, err
	}
	i := slices.IndexFunc(hosts, func(h lab.Host) bool { return h.Name == pod })
	if i < 0 {
		return netip.Addr{}, fmt.Errorf("there is no pod %s", pod)
	}
	return hosts[i].Addresses[0], nil
}

// reach has one pod call another at its own address, and checks that the other
// saw the caller's own.
func (d *demo) reach(ctx context.Context, from, to string) error {
	own, err := d.address(from)
	if err != nil {
		return err
	}
	a, err := d.address(to)
	if err != nil {
		return err
	}
	begin := time.Now()
	answer, err := d.lab.Call(ctx, from, a, 5*time.Second)
	if err != nil {
		return fmt.Errorf("%s does not reach %s at %v: %w", from, to, a, err)
	}
	if answer.Pod != to || answer.Caller != own {
		return fmt.Errorf("%s called %v: %s answered and saw %v, want %s and %v", from, a, answer.Pod, answer.Caller, to, own)
	}
	fmt.Printf("   %s called %v: %s answered and saw the caller as %v (%v)\n", from, a, to, answer.Caller, time.Since(begin).Round(time.Millisecond))
	return nil
}
