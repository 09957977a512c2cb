package main

import (
	"context"
	"fmt"
	"time"
)

// istio is what Istio's control plane takes for the same on a machine of this
// kind: 1.31 in development, August 2026, with 1,000 services of 10 endpoints and
// 2,000 delta clients with 100 subscriptions each.
var istio = struct {
	ready        effort
	least, most  float64 // resident, GB
	twenty, each effort
}{
	ready: effort{last: 46 * time.Second, cpu: 69 * time.Second},
	least: 3.2, most: 4.4,
	twenty: effort{p50: 152 * time.Millisecond, last: 214 * time.Millisecond, cpu: 105 * time.Millisecond},
	each:   effort{p50: 247 * time.Millisecond, last: 438 * time.Millisecond, cpu: 354 * time.Millisecond},
}

// xdsIstio measures what has been measured of Istio's control plane.
func (b *bench) xdsIstio(ctx context.Context) (*table, error) {
	starts, rounds, clients := 3, 10, 2000
	if b.quick {
		starts, rounds, clients = 1, 3, 300
	}
	const concerned = 20
	w := world{Services: 1000, Endpoints: 10, Clients: clients}
	c := crowd{Clients: clients, Subscriptions: 100, Rare: concerned}
	var ready, few, all efforts
	var resident, peak, heap series
	for start := range starts {
		progress("xds-istio: start %d of %d", start+1, starts)
		if err := b.istioOnce(ctx, w, c, rounds/starts+1, func(joined effort, u serverUsage) {
			ready = append(ready, joined)
			resident = append(resident, float64(u.RSS)/1e9)
			peak = append(peak, float64(u.Peak)/1e9)
			heap = append(heap, float64(u.Heap)/1e9)
		}, &few, &all); err != nil {
			return nil, err
		}
	}
	t := newTable(fmt.Sprintf("1,000 services with 10 endpoints, %d clients with 100 subscriptions, as measured of Istio", clients), "what", "Istio ÷ flatmesh", "flatmesh", "Istio 1.31")
	row := func(what, format string, s series, theirs float64) {
		s = t.sample(what, s)
		t.row(what, fmt.Sprintf("%.1f", theirs/s.median()), s.spread(format), fmt.Sprintf("%g", theirs))
	}
	row("all clients ready, s", "%.2f", ready.series(func(e effort) float64 { return e.last.Seconds() }), istio.ready.last.Seconds())
	row("CPU until then, s", "%.2f", ready.series(func(e effort) float64 { return e.cpu.Seconds() }), istio.ready.cpu.Seconds())
	for _, m := range []struct {
		what string
		s    series
	}{{"resident then, GB", resident}, {"resident at most, GB", peak}} {
		s := t.sample(m.what, m.s)
		t.row(m.what, fmt.Sprintf("%.1f–%.1f", istio.least/s.median(), istio.most/s.median()), s.spread("%.2f"), fmt.Sprintf("%g–%g", istio.least, istio.most))
	}
	t.row("live heap then, GB", "-", t.sample("heap", heap).spread("%.2f"), "-")
	for _, x := range []struct {
		who    string
		own    efforts
		theirs effort
	}{{fmt.Sprintf("%d clients concerned", concerned), few, istio.twenty}, {"all clients concerned", all, istio.each}} {
		of := func(name string, get func(effort) time.Duration) {
			row(fmt.Sprintf("a change, %s: %s, ms", x.who, name), "%.2f", x.own.series(func(e effort) float64 { return ms(get(e)) }), ms(get(x.theirs)))
		}
		of("p50", func(e effort) time.Duration { return e.p50 })
		of("last", func(e effort) time.Duration { return e.last })
		of("CPU", func(e effort) time.Duration { return e.cpu })
	}
	t.note("Medians (smallest–largest) of %d starts from nothing; of %d rounds for changes, of 10 changes each. p50 and last: until the client in the middle and the last one have it; CPU is the server's.", starts, len(few))
	t.note("Istio's figures are not of this run: its control plane, 1.31 in development of August 2026, was measured on a machine of this kind. It waits 100 ms for more before it pushes; what is served differs.")
	t.note("Assignments alone, over connections of their own without TLS, %d connecting at a time; half of each service's endpoints are in another cluster of %d nodes.", connecting, farNodes)
	return t, nil
}

func (b *bench) istioOnce(ctx context.Context, w world, c crowd, rounds int, started func(effort, serverUsage), few, all *efforts) error {
	p, err := startPair(ctx, flatmeshSystem, w, c)
	if err != nil {
		return err
	}
	defer p.end()
	u, err := p.usage(false)
	if err != nil {
		return err
	}
	live, err := p.usage(true)
	if err != nil {
		return err
	}
	u.Heap = live.Heap
	started(p.joined, u)
	for range rounds {
		es, err := p.push(ctx, rareService, c.Rare, 10)
		if err != nil {
			return err
		}
		*few = append(*few, middle(es))
		if es, err = p.push(ctx, commonService, c.Clients, 10); err != nil {
			return err
		}
		*all = append(*all, middle(es))
	}
	return nil
}
