package agent

import (
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var (
	up   = mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}
	down = mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonProbeLost}
)

func TestReports(t *testing.T) {
	r := newReports()
	a, b := nodeID(t, "west/a"), nodeID(t, "west/b")
	r.update(map[mesh.NodeID]mesh.TunnelStatus{a: up, b: up})
	<-r.Changed()
	if got := r.Changes(); len(got) != 2 || *got[a] != up {
		t.Fatalf("first changes: %v", got)
	}
	r.update(map[mesh.NodeID]mesh.TunnelStatus{a: up})
	select {
	case <-r.Changed():
		t.Error("told of a change that is none")
	default:
	}
	r.update(map[mesh.NodeID]mesh.TunnelStatus{a: down})
	r.replace(func() map[mesh.NodeID]mesh.TunnelStatus { return map[mesh.NodeID]mesh.TunnelStatus{a: down} })
	<-r.Changed()
	got := r.Changes()
	if gone, told := got[b]; len(got) != 2 || *got[a] != down || !told || gone != nil {
		t.Errorf("changes %v, want a down and b gone", got)
	}
	if all := r.All(); len(all) != 1 || len(r.Changes()) != 0 {
		t.Errorf("all %v", all)
	}
}

// Whatever is read when: who follows the changes ends with the same states.
func TestReportsConverge(t *testing.T) {
	r := newReports()
	nodes := []mesh.NodeID{nodeID(t, "west/a"), nodeID(t, "west/b"), nodeID(t, "west/c")}
	truth := map[mesh.NodeID]mesh.TunnelStatus{}
	var truthMu sync.Mutex
	done := make(chan struct{})
	go func() {
		defer close(done)
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 5000 {
			n := nodes[rnd.IntN(len(nodes))]
			s := []mesh.TunnelStatus{up, down}[rnd.IntN(2)]
			truthMu.Lock()
			truth[n] = s
			truthMu.Unlock()
			r.update(map[mesh.NodeID]mesh.TunnelStatus{n: s})
			if rnd.IntN(10) == 0 {
				r.replace(func() map[mesh.NodeID]mesh.TunnelStatus {
					truthMu.Lock()
					defer truthMu.Unlock()
					return maps.Clone(truth)
				})
			}
		}
	}()
	seen := map[mesh.NodeID]mesh.TunnelStatus{}
	take := func() {
		for n, s := range r.Changes() {
			if s == nil {
				delete(seen, n)
			} else {
				seen[n] = *s
			}
		}
	}
	for running := true; running; {
		select {
		case <-r.Changed():
			take()
		case <-done:
			running = false
		}
	}
	take()
	if !maps.Equal(seen, truth) {
		t.Errorf("the reader ends with %v, the truth is %v", seen, truth)
	}
}
