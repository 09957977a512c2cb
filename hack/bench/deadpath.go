package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// resetAfter are the values of the agents' --reset-after that are compared, each
// in a mesh of its own.
var resetAfter = []string{"0s", "2s", "5s", "10s", "never"}

// silentFor says how long paths are cut, and in how many rounds.
var silentFor = []struct {
	cut    time.Duration
	rounds int
}{{2 * time.Second, 4}, {5 * time.Second, 3}, {30 * time.Second, 2}}

const (
	deadNodes = 3
	deadYAML  = `clusters:
  - name: east
    podCIDRs: [10.1.0.0/16]
    nodes: 3
  - name: west
    podCIDRs: [10.2.0.0/16]
    nodes: 3
`
	// deadTogether is how many pairs of a mesh are cut at the same time.
	deadTogether = 2

	requestEvery = 100 * time.Millisecond
	// watchEvery is how often it is asked what a client has met.
	watchEvery = 40 * time.Millisecond
	// patience is for a client on a path that has healed: TCP's pauses double, so
	// that it may be silent for as long as the path was.
	patience = 90 * time.Second
)

// deadPath measures what a plain TCP client meets on a path that goes silent and
// heals, with its packets refused sooner, later, or not at all.
func (b *bench) deadPath(ctx context.Context) (*table, error) {
	var mu sync.Mutex
	got := map[time.Duration]map[string][]outage{}
	for _, s := range silentFor {
		got[s.cut] = map[string][]outage{}
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, after := range resetAfter {
		// Side by side: what disturbs the machine disturbs all.
		g.Go(func() error {
			err := b.deadMesh(gctx, after, func(cut time.Duration, o outage) {
				mu.Lock()
				defer mu.Unlock()
				got[cut][after] = append(got[cut][after], o)
			})
			if err != nil {
				return fmt.Errorf("--reset-after %s: %w", after, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	t := newTable("A plain TCP client on a path that goes silent",
		"silent for", "refused when Down for", "connections broken", "client told after, s", "good answer after, s", "gap after healing, s")
	for _, s := range silentFor {
		for _, after := range resetAfter {
			t.outages(s.cut, after, got[s.cut][after])
		}
	}
	t.note("Medians (smallest–largest). The client sends %d bytes every %v on one connection, waits for their echo without a limit of its own, and connects again after an error, at the next turn; no keepalive. Told: its first error. Times but the gap count from the cut.", packet, requestEvery)
	t.note("A mesh of 2 × %d nodes for each pause, all at the same time; in each, %d pairs are cut at a time, at any moment between two requests, and none again within %v.", deadNodes, deadTogether, unflapped)
	return t, nil
}

// deadMesh makes a mesh whose agents refuse after a time, and cuts pairs of it.
func (b *bench) deadMesh(ctx context.Context, after string, met func(cut time.Duration, o outage)) error {
	l, down, err := b.up(ctx, "dead"+after, deadYAML, lab.Options{Wait: 2 * time.Minute, AgentFlags: []string{"--reset-after", after}})
	if err != nil {
		return err
	}
	defer down()
	hosts, err := hostsOf(l)
	if err != nil {
		return err
	}
	next := 0
	last := map[[2]mesh.NodeID]time.Time{}
	for round := range silentFor[0].rounds {
		for _, s := range silentFor {
			if round >= s.rounds || b.quick && round > 0 {
				continue
			}
			progress("deadpath: refused after %s, silent for %v", after, s.cut)
			g, ctx := errgroup.WithContext(ctx)
			for range deadTogether {
				// Neighbours in this order have no node in common.
				d := deadPair{lab: l, hosts: hosts, a: nodeOf("east", next%deadNodes), b: nodeOf("west", (next+next/deadNodes)%deadNodes)}
				next++
				// By design a tunnel that flaps would take longer to be Up again.
				rested := last[d.nodes()].Add(unflapped)
				last[d.nodes()] = time.Now()
				g.Go(func() error {
					if err := pause(ctx, time.Until(rested)); err != nil {
						return err
					}
					o, err := d.outage(ctx, s.cut)
					if err != nil {
						return fmt.Errorf("%v to %v: %w", d.a, d.b, err)
					}
					met(s.cut, o)
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				return err
			}
		}
	}
	return nil
}

// outage is what a client met.
type outage struct {
	// broken connections were established before.
	broken int
	// told, good and gap are in seconds; told is NaN where there was no error.
	told, good, gap float64
}

func (t *table) outages(cut time.Duration, after string, list []outage) {
	var told, good, gap series
	broken := 0
	for _, o := range list {
		broken += o.broken
		if !math.IsNaN(o.told) {
			told = append(told, o.told)
		}
		good, gap = append(good, o.good), append(gap, o.gap)
	}
	for what, s := range map[string]series{"told": told, "good": good, "gap": gap} {
		t.sample(fmt.Sprintf("silent for %v, refused after %s: %s", cut, after, what), s)
	}
	t.row(cut.String(), after, fmt.Sprintf("%d of %d", broken, len(list)),
		told.spread("%.2f"), good.spread("%.2f"), gap.spread("%.2f"))
}

// deadPair is two nodes, with a client on the first and its server on the second.
type deadPair struct {
	lab   *lab.Lab
	hosts map[string]lab.Host
	a, b  mesh.NodeID
}

func (d deadPair) nodes() [2]mesh.NodeID { return [2]mesh.NodeID{d.a, d.b} }

func (d deadPair) outage(ctx context.Context, cut time.Duration) (o outage, err error) {
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		err = errors.Join(err, g.Wait())
	}()
	ln, err := listenTCP(ctx, d.hosts[d.b.String()+"/p1"])
	if err != nil {
		return o, err
	}
	g.Go(func() error { return echoTCP(ctx, ln) })
	c := &client{from: d.hosts[d.a.String()+"/p1"], to: ln.Addr().String()}
	g.Go(func() error { return c.run(ctx) })
	began := time.Now()
	if err := until(ctx, watchEvery, tolerance, "answers", func() (bool, error) { return c.since(began).good > 0, nil }); err != nil {
		return o, err
	}
	if err := pause(ctx, time.Second+rand.N(requestEvery)); err != nil {
		return o, err
	}
	cutAt := time.Now()
	if err := d.lab.Cut(ctx, d.a.String(), d.b.String(), false); err != nil {
		return o, err
	}
	if err := pause(ctx, time.Until(cutAt.Add(cut))); err != nil {
		return o, err
	}
	healAt := time.Now()
	if err := d.lab.Heal(ctx, d.a.String(), d.b.String(), false); err != nil {
		return o, err
	}
	if err := until(ctx, watchEvery, patience, "a good answer", func() (bool, error) { return c.since(healAt).good > 0, nil }); err != nil {
		return o, err
	}
	after, all := c.since(healAt), c.since(cutAt)
	o = outage{broken: all.broken, told: all.told, good: healAt.Sub(cutAt).Seconds() + after.good, gap: after.good}
	return o, nil
}

// echoTCP sends back what it receives, until ctx ends.
func echoTCP(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		open.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			_, _ = io.Copy(c, c) // how it ends is the client's to tell
		})
	}
}

// client asks and waits for the answer, again and again.
type client struct {
	from lab.Host
	to   string

	mu     sync.Mutex
	events []event
}

// event is a good answer or an error.
type event struct {
	at   time.Time
	good bool
	// broken: of a connection that was established.
	broken bool
}

func (c *client) note(e event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.at = time.Now()
	c.events = append(c.events, e)
}

// summary is what has happened since a moment, in seconds after it: the first
// good answer (0: none) and the first error (NaN: none).
type summary struct {
	good, told float64
	broken     int
}

func (c *client) since(t time.Time) summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := summary{told: math.NaN()}
	for _, e := range c.events {
		switch after := e.at.Sub(t).Seconds(); {
		case after <= 0:
		case e.good && s.good == 0:
			s.good = after
		case !e.good && math.IsNaN(s.told):
			s.told = after
		}
		if e.broken && e.at.After(t) {
			s.broken++
		}
	}
	return s
}

// run asks until ctx ends.
func (c *client) run(ctx context.Context) error {
	turn := time.NewTicker(requestEvery)
	defer turn.Stop()
	dialer := net.Dialer{KeepAlive: -1}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-turn.C:
		}
		var conn net.Conn
		err := inside(c.from, func() (err error) {
			conn, err = dialer.DialContext(ctx, "tcp", c.to)
			return err
		})
		if err != nil {
			c.note(event{})
			continue
		}
		c.talk(ctx, conn, turn.C)
	}
}

// talk asks on one connection until it breaks, or ctx ends.
func (c *client) talk(ctx context.Context, conn net.Conn, turn <-chan time.Time) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	buf := make([]byte, packet)
	for {
		_, err := conn.Write(buf)
		if err == nil {
			_, err = io.ReadFull(conn, buf)
		}
		c.note(event{good: err == nil, broken: err != nil})
		if err != nil {
			return
		}
		<-turn
	}
}
