package agent

import (
	"sync"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
)

// reports holds the tunnel states that the control plane should know, between
// the prober, which writes, and the report stream, which reads. Changes that
// come faster than the stream takes them coalesce.
type reports struct {
	mu      sync.Mutex
	now     map[mesh.NodeID]mesh.TunnelStatus
	dirty   map[mesh.NodeID]struct{}
	changed chan struct{} // one slot
}

var _ peering.Reports = (*reports)(nil)

func newReports() *reports {
	return &reports{
		now: map[mesh.NodeID]mesh.TunnelStatus{}, dirty: map[mesh.NodeID]struct{}{},
		changed: make(chan struct{}, 1),
	}
}

// update takes in single transitions.
func (r *reports) update(states map[mesh.NodeID]mesh.TunnelStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range states {
		if old, ok := r.now[id]; !ok || old != s {
			r.now[id] = s
			r.dirty[id] = struct{}{}
		}
	}
	if len(r.dirty) > 0 {
		mark(r.changed)
	}
}

// replace makes what read returns the whole state. It calls read itself, so
// that no transition slips in between and is undone by an older reading.
func (r *reports) replace(read func() map[mesh.NodeID]mesh.TunnelStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	states := read()
	for id, s := range states {
		if old, ok := r.now[id]; !ok || old != s {
			r.dirty[id] = struct{}{}
		}
	}
	for id := range r.now {
		if _, ok := states[id]; !ok {
			r.dirty[id] = struct{}{}
		}
	}
	r.now = states
	if len(r.dirty) > 0 {
		mark(r.changed)
	}
}

// All implements peering.Reports.
func (r *reports) All() map[mesh.NodeID]*mesh.TunnelStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.dirty)
	out := make(map[mesh.NodeID]*mesh.TunnelStatus, len(r.now))
	for id, s := range r.now {
		out[id] = &s
	}
	return out
}

// Changed implements peering.Reports.
func (r *reports) Changed() <-chan struct{} { return r.changed }

// Changes implements peering.Reports.
func (r *reports) Changes() map[mesh.NodeID]*mesh.TunnelStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[mesh.NodeID]*mesh.TunnelStatus, len(r.dirty))
	for id := range r.dirty {
		if s, ok := r.now[id]; ok {
			out[id] = &s
		} else {
			out[id] = nil
		}
	}
	clear(r.dirty)
	return out
}

// mark fills a one-slot channel.
func mark(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
