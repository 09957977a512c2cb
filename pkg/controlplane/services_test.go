package controlplane

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

// toldOf is a view.Listener that notes which views it is told of as a whole.
type toldOf struct {
	mu    sync.Mutex
	views map[string]bool // of EDS
}

func (o *toldOf) Changed(string, ...string) {}

func (o *toldOf) ChangedIn(typeURL, view string, names ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if typeURL == resource.EndpointType && len(names) == 0 {
		o.views[view] = true
	}
}

func (o *toldOf) Settled(context.Context, string, ...string) error { return nil }

func (o *toldOf) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := slices.Sorted(maps.Keys(o.views))
	clear(o.views)
	return out
}

// waitingPlane is a control plane that serves demo/a, in a bubble where time passes by
// itself.
type waitingPlane struct {
	*plane
	told *toldOf
}

func newWaiting(t *testing.T) *waitingPlane {
	p := twoClusters(t)
	p.say("A", true, "service a, slice a=3")
	p.mustJoin("east/n1", "west/n1")
	p.now = time.Now
	o := &toldOf{views: map[string]bool{}}
	p.catalog.Attach(o)
	t.Cleanup(p.background())
	return &waitingPlane{p, o}
}

// stream begins an xDS stream of a node.
func (p *waitingPlane) stream(node string) {
	p.t.Helper()
	if err := p.do(p.t.Context(), func(l *loop) error { l.awaitReport(id(node)); return nil }); err != nil {
		p.t.Fatal(err)
	}
}

// session begins a report stream, with a report where one is given.
func (p *waitingPlane) session(node string, reports bool) peering.Session {
	p.t.Helper()
	svc := &service{loop: p.loop, expiry: func(context.Context) (time.Time, error) { return time.Now().Add(time.Hour), nil }}
	s, _, err := svc.Attach(p.t.Context(), id(node))
	if err == nil && reports {
		err = s.Report(p.t.Context(), true, map[mesh.NodeID]*mesh.TunnelStatus{})
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *waitingPlane) expect(what string, want xds.Answer, told ...string) {
	p.t.Helper()
	synctest.Wait()
	if got := p.answers("east/n1", "a"); got != want {
		p.t.Errorf("%s: %v, want %v", what, got, want)
	}
	if got := p.told.take(); !slices.Equal(got, told) {
		p.t.Errorf("%s: told %v, want %v", what, got, told)
	}
}

const aLittle = time.Millisecond

// A node's clients wait for its report, and are answered without one in the end.
func TestReportWait(t *testing.T) {
	both := []string{view.Of(build.Envoy, id("east/n1")), view.Of(build.GRPC, id("east/n1"))}
	inBubble := func(name string, f func(t *testing.T, p *waitingPlane)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, newWaiting(t)) })
		})
	}
	inBubble("no report", func(_ *testing.T, p *waitingPlane) {
		p.stream("east/n1")
		wait(reportWait - aLittle)
		p.expect("before the end of the wait", xds.Pending)
		p.stream("east/n1") // does not make it longer
		wait(2 * aLittle)
		p.expect("after it", xds.Found, both...)
		p.session("east/n1", true)
		p.expect("a report after all", xds.Found, both...)
	})
	inBubble("a session that says nothing", func(_ *testing.T, p *waitingPlane) {
		p.session("east/n1", false)
		p.stream("east/n1")
		p.expect("attached", xds.Pending)
		wait(reportWait + aLittle)
		p.expect("after the wait", xds.Found, both...)
	})
	inBubble("a report", func(_ *testing.T, p *waitingPlane) {
		p.stream("east/n1")
		wait(aLittle)
		p.session("east/n1", true)
		p.expect("reported", xds.Found, both...)
		wait(2 * reportWait)
		p.expect("later", xds.Found)
	})
	inBubble("a stream that ends keeps what its clients have", func(_ *testing.T, p *waitingPlane) {
		p.stream("east/n1")
		s := p.session("east/n1", true)
		p.expect("reported", xds.Found, both...)
		wait(reportWait - aLittle)
		s.Close()
		p.expect("ended", xds.Pending)
		wait(2 * reportWait)
		p.expect("no wait was left over", xds.Pending)
		// The agent comes back: it has the whole wait again.
		p.stream("east/n1")
		wait(reportWait - aLittle)
		p.expect("back", xds.Pending)
		p.session("east/n1", true)
		p.expect("reported again", xds.Found, both...)
	})
	inBubble("another stream of a node that has reported", func(_ *testing.T, p *waitingPlane) {
		s := p.session("east/n1", true)
		p.expect("reported", xds.Found, both...)
		p.stream("east/n1")
		wait(aLittle)
		s.Close()
		wait(2 * reportWait)
		p.expect("its report stream ends", xds.Pending)
	})
	inBubble("a wait from before a report is not one from after it", func(_ *testing.T, p *waitingPlane) {
		p.stream("east/n1")
		wait(3 * reportWait / 4)
		p.session("east/n1", true).Close()
		p.told.take()
		p.stream("east/n1")
		wait(reportWait / 2)
		p.expect("the first wait would be over", xds.Pending)
		wait(reportWait/2 + aLittle)
		p.expect("the second is", xds.Found, both...)
	})
	inBubble("a node that goes meanwhile", func(t *testing.T, p *waitingPlane) {
		p.stream("east/n1")
		p.put("A", declare("east", "10.1.0.0/16"), "n2", "n3")
		updates := p.folders["A"].next("A")
		if err := p.do(t.Context(), func(l *loop) error { l.takeUpdates(updates, false); return nil }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.told.take()
		wait(2 * reportWait)
		p.expect("after the wait", xds.Pending)
		if len(p.awaited) > 0 {
			t.Errorf("still waited for: %v", p.awaited)
		}
	})
}

