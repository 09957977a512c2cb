package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// rival is a system in the comparison of pushes.
type rival struct {
	system string
	// every says that it takes part in each such round, and times how many changes
	// it then makes.
	every, times int
}

var rivals = []rival{
	{flatmeshSystem, 1, 10}, {linearSystem, 1, 10}, {linearsSystem, 1, 3}, {snapshotsSystem, 10, 1},
}

// Of the services of this comparison each client subscribes to half: what more
// there are cost a SnapshotCache alone.
const (
	pushServices      = 200
	pushSubscriptions = 100
	pushEndpoints     = 10
)

// xdsPush measures one endpoint's change against the caches of go-control-plane,
// which all serve at the same time and take turns.
func (b *bench) xdsPush(ctx context.Context) (*table, error) {
	rounds, sizes := 10, []int{500, 2000}
	if b.quick {
		rounds, sizes = 3, []int{200, 500}
	}
	columns := []string{"clients", "concerned", "of one endpoint's change"}
	for _, r := range rivals[1:] {
		columns = append(columns, r.system+" ÷ flatmesh")
	}
	for _, r := range rivals {
		columns = append(columns, r.system)
	}
	t := newTable("One endpoint changes", columns...)
	for _, clients := range sizes {
		if err := b.pushes(ctx, t, clients, rounds); err != nil {
			return nil, err
		}
	}
	t.note("Medians (smallest–largest) of %d rounds, of one in %d for SnapshotCache, and there of %d changes, %d and %d for the last two. A ratio is taken within each round.", rounds, rivals[3].every, rivals[0].times, rivals[2].times, rivals[3].times)
	t.note("%d services with %d endpoints, half of them in each of two clusters; each client has a node, a connection and %d subscriptions of its own. Delta, gRPC over loopback TCP without TLS. Server and clients are processes of their own on the same CPUs; CPU is the server's, acknowledgements included.", pushServices, pushEndpoints, pushSubscriptions)
	t.note("LinearCache for all gives every client the same, so it cannot serve what differs by node; the next has one for each node, SnapshotCache a snapshot for each node. Both hold the same messages for all nodes, which are made before the clock starts; flatmesh's clock starts before it makes its own.")
	t.note("Last: until the last concerned client has it.")
	return t, nil
}

func (b *bench) pushes(ctx context.Context, t *table, clients, rounds int) error {
	w := world{Services: pushServices, Endpoints: pushEndpoints, Clients: clients}
	c := crowd{Clients: clients, Subscriptions: pushSubscriptions, Rare: clients / 100}
	var pairs []*xdsPair
	defer func() {
		for _, p := range pairs {
			p.end()
		}
	}()
	for _, r := range rivals {
		progress("xds-push: %d clients of %s", clients, r.system)
		p, err := startPair(ctx, r.system, w, c)
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	for _, share := range []struct{ service, concerned int }{{rareService, c.Rare}, {commonService, clients}} {
		got := map[string]efforts{}
		for round := range rounds {
			progress("xds-push: %d of %d clients, round %d of %d", share.concerned, clients, round+1, rounds)
			for i := range rivals {
				if round%2 == 1 {
					i = len(rivals) - 1 - i
				}
				if round%rivals[i].every != 0 {
					continue
				}
				es, err := pairs[i].push(ctx, share.service, share.concerned, rivals[i].times)
				if err != nil {
					return err
				}
				got[rivals[i].system] = append(got[rivals[i].system], middle(es))
			}
		}
		t.pushRows(clients, share.concerned, got)
	}
	return nil
}

func (t *table) pushRows(clients, concerned int, got map[string]efforts) {
	for _, m := range []struct {
		name, format string
		of           func(effort) float64
	}{
		{"last, ms", "%.2f", func(e effort) float64 { return ms(e.last) }},
		{"CPU, ms", "%.2f", func(e effort) float64 { return ms(e.cpu) }},
		{"CPU a concerned client, µs", "%.1f", func(e effort) float64 { return 1e3 * ms(e.cpu) / float64(concerned) }},
	} {
		row := []string{fmt.Sprint(clients), fmt.Sprint(concerned), m.name}
		own := got[flatmeshSystem].series(m.of)
		for _, r := range rivals[1:] {
			row = append(row, got[r.system].series(m.of).over(own.every(r.every)).spread("%.1f"))
		}
		for _, r := range rivals {
			name := fmt.Sprintf("%s, %d clients, %d concerned: %s", r.system, clients, concerned, m.name)
			row = append(row, t.sample(name, got[r.system].series(m.of)).spread(m.format))
		}
		t.row(row...)
	}
}

// efforts are those of the rounds.
type efforts []effort

func (es efforts) series(of func(effort) float64) series {
	var out series
	for _, e := range es {
		out = append(out, of(e))
	}
	return out
}

// middle returns the medians of what efforts have.
func middle(es []effort) effort {
	of := func(get func(effort) time.Duration) time.Duration {
		var all []time.Duration
		for _, e := range es {
			all = append(all, get(e))
		}
		slices.Sort(all)
		return all[(len(all)-1)/2]
	}
	return effort{
		p50: of(func(e effort) time.Duration { return e.p50 }), last: of(func(e effort) time.Duration { return e.last }),
		cpu: of(func(e effort) time.Duration { return e.cpu }), took: of(func(e effort) time.Duration { return e.took }),
	}
}
