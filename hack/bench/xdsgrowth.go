package main

import (
	"context"
	"fmt"
	"time"
)

// growthConcerned is how many clients a change concerns, whatever else there is.
const growthConcerned = 20

// xdsGrowth shows that what a change costs depends neither on how many services
// there are nor on how many clients it does not concern.
func (b *bench) xdsGrowth(ctx context.Context) (*table, error) {
	rounds := 10
	type size struct{ services, clients int }
	sizes := []size{{500, 1000}, {2000, 1000}, {8000, 1000}, {2000, 200}, {2000, 3000}}
	if b.quick {
		rounds, sizes = 3, []size{{500, 200}, {2000, 200}, {2000, 100}, {2000, 400}}
	}
	var pairs []*xdsPair
	defer func() {
		for _, p := range pairs {
			p.end()
		}
	}()
	for _, s := range sizes {
		progress("xds-growth: %d services, %d clients", s.services, s.clients)
		w := world{Services: s.services, Endpoints: 10, Clients: s.clients}
		p, err := startPair(ctx, flatmeshSystem, w, crowd{Clients: s.clients, Subscriptions: 100, Rare: growthConcerned})
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
	got := make([]efforts, len(pairs))
	for round := range rounds {
		progress("xds-growth: round %d of %d", round+1, rounds)
		for i := range pairs {
			if round%2 == 1 {
				i = len(pairs) - 1 - i
			}
			es, err := pairs[i].push(ctx, rareService, growthConcerned, 20)
			if err != nil {
				return nil, err
			}
			got[i] = append(got[i], middle(es))
		}
	}
	t := newTable(fmt.Sprintf("One endpoint changes, which concerns %d clients", growthConcerned),
		"services", "clients", "last ÷ first row", "CPU ÷ first row", "last client, ms", "CPU, ms", "until the change is taken in, ms")
	for i, s := range sizes {
		of := func(name string, i int, get func(effort) time.Duration) series {
			return t.sample(fmt.Sprintf("%d services, %d clients: %s", sizes[i].services, sizes[i].clients, name),
				got[i].series(func(e effort) float64 { return ms(get(e)) }))
		}
		last := func(i int) series { return of("last ms", i, func(e effort) time.Duration { return e.last }) }
		cpu := func(i int) series { return of("CPU ms", i, func(e effort) time.Duration { return e.cpu }) }
		t.row(fmt.Sprint(s.services), fmt.Sprint(s.clients), last(i).over(last(0)).spread("%.2f"), cpu(i).over(cpu(0)).spread("%.2f"),
			last(i).spread("%.2f"), cpu(i).spread("%.2f"), of("taken in ms", i, func(e effort) time.Duration { return e.took }).spread("%.2f"))
	}
	t.note("Medians (smallest–largest) of %d rounds of 20 changes; all servers run at the same time and take turns, and a ratio is taken within each round. %d subscriptions a client, 10 endpoints a service. CPU is the server's, acknowledgements included.", rounds, 100)
	return t, nil
}
