package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// gatewayYAML is a node with clients in one pod and pods behind the gateway in
// another; the gateways run on the node. All ways lead over the same two links.
const gatewayYAML = `clusters:
  - name: west
    podCIDRs: [10.2.0.0/16]
    podsPerNode: 2
`

var (
	bulk1    = measure{"1 connection, Gb/s", "%.2f", false}
	bulk8    = measure{"8 connections, Gb/s", "%.2f", false}
	bulkCPU  = measure{"CPU of the proxy with 8 connections, s/GB", "%.3f", true}
	briefs   = measure{"new connections a second", "%.0f", false}
	briefCPU = measure{"CPU of the proxy for a connection, µs", "%.0f", true}
)

// atOnce is how many clients connect at the same time.
const atOnce = 32

// gateways measures flatmesh's gateway against a direct connection and against
// HAProxy. Within a round they take turns, as in throughput.
func (b *bench) gateways(ctx context.Context) (*table, error) {
	rounds, d := 12, time.Second
	if b.quick {
		rounds, d = 3, 500*time.Millisecond
	}
	l, down, err := b.up(ctx, "gw", gatewayYAML, lab.Options{NoAgents: true})
	if err != nil {
		return nil, err
	}
	defer down()
	s, err := b.proxies(ctx, l)
	if err != nil {
		return nil, err
	}
	defer s.end()
	got := map[string]series{}
	for round := range rounds {
		progress("gateway: round %d of %d", round+1, rounds)
		for _, m := range []measure{bulk1, bulk8, briefs} {
			for i := range s.ways {
				if round%2 == 1 {
					i = len(s.ways) - 1 - i
				}
				if err := s.ways[i].take(s.load, m, d, got); err != nil {
					return nil, fmt.Errorf("%s, %s: %w", s.ways[i].name, m.name, err)
				}
			}
		}
	}
	t, err := gatewayTable(s.ways, got)
	if err != nil {
		return nil, err
	}
	t.note("Medians (smallest–largest) of %d rounds; a ratio is taken within each round, then its median. Each measurement lasts %v.", rounds, d)
	t.note("Clients in one pod, pods in another, the proxy on their node, each a process; all on the same CPUs. The proxies have %d threads each (GOMAXPROCS, nbthread).", runtime.GOMAXPROCS(0))
	t.note("Throughput: after a handshake of TLS between client and pod the pod sends what looks like its records. Connections: %d clients connect, send a ClientHello, are answered with %d bytes, and close; nothing is encrypted. The proxy takes one of %d pods.", atOnce, flight, len(briefPorts))
	t.note("flatmesh: pkg/gateway with fixed routes. HAProxy: mode tcp, req.ssl_sni, option splice-auto, no log.")
	t.Notes = append(t.Notes, s.notes...)
	return t, nil
}

// take makes one measurement of a way and adds it to what was got.
func (w *proxied) take(load *child, m measure, d time.Duration, got map[string]series) error {
	add := func(m measure, v float64) { got[key(m, w.name)] = append(got[key(m, w.name)], v) }
	o := loadOrder{For: d, To: w.bulk}
	switch m {
	case bulk1:
		o.Bulk = 1
	case bulk8:
		o.Bulk = 8
	case briefs:
		o.Brief, o.To = atOnce, w.brief
	}
	before, err := cpuOf(w.pids)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := load.tell(o); err != nil {
		return err
	}
	var a loadAnswer
	if err := load.hear(&a); err != nil {
		return err
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	took := time.Since(began)
	after, err := cpuOf(w.pids)
	if err != nil {
		return err
	}
	speed := a.Amount / a.Took.Seconds()
	// The proxy's CPU is that of the whole measurement, its ramp included.
	cpu := (after - before).Seconds() / (speed * took.Seconds())
	switch m {
	case bulk1, bulk8:
		add(m, 8*speed/1e9)
		if m == bulk8 && len(w.pids) > 0 {
			add(bulkCPU, cpu*1e9)
		}
	case briefs:
		add(m, speed)
		if len(w.pids) > 0 {
			add(briefCPU, cpu*1e6)
		}
	}
	return nil
}

func gatewayTable(ways []proxied, got map[string]series) (*table, error) {
	columns := []string{"through the gateway"}
	for _, w := range ways {
		if w.name != byGateway {
			columns = append(columns, "flatmesh ÷ "+w.name)
		}
	}
	for _, w := range ways {
		columns = append(columns, w.name)
	}
	t := newTable("The gateway against HAProxy and a direct connection", columns...)
	for _, m := range []measure{bulk1, bulk8, briefs, bulkCPU, briefCPU} {
		name := m.name
		if m.lowerBetter {
			name += " (less is better)"
		}
		row := []string{name}
		for _, w := range ways {
			if w.name != byGateway {
				row = append(row, got[key(m, byGateway)].over(got[key(m, w.name)]).spread("%.2f"))
			}
		}
		for _, w := range ways {
			row = append(row, t.sample(key(m, w.name), got[key(m, w.name)]).spread(m.format))
		}
		t.row(row...)
	}
	for _, w := range ways {
		if len(w.pids) == 0 {
			continue
		}
		rss, err := rssOf(w.pids)
		if err != nil {
			return nil, err
		}
		t.note("%s: %.0f MiB resident at the end.", w.name, rss[0])
	}
	return t, nil
}
