package probe

import (
	"context"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	linkEvery = 100 * time.Millisecond
	// countersEvery keeps the counters to compare with fresh while nothing is
	// sent, since handshakes add up in them.
	countersEvery = 10 * time.Second
	// countersShare bounds the part of the time that reading counters takes.
	countersShare = 20
)

// watchTraffic finds the tunnels that have traffic until ctx ends.
func (p *Prober) watchTraffic(ctx context.Context) {
	if p.o.Traffic == nil {
		return
	}
	tick := time.NewTicker(linkEvery)
	defer tick.Stop()
	var m meter
	var rested time.Time // no reading before
	busy := false        // the device was busy since the last reading
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		busy = p.linkBusy(&m) || busy
		now := time.Now()
		p.mu.Lock()
		wanted := busy || p.joined || now.Sub(m.read) >= countersEvery
		p.mu.Unlock()
		if !wanted || now.Before(rested) {
			continue
		}
		busy = !p.readCounters(ctx, &m, busy) && busy
		rested = time.Now().Add(min(countersShare*time.Since(now), countersEvery))
	}
}

func (p *Prober) linkBusy(m *meter) bool {
	if p.o.LinkTx == nil {
		return true
	}
	tx, err := p.o.LinkTx()
	if err != nil {
		p.o.Log.Debug("cannot read the packets of the tunnel device", "err", err)
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return m.linkBusy(tx, p.packets)
}

// readCounters reads WireGuard's counters; busy says whether there can be any
// traffic but our own. It reports whether it could read them.
func (p *Prober) readCounters(ctx context.Context, m *meter, busy bool) bool {
	p.mu.Lock()
	p.joined = false
	p.mu.Unlock()
	counters, err := p.o.Traffic(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.o.Log.Debug("cannot read WireGuard's counters", "err", err)
		}
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	active := m.busy(now, counters, func(id mesh.NodeID) uint64 { return p.sealed[id] })
	if busy {
		for _, id := range active {
			p.tracker.busy(id, now)
		}
	}
	for id, c := range counters {
		if c.Shaken {
			p.tracker.shaken(id, now)
		}
	}
	p.told()
	return true
}