// Nothing is answered before every source was read, and then all who are there
// are told.
func TestNothingIsServedBeforeTheSources(t *testing.T) {
	p := newPlane(t)
	o := &toldOf{views: map[string]bool{}}
	p.catalog.Attach(o)
	decl := declare("east", "10.1.0.0/16")
	p.put("A", decl, "n1")
	u := p.folders["A"].next("A")[0]
	u.Changes = append(u.Changes, changes("service a, slice a=3")...)
	// One source is known, others are not: as after a restart with a store.
	if err := p.turn1(func(l *loop) error { l.takeUpdate(u); return nil }); err != nil {
		t.Fatal(err)
	}
	p.catalog.SetReport(id("east/n1"), map[mesh.NodeID]mesh.TunnelStatus{})
	o.take()
	for _, service := range []string{"a", "nobody"} {
		if got := p.answers("east/n1", service); got != xds.Pending {
			t.Errorf("before all are read %s is %v", service, got)
		}
	}
	if _, _, err := p.grant(t.Context(), id("east/n1"), p.clock.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := p.turn1(func(l *loop) error { l.takeUpdates(nil, true); return nil }); err != nil {
		t.Fatal(err)
	}
	if a, b := p.answers("east/n1", "a"), p.answers("east/n1", "nobody"); a != xds.Found || b != xds.Missing {
		t.Errorf("afterwards %v and %v", a, b)
	}
	want := []string{view.Of(build.Envoy, id("east/n1")), view.Of(build.Gateway, mesh.NodeID{Cluster: "east"}), view.Of(build.GRPC, id("east/n1"))}
	if got := o.take(); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("told %v, want %v", got, want)
	}
	if err := p.turn1(func(*loop) error { return nil }); err != nil || len(o.take()) > 0 {
		t.Errorf("told twice, or %v", err)
	}
}

// A change of one service is joined of all clusters, and handed on alone.
func TestServicesAreJoined(t *testing.T) {
	p := twoClusters(t)
	p.say("A", false, "service a, slice a=3, service b")
	p.say("B", false, "service a, slice a=1")
	joined := func(name string) (clusters []string) {
		if s := p.service(mesh.ServiceName{Namespace: "demo", Name: name}); s != nil {
			for _, part := range s.Parts {
				clusters = append(clusters, part.Cluster)
			}
		}
		return clusters
	}
	if a, b := joined("a"), joined("b"); !slices.Equal(a, []string{"east", "west"}) || !slices.Equal(b, []string{"east"}) {
		t.Errorf("a is in %v, b in %v", a, b)
	}
	var stale []mesh.ServiceName
	u := source.Update{Source: "B", Cluster: p.folders["B"].decl, Changes: changes("slice a=2")}
	if err := p.turn1(func(l *loop) error {
		l.takeUpdates([]source.Update{u}, false)
		stale = slices.Collect(maps.Keys(l.stale))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(stale, []mesh.ServiceName{{Namespace: "demo", Name: "a"}}) || len(p.stale) > 0 {
		t.Errorf("handed on %v, left %v", stale, p.stale)
	}
}
