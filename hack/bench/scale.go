package main

import (
	"context"
	"fmt"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
)

// Of 2 × 20 nodes each has a tunnel to each of the other cluster.
const (
	scaleNodes   = 40
	scaleTunnels = 800
	scaleYAML    = `clusters:
  - name: east
    podCIDRs: [10.1.0.0/16]
    serviceCIDRs: [10.101.0.0/16]
    nodes: 20
  - name: west
    podCIDRs: [10.2.0.0/16]
    serviceCIDRs: [10.102.0.0/16]
    nodes: 20
`
)

// The milestones of a lab that comes up, as the table names them.
const (
	hostsMade   = "hosts made, all agents started, s"
	registered  = "all 40 agents registered, s"
	halfUp      = "half of the tunnels up, s"
	allUp       = "all 800 tunnels up, s"
	lastUp      = "last tunnel up by its agent's clock, s"
	settledFor  = 5 * time.Second
	comeUpLimit = 3 * time.Minute
)

// scale measures how a mesh of 2 × 20 nodes comes up, from nothing to the last
// tunnel, and what it costs then.
func (b *bench) scale(ctx context.Context) (*table, error) {
	rounds, steady := 3, 15*time.Second
	if b.quick {
		rounds, steady = 1, 5*time.Second
	}
	t := newTable("From `lab up` with 2 × 20 nodes to all 800 tunnels up", "since `lab up` began", "median (smallest–largest)")
	got := map[string]series{}
	for round := range rounds {
		progress("scale: round %d of %d", round+1, rounds)
		if err := b.comeUp(ctx, got, steady, round == rounds-1); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{hostsMade, registered, halfUp, allUp, lastUp} {
		t.row(name, t.sample(name, got[name]).spread("%.2f"))
	}
	for _, p := range []string{lab.Agent, lab.Device, lab.ControlPlane} {
		t.row(p+": CPU until all were up, s a process", t.sample(p+" cpu s", got[p+" cpu s"]).spread("%.2f"))
	}
	for _, p := range []string{lab.Agent, lab.Device, lab.ControlPlane} {
		t.row(p+": memory (RSS) a process, MiB", t.sample(p+" rss", got[p+" rss"]).spread("%.1f"))
		t.row(p+": CPU a process with all up and idle, % of one", t.sample(p+" idle", got[p+" idle"]).spread("%.2f"))
	}
	t.note("%d rounds from nothing. The times are those at which the control plane knows it, asked every 50 ms; the last tunnel's is that of the agent that judged last.", rounds)
	t.note("All 40 agents, 40 devices, 40 pods and the control plane share this machine's CPUs, and so does the making of 84 hosts.")
	t.note("CPU and memory a process: over all agents and devices of a round (of the last round for memory), idle over %v.", steady)
	return t, nil
}

// comeUp brings one lab up and takes it down.
func (b *bench) comeUp(ctx context.Context, got map[string]series, steady time.Duration, memory bool) error {
	began := time.Now()
	since := func(name string) { got[name] = append(got[name], time.Since(began).Seconds()) }
	l, down, err := b.up(ctx, "scale", scaleYAML, lab.Options{})
	if err != nil {
		return err
	}
	defer down()
	since(hostsMade)
	passed := map[string]bool{}
	pass := func(name string, ok bool) {
		if ok && !passed[name] {
			passed[name] = true
			since(name)
		}
	}
	var s controlplane.Status
	err = until(ctx, 50*time.Millisecond, comeUpLimit, "800 tunnels", func() (bool, error) {
		var err error
		if s, err = controlPlaneStatus(ctx, l); err != nil {
			return false, err
		}
		pass(registered, s.Nodes.Registered == scaleNodes)
		pass(halfUp, s.Tunnels.Up >= scaleTunnels/2)
		pass(allUp, s.Tunnels.Up == scaleTunnels && s.Tunnels.Expected == scaleTunnels)
		return passed[allUp], nil
	})
	if err != nil {
		return fmt.Errorf("%w; last seen: %d of %d agents registered, %d of %d tunnels up", err, s.Nodes.Registered, s.Nodes.Total, s.Tunnels.Up, s.Tunnels.Expected)
	}
	pids := map[string][]int{}
	for _, name := range []string{lab.Agent, lab.Device, lab.ControlPlane} {
		if pids[name], err = pidsOf(l, name); err != nil {
			return err
		}
		used, err := cpuOf(pids[name])
		if err != nil {
			return err
		}
		if n := len(pids[name]); n > 0 {
			got[name+" cpu s"] = append(got[name+" cpu s"], used.Seconds()/float64(n))
		}
	}
	var last time.Time
	for _, n := range s.NodeList {
		a, err := agentStatus(ctx, l, n.Node)
		if err != nil {
			return err
		}
		for _, p := range a.Peers {
			if p.Since.After(last) {
				last = p.Since
			}
		}
	}
	got[lastUp] = append(got[lastUp], last.Sub(began).Seconds())
	return settled(ctx, pids, steady, memory, got)
}

// settled measures what the processes take when nothing happens any more.
func settled(ctx context.Context, pids map[string][]int, steady time.Duration, memory bool, got map[string]series) error {
	if err := pause(ctx, settledFor); err != nil {
		return err
	}
	err := window(ctx, pids, steady, func(name string, percent float64) {
		if n := len(pids[name]); n > 0 {
			got[name+" idle"] = append(got[name+" idle"], percent/float64(n))
		}
	})
	if err != nil || !memory {
		return err
	}
	for name, list := range pids {
		if got[name+" rss"], err = rssOf(list); err != nil {
			return err
		}
	}
	return nil
}
