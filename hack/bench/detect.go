package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// A mesh with a pair for every cut of a full run: a pair that is cut a second
// time within a minute would, by design, take longer to be Up again.
const (
	detectNodes = 10
	detectYAML  = `clusters:
  - name: east
    podCIDRs: [10.1.0.0/16]
    nodes: 10
  - name: west
    podCIDRs: [10.2.0.0/16]
    nodes: 10
`
	// together is how many pairs are cut at the same time, each at its own.
	together = 4
	// tolerance is for a cut that takes long to be noticed: then it failed.
	tolerance = 30 * time.Second
)

// cut is a pair whose path is cut in both directions.
type cut struct{ a, b mesh.NodeID }

// The rows of the table: what happened how many seconds after a cut or a heal.
const (
	downA   = "Down at the first agent"
	downAB  = "Down at both agents"
	downCP  = "Down at the control plane, one direction"
	downCP2 = "Down at the control plane, both"
	upAB    = "healed: Up at both agents"
	upCP2   = "healed: Up at the control plane, both"
	// trip is the agents' own smoothed round trip before the cut.
	trip = "round trip before the cut"
)

// detect measures how long it takes until a cut path is known, and a healed one,
// with traffic between the pods and without.
func (b *bench) detect(ctx context.Context) (*table, error) {
	cuts := 50
	if b.quick {
		cuts = 10
	}
	l, down, err := b.up(ctx, "cut", detectYAML, lab.Options{Wait: 2 * time.Minute})
	if err != nil {
		return nil, err
	}
	defer down()
	hosts, err := hostsOf(l)
	if err != nil {
		return nil, err
	}
	d := &detection{lab: l, hosts: hosts, healed: map[[2]mesh.NodeID]time.Time{}}
	before, err := d.since(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var late []string
	t := newTable("Detection of a cut path", "seconds after", "p50", "p90", "p99", "max", "over the bound")
	for i, kind := range []struct {
		name    string
		traffic bool
		bound   float64
	}{{"idle", false, 10}, {"traffic", true, 1}} {
		progress("detect: %d cuts, %s", cuts, kind.name)
		got, err := d.series(ctx, i*cuts, cuts, kind.traffic)
		if err != nil {
			return nil, err
		}
		t.sample(kind.name+"; "+trip, got[trip])
		for _, name := range []string{downA, downAB, downCP, downCP2, upAB, upCP2} {
			s := t.sample(kind.name+"; "+name, got[name])
			over := "-"
			if name != upAB && name != upCP2 {
				n := 0
				for j, v := range s {
					if v > kind.bound {
						n++
						if name == downAB {
							late = append(late, fmt.Sprintf("%.2f s after a smoothed round trip of %.0f ms", v, 1e3*got[trip][j]))
						}
					}
				}
				over = fmt.Sprintf("%d of %d over %.0f s", n, len(s), kind.bound)
			}
			t.row(kind.name+": "+name, s3(s.quantile(.5)), s3(s.quantile(.9)), s3(s.quantile(.99)), s3(s.quantile(1)), over)
		}
	}
	flapped, err := d.flaps(ctx, before)
	if err != nil {
		return nil, err
	}
	t.note("%d cuts each, of 100 pairs (2 × 10 nodes); %d pairs are cut at a time, each at its own moment, none twice. p99 of so few is the largest or next to it.", cuts, together)
	t.note("Traffic: a packet of %d bytes every %v between two pods, and its echo. Idle: nothing but the probes.", packet, streamEvery)
	t.note("An agent's time is the one it notes itself; the control plane was asked every %v. Times count from before the command to cut (median %s s), which they include.", askEvery, s3(d.took.median()))
	t.note("Flaps of tunnels that were not cut, or after they were healed: %d of %d tunnels in %.0f s.", len(flapped), len(before), time.Since(began).Seconds())
	t.sample("cut command s", d.took)
	if len(late) > 0 {
		t.note("Over the bound: %s. An agent waits for an echo twice its smoothed round trip, from 0.2 to 1 s.", strings.Join(late, "; "))
	}
	for _, f := range flapped {
		t.note("Flapped: %s.", f)
	}
	return t, nil
}

func s3(v float64) string { return fmt.Sprintf("%.2f", v) }

// detection cuts and heals pairs of a lab.
type detection struct {
	lab   *lab.Lab
	hosts map[string]lab.Host

	mu sync.Mutex
	// healed says when a tunnel that was cut was Up again, by its agent's clock.
	healed map[[2]mesh.NodeID]time.Time
	took   series
}

// series makes a number of cuts, several pairs at a time.
func (d *detection) series(ctx context.Context, first, count int, traffic bool) (map[string]series, error) {
	got := map[string]series{}
	next := make(chan int)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(next)
		for i := range count {
			select {
			case next <- first + i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range together {
		g.Go(func() error {
			for i := range next {
				// Each pair once: east runs through its nodes, west is shifted by one
				// for each time that it has.
				c := cut{nodeOf("east", i%detectNodes), nodeOf("west", (i+i/detectNodes)%detectNodes)}
				one, err := d.one(ctx, c, traffic)
				if err != nil {
					return fmt.Errorf("cut %v %v: %w", c.a, c.b, err)
				}
				d.mu.Lock()
				for name, v := range one {
					got[name] = append(got[name], v)
				}
				d.mu.Unlock()
			}
			return nil
		})
	}
	return got, g.Wait()
}

func nodeOf(cluster string, i int) mesh.NodeID {
	return mesh.NodeID{Cluster: cluster, Name: fmt.Sprintf("n%d", i+1)}
}

// one cuts a pair, waits until all know, heals it, and waits again.
func (d *detection) one(ctx context.Context, c cut, traffic bool) (map[string]float64, error) {
	if traffic {
		stop, err := stream(ctx, d.hosts[c.a.String()+"/p1"], d.hosts[c.b.String()+"/p1"])
		if err != nil {
			return nil, err
		}
		defer stop()
		for _, way := range [][2]mesh.NodeID{{c.a, c.b}, {c.b, c.a}} {
			err := until(ctx, askEvery, tolerance, fmt.Sprintf("%v to see the traffic to %v", way[0], way[1]), func() (bool, error) {
				p, err := d.peer(ctx, way[0], way[1])
				return err == nil && p.Active, err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	// At no fixed moment between two probes.
	if err := pause(ctx, rand.N(time.Second)); err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, way := range [][2]mesh.NodeID{{c.a, c.b}, {c.b, c.a}} {
		p, err := d.peer(ctx, way[0], way[1])
		if err != nil {
			return nil, err
		}
		out[trip] = max(out[trip], p.RTT)
	}
	began := time.Now()
	if err := d.lab.Cut(ctx, c.a.String(), c.b.String(), false); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.took = append(d.took, time.Since(began).Seconds())
	d.mu.Unlock()
	first, both, agents, err := d.await(ctx, c, mesh.Down, began)
	if err != nil {
		return nil, err
	}
	out[downCP], out[downCP2] = first, both
	out[downA], out[downAB] = min(agents[0], agents[1]), max(agents[0], agents[1])

	began = time.Now()
	if err := d.lab.Heal(ctx, c.a.String(), c.b.String(), false); err != nil {
		return nil, err
	}
	if _, out[upCP2], agents, err = d.await(ctx, c, mesh.Up, began); err != nil {
		return nil, err
	}
	out[upAB] = max(agents[0], agents[1])
	d.mu.Lock()
	d.healed[[2]mesh.NodeID{c.a, c.b}] = began.Add(seconds(agents[0]))
	d.healed[[2]mesh.NodeID{c.b, c.a}] = began.Add(seconds(agents[1]))
	d.mu.Unlock()
	return out, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// askEvery is how often it is asked whether a change has come about.
const askEvery = 20 * time.Millisecond

// await waits until the control plane knows both directions of a pair to be in a
// state, and returns after how many seconds it knew the first and both, and when
// the two agents noted theirs.
func (d *detection) await(ctx context.Context, c cut, state mesh.TunnelState, began time.Time) (first, both float64, agents [2]float64, err error) {
	ways := [2][2]mesh.NodeID{{c.a, c.b}, {c.b, c.a}}
	err = until(ctx, askEvery, tolerance, fmt.Sprintf("the control plane to know it %v", state), func() (bool, error) {
		n := 0
		for _, w := range ways {
			t, err := reported(ctx, d.lab, w[0])
			if err != nil {
				return false, err
			}
			if t[w[1]].State == state {
				n++
			}
		}
		now := time.Since(began).Seconds()
		if n > 0 && first == 0 {
			first = now
		}
		both = now
		return n == len(ways), nil
	})
	if err != nil {
		return 0, 0, agents, err
	}
	for i, w := range ways {
		p, err := d.peer(ctx, w[0], w[1])
		if err != nil {
			return 0, 0, agents, err
		}
		if p.State != state {
			return 0, 0, agents, fmt.Errorf("%v told the control plane that its tunnel to %v is %v, but it is %v now", w[0], w[1], state, p.State)
		}
		agents[i] = p.Since.Sub(began).Seconds()
	}
	return first, both, agents, nil
}

func (d *detection) peer(ctx context.Context, from, to mesh.NodeID) (agent.PeerStatus, error) {
	s, err := agentStatus(ctx, d.lab, from)
	if err != nil {
		return agent.PeerStatus{}, err
	}
	return peerOf(s, to)
}

// since returns since when each tunnel has been in its state.
func (d *detection) since(ctx context.Context) (map[[2]mesh.NodeID]time.Time, error) {
	out := map[[2]mesh.NodeID]time.Time{}
	for _, cluster := range []string{"east", "west"} {
		for i := range detectNodes {
			s, err := agentStatus(ctx, d.lab, nodeOf(cluster, i))
			if err != nil {
				return nil, err
			}
			for _, p := range s.Peers {
				out[[2]mesh.NodeID{s.Node, p.Node}] = p.Since
			}
		}
	}
	return out, nil
}

// flaps lists the tunnels that changed their state other than by a cut.
func (d *detection) flaps(ctx context.Context, before map[[2]mesh.NodeID]time.Time) ([]string, error) {
	now, err := d.since(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for way, was := range before {
		if healed, ok := d.healed[way]; ok {
			was = healed
		}
		if since := now[way]; since.Sub(was).Abs() > time.Millisecond {
			out = append(out, fmt.Sprintf("%v to %v, which changed at %s", way[0], way[1], since.Format(time.TimeOnly)))
		}
	}
	return out, nil
}
