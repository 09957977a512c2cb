package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// failoverRounds is how many times as much happens in a full run.
const failoverRounds = 10

// failover counts the calls of real gRPC clients while all kinds of trouble come
// and go.
func (b *bench) failover(ctx context.Context) (*table, error) {
	u, end, err := b.underLoad(ctx, "fail")
	if err != nil {
		return nil, err
	}
	defer end()
	t := newTroubled(u)
	rounds := failoverRounds
	if b.quick {
		rounds = 1
	}
	var deck []string
	counts, kinds := map[string]*toll{}, troubles()
	for _, k := range kinds {
		counts[k.name] = &toll{}
		for range k.times * rounds {
			deck = append(deck, k.name)
		}
	}
	t.rand.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
	for n, name := range deck {
		k := kinds[slices.IndexFunc(kinds, func(k trouble) bool { return k.name == name })]
		c := counts[name]
		before := *c
		i, err := k.cause(t, ctx)
		var from time.Time
		if err == nil {
			from, err = u.whole(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("event %d, %s, %s: %w", n+1, name, i.what, err)
		}
		for _, cl := range u.callers {
			c.add(name, i, cl.host, cl.take(from))
		}
		progress("failover: %d of %d, %s, %s: %d calls, %d failed, %d of them unexplained, %d slow; whole after %.1f s", n+1, len(deck), name, i.what,
			c.calls-before.calls, c.failed-before.failed, c.unexplained()-before.unexplained(), c.slow-before.slow, from.Sub(i.began).Seconds())
		c.happened(i)
	}
	return failoverTable(u, kinds, counts), nil
}

// failoverTable has a row for each kind of trouble, and one for all.
func failoverTable(u *underLoad, kinds []trouble, counts map[string]*toll) *table {
	t := newTable("Calls through faults", "what happened", "times", "calls", "failed", "of these lost with what went", "unexplained", "good after more than 1 s", "of these not on what went", "first good call by the gateway, s: p50, p99, max")
	all := &toll{}
	for _, k := range kinds {
		c := counts[k.name]
		c.row(t, k.name)
		all.join(*c)
	}
	all.row(t, "all")
	t.note("Clients in %s, of a service with a pod on each of %d nodes in 3 clusters with 2 gateways each; one call every %v each, mTLS, a limit of %v a call, no retries.", strings.Join(callingPods, ", "), len(u.named(lab.KindNode)), callEvery, callLimit)
	t.note("Each event begins when all is as it should be after the last: tunnels, streams, and calls that reach every pod on its way. The order is drawn, what is hit, and for how long (1 to 6 s).")
	t.note("Lost with what went: to the pod behind the silent tunnel, begun before the client's node judged it Down; to the gateway that was killed, begun before it was. Both and %v, for the client to hear of it.", noticed)
	for _, q := range []struct {
		name string
		s    series
	}{
		{"From a silent cut until the client's node judged the tunnel Down", all.down},
		{"From a silent cut until the first good call that began after the cut had gone through the gateway of the far cluster", all.good},
		{"From a silent cut until one had reached the same pod that way (the gateway draws; else not before the tunnel healed)", all.same},
		{"From a silent cut until the last call began that went into the silent tunnel", all.last},
		{"From a silent cut until calls in the silent tunnel failed", all.ended},
		{"From an agent's start until the clients on its node had their stream again, which gRPC tries at longer and longer intervals", all.served},
	} {
		t.sample(q.name, q.s)
		t.note("%s: p50 %s, p90 %s, p99 %s, max %s s (%d).", q.name, s3(q.s.quantile(.5)), s3(q.s.quantile(.9)), s3(q.s.quantile(.99)), s3(q.s.quantile(1)), len(q.s))
	}
	for node, n := range u.nacks {
		if n > 0 {
			t.note("%s: %d resources refused by clients.", node, n)
		}
	}
	for _, s := range all.strange {
		t.note("Unexplained: %s", s)
	}
	return t
}
