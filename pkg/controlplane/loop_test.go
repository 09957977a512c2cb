package controlplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// Callers give up at any moment: what they were given is given back, and nothing
// that they look at is still written to.
func TestCallersThatGiveUp(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1", "west/n1")
	stop := p.background()
	svc := &service{loop: p.loop, expiry: far, caller: func(context.Context) (mesh.NodeID, error) { return id("east/n1"), nil }}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					for range rand.N(20) {
						runtime.Gosched()
					}
					cancel()
				}()
				switch rand.N(3) {
				case 0:
					if s, _, err := svc.Attach(ctx, id("west/n1")); err == nil {
						_ = s.Report(ctx, true, map[mesh.NodeID]*mesh.TunnelStatus{id("east/n1"): {State: mesh.Up}})
						s.Close()
					}
				case 1:
					if _, _, release, err := svc.Identify(ctx); err == nil {
						release()
					}
				case 2:
					node := fmt.Sprint("east/n", 1+rand.N(3))
					addrs, _, err := svc.Register(ctx, peering.Registration{Node: id(node), Key: keyOf(node), ListenPort: uint16(1 + rand.N(9))})
					if err == nil && len(addrs) != 2 {
						t.Errorf("got %v", addrs)
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	stop()
	if len(p.leases) != 0 || len(p.reports) != 0 {
		t.Errorf("left: %v %v", p.leases, p.reports)
	}
}

func TestDoAfterTheEnd(t *testing.T) {
	p := twoClusters(t)
	stop := p.background()
	stop()
	if err := p.do(context.Background(), func(*loop) error { t.Error("it runs"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no more"))
	if err := p.do(ctx, func(*loop) error { return nil }); err == nil {
		t.Error("no error")
	}
}

// A burst of registrations costs few commits and few views, and all of them are
// in the last one.
func TestBurstIsGathered(t *testing.T) {
	p := newPlane(t)
	var nodes []string
	for i := range 200 {
		nodes = append(nodes, fmt.Sprintf("n%d=10.1.%d.0/24", i, i))
	}
	p.put("A", declare("east", "10.1.0.0/16"), nodes...)
	p.put("B", declare("west", "10.2.0.0/16"), "n1")
	p.tell()
	commits := &counting{storage: p.store}
	p.store = commits
	stop := p.background()
	svc := &service{loop: p.loop}
	// The loop is busy while they come.
	busy, done := make(chan struct{}), make(chan struct{})
	go func() {
		_ = p.do(t.Context(), func(*loop) error { close(busy); <-done; return nil })
	}()
	<-busy
	var wg sync.WaitGroup
	var started atomic.Int32
	for i := range 200 {
		wg.Go(func() {
			node := mesh.NodeID{Cluster: "east", Name: fmt.Sprint("n", i)}
			started.Add(1)
			if _, _, err := svc.Register(t.Context(), peering.Registration{Node: node, Key: keyOf(node.String()), ListenPort: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	for started.Load() < 200 {
		runtime.Gosched()
	}
	close(done)
	wg.Wait()
	stop()
	if commits.n > 100 {
		t.Errorf("%d commits for 200 registrations that came at once", commits.n)
	}
	p.turn(nil, true)
	if got := len(p.cache.Resources(peerSet("west"))); got != 200 {
		t.Errorf("west has %d peers", got)
	}
}

type counting struct {
	storage
	n int
}

func (c *counting) Update(fn func(*store.Tx) error) error {
	c.n++
	return c.storage.Update(fn)
}

// After the store was lost nothing is published until agents had time to come
// back, and then everything at once.
func TestSettle(t *testing.T) {
	p := newPlane(t)
	if !p.fresh {
		t.Error("an empty store is not fresh")
	}
	p.settle()
	p.put("A", declare("east", "10.1.0.0/16"), "n1")
	p.put("B", declare("west", "10.2.0.0/16"), "n1")
	p.tell()
	p.mustJoin("east/n1")
	p.after(settleTime - time.Second)
	p.mustJoin("west/n1")
	if got := content(p.cache); len(got) != 0 {
		t.Errorf("published: %v", got)
	}
	p.after(time.Second)
	if got := p.peersOf("east") + " " + p.peersOf("west"); got != "west/n1 east/n1" {
		t.Errorf("peers: %s", got)
	}
	p.restart()
	if p.fresh {
		t.Error("the store is fresh again")
	}
}
