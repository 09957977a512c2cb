package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// measure is a row of the throughput table.
type measure struct {
	name, format string
	lowerBetter  bool
}

var (
	tcp1 = measure{"TCP 1 stream, Gb/s", "%.2f", false}
	cpu1 = measure{"CPU of both devices, s/GB", "%.2f", true}
	tcp4 = measure{"TCP 4 streams, Gb/s", "%.2f", false}
	udp  = measure{"UDP 64 B delivered, kpps", "%.1f", false}
	rtt  = measure{"RTT p50, µs", "%.0f", true}
	tail = measure{"RTT p99, µs", "%.0f", true}
)

// throughput measures what pods get of each system. Rounds are many and short,
// and within a round the systems take turns with each load, back and forth, so
// that a machine that slows down or is shared disturbs all alike; ratios are taken
// within rounds.
func (b *bench) throughput(ctx context.Context) (*table, error) {
	rounds, long, short := 20, time.Second, 700*time.Millisecond
	if b.quick {
		rounds, long, short = 5, 600*time.Millisecond, 400*time.Millisecond
	}
	systems, notes, clean, err := b.systems(ctx)
	if err != nil {
		return nil, err
	}
	defer clean()
	got := map[string]series{}
	for round := range rounds {
		progress("throughput: round %d of %d", round+1, rounds)
		for _, load := range []measure{tcp1, tcp4, udp, rtt} {
			for i := range systems {
				s := &systems[i]
				if round%2 == 1 {
					s = &systems[len(systems)-1-i]
				}
				if round%s.every != 0 {
					continue
				}
				if err := s.take(ctx, load, long, short, got); err != nil {
					return nil, fmt.Errorf("%s, %s: %w", s.name, load.name, err)
				}
			}
		}
	}
	return throughputTable(systems, notes, got, rounds, long, short), nil
}

func key(m measure, system string) string { return m.name + "; " + system }

// take makes one measurement of a system and adds it to what was got.
func (s *system) take(ctx context.Context, load measure, long, short time.Duration, got map[string]series) error {
	add := func(m measure, v float64) { got[key(m, s.name)] = append(got[key(m, s.name)], v) }
	switch load {
	case tcp1:
		before, err := cpuOf(s.devices)
		if err != nil {
			return err
		}
		began := time.Now()
		v, err := s.road.tcp(ctx, 1, long)
		if err != nil {
			return err
		}
		took := time.Since(began)
		add(load, v)
		after, err := cpuOf(s.devices)
		if err != nil {
			return err
		}
		if len(s.devices) > 0 {
			add(cpu1, (after-before).Seconds()/(v/8*took.Seconds()))
		}
	case tcp4:
		v, err := s.road.tcp(ctx, 4, long)
		if err != nil {
			return err
		}
		add(load, v)
	case udp:
		v, err := s.road.flood(ctx, long)
		if err != nil {
			return err
		}
		add(load, v/1e3)
	case rtt:
		trips, err := s.road.rtt(ctx, short)
		if err != nil {
			return err
		}
		add(rtt, trips.quantile(0.5))
		add(tail, trips.quantile(0.99))
	}
	return nil
}

func throughputTable(systems []system, notes []string, got map[string]series, rounds int, long, short time.Duration) *table {
	columns := []string{"pod to pod"}
	others := slices.DeleteFunc(slices.Clone(systems), func(s system) bool { return s.name == byFlatmesh })
	for _, o := range others {
		columns = append(columns, "flatmesh ÷ "+o.name)
	}
	for _, s := range systems {
		columns = append(columns, s.name)
	}
	t := newTable("Throughput and latency, pod to pod", columns...)
	measures := []measure{tcp1, tcp4, udp, rtt, tail, cpu1}
	for _, m := range measures {
		name := m.name
		if m.lowerBetter {
			name += " (less is better)"
		}
		row := []string{name}
		mesh := got[key(m, byFlatmesh)]
		for _, o := range others {
			row = append(row, mesh.every(o.every).over(got[key(m, o.name)]).spread("%.2f"))
		}
		for _, s := range systems {
			row = append(row, t.sample(key(m, s.name), got[key(m, s.name)]).spread(m.format))
		}
		t.row(row...)
	}
	t.note("Medians (smallest–largest) of %d rounds, of each %dth for the last two systems; a ratio is taken within each round, then its median. Each measurement lasts %v, RTT %v.", rounds, seldom, long, short)
	t.note("Every system has the same hosts: pod, node, router, core, router, node, pod, all links with MTU 1500; the tunnels' MTU is %d.", tunnelMTU)
	t.note("By hand: flatmesh's own userspace device (`agent device`), with one peer and a route in the main table, and no agent.")
	t.note("RTT: one packet of %d bytes over UDP and its echo at a time. CPU: what the two userspace devices use for TCP with 1 stream.", packet)
	t.note("Sender and receiver are one Go process, on the same CPUs as the devices. A flood sends as fast as one thread can.")
	var likely []string
	for _, m := range measures {
		ratios := t.sample(m.name+"; flatmesh ÷ by hand", got[key(m, byFlatmesh)].over(got[key(m, byHand)]))
		if low, high, ok := ratios.likely(); ok {
			likely = append(likely, fmt.Sprintf("%s %.2f–%.2f", m.name, low, high))
		}
	}
	if len(likely) > 0 {
		t.note("The median of flatmesh ÷ by hand lies, with 95 %%, within: %s.", strings.Join(likely, "; "))
	}
	t.Notes = append(t.Notes, notes...)
	return t
}
