package main

import (
	"context"
	"fmt"
)

// xdsMemory measures what subscriptions take.
func (b *bench) xdsMemory(ctx context.Context) (*table, error) {
	clients, services := 2000, 1010
	if b.quick {
		clients = 300
	}
	t := newTable("Memory of subscriptions", "clients", "subscriptions of each", "live heap, MiB", "resident, MiB", "resident at most, MiB", "heap a subscription, bytes", "all ready after, s", "CPU until then, s")
	var idle serverUsage
	for _, n := range []int{1, 100, 1000} {
		progress("xds-memory: %d clients with %d subscriptions", clients, n)
		u, e, err := b.memoryOf(ctx, world{Services: services, Endpoints: 10, Clients: clients}, crowd{Clients: clients, Subscriptions: n})
		if err != nil {
			return nil, err
		}
		each := "-"
		if n == 1 {
			idle = u
		} else {
			each = fmt.Sprintf("%.0f", float64(u.Heap-idle.Heap)/float64(clients*(n-1)))
		}
		t.row(fmt.Sprint(clients), fmt.Sprint(n), mib(u.Heap), mib(u.RSS), mib(u.Peak), each,
			fmt.Sprintf("%.1f", e.last.Seconds()), fmt.Sprintf("%.1f", e.cpu.Seconds()))
	}
	t.note("Each row is a server of its own with %d services of 10 endpoints in a mesh of %d nodes, a connection for each client. A subscription's heap: what it has more than the first row, over all subscriptions more.", services, clients+farNodes)
	t.note("Resident is what the process has when all are ready, before garbage is collected; at most is up to then: %d clients connect at a time, each of which is sent all that it subscribed to at once. The live heap is that after collecting.", connecting)
	return t, nil
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f", float64(bytes)/(1<<20)) }

// memoryOf returns what a server has used when all clients are ready.
func (b *bench) memoryOf(ctx context.Context, w world, c crowd) (serverUsage, effort, error) {
	p, err := startPair(ctx, flatmeshSystem, w, c)
	if err != nil {
		return serverUsage{}, effort{}, err
	}
	defer p.end()
	u, err := p.usage(false)
	if err != nil {
		return u, effort{}, err
	}
	live, err := p.usage(true)
	u.Heap = live.Heap
	return u, p.joined, err
}
