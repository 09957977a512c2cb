package main

import (
	"context"
	"fmt"
	"time"
)

// flipServices all have an endpoint on the node to which the tunnel flips.
const flipServices = 5000

// xdsFlip measures what a tunnel's going down, and up again, costs where every
// service is concerned.
func (b *bench) xdsFlip(ctx context.Context) (*table, error) {
	rounds, services, clients := 10, flipServices, 500
	if b.quick {
		rounds, services, clients = 3, 1000, 100
	}
	w := world{Services: services, Endpoints: 10, Clients: clients + 1, OneNode: true}
	progress("xds-flip: %d clients", clients)
	p, err := startPair(ctx, flatmeshSystem, w, crowd{Clients: clients, Subscriptions: 100, All: true})
	if err != nil {
		return nil, err
	}
	defer p.end()
	t := newTable("One tunnel flips", "services behind it", "of them subscribed to", "last, ms", "until the report is taken in, ms", "CPU, ms", "CPU a resource, µs")
	for _, c := range []struct{ client, names int }{{0, 100}, {clients, services}} {
		var got efforts
		for range rounds {
			es, err := p.flip(ctx, c.client, c.names, 2)
			if err != nil {
				return nil, err
			}
			got = append(got, middle(es))
		}
		of := func(name string, get func(effort) time.Duration) series {
			return t.sample(fmt.Sprintf("%d names: %s", c.names, name), got.series(func(e effort) float64 { return ms(get(e)) }))
		}
		cpu := of("CPU ms", func(e effort) time.Duration { return e.cpu })
		t.row(fmt.Sprint(services), fmt.Sprint(c.names),
			of("last ms", func(e effort) time.Duration { return e.last }).spread("%.1f"),
			of("taken in ms", func(e effort) time.Duration { return e.took }).spread("%.1f"),
			cpu.spread("%.1f"), fmt.Sprintf("%.1f", 1e3*cpu.median()/float64(c.names)))
	}
	t.note("Medians (smallest–largest) of %d rounds, down and up in each. The client's agent reports that the tunnel to one node has changed; every service has an endpoint there, and each assignment that the client has turns to the gateway for it, or back.", rounds)
	t.note("%d other clients with 100 subscriptions each are connected and not concerned. %d endpoints a service. CPU is the server's.", clients-1, w.Endpoints)
	return t, nil
}
