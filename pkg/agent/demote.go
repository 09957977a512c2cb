package agent

import (
	"context"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// leaveWait bounds how long a peer stays for clients to move to the gateway.
const leaveWait = 2 * time.Second

// demote tells the relay which nodes are not to be reached directly: those whose
// tunnel this node's own probes call down, before the control plane has heard of
// it, and those that are no peers any longer.
func (l *loop) demote() {
	down := map[mesh.NodeID]bool{}
	l.mu.Lock()
	for id := range l.left {
		down[id] = true
	}
	l.mu.Unlock()
	for _, r := range l.prober.Snapshot() {
		if r.Status.State == mesh.Down {
			down[r.Node] = true
		}
	}
	l.relay.SetDown(down)
}

// leave has clients go through gateways before the peers that they use go.
func (l *loop) leave(ctx context.Context, next plan) {
	planned := make(map[mesh.NodeID]bool, len(next.targets))
	for _, t := range next.targets {
		planned[t.Node] = true
	}
	going := false
	l.mu.Lock()
	for _, t := range l.applied.plan.targets {
		if !planned[t.Node] && !l.left[t.Node] {
			l.left[t.Node], going = true, true
		}
	}
	back := false
	for id := range l.left {
		if planned[id] {
			delete(l.left, id)
			back = true
		}
	}
	l.mu.Unlock()
	if going || back {
		l.demote()
	}
	if going {
		ctx, cancel := context.WithTimeout(ctx, leaveWait)
		defer cancel()
		if err := l.relay.Settled(ctx); err != nil {
			l.log.Info("clients are still to acknowledge that peers go", "err", err)
		}
	}
}
