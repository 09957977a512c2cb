package xds

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	types "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

// To name nothing meant everything once: it does for Envoy's listeners and
// clusters, and never for gRPC.
func TestLegacyWildcard(t *testing.T) {
	for _, c := range []struct {
		agent, typeURL string
		everything     bool
	}{
		{"envoy", types.ListenerType, true},
		{"envoy", types.ClusterType, true},
		{"", types.ClusterType, true},
		{"envoy", types.EndpointType, false},
		{"envoy", types.RouteType, false},
		{"gRPC Go", types.ListenerType, false},
		{"grpc-c++", types.ClusterType, false},
	} {
		s, sh := newService(), newShelf()
		sh.put(c.typeURL, "a=1", "b=1")
		s.start(t, sh)
		node := &core.Node{Id: "x", UserAgentName: c.agent}
		t.Run("delta "+c.agent+" "+c.typeURL, func(t *testing.T) {
			d := s.open(t, "everything")
			next := func(want string) {
				t.Helper()
				if got := showResponse(d.recv()); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
				d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: c.typeURL})
			}
			d.send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: c.typeURL})
			if c.everything {
				next("+a=1 +b=1")
				// It can be let go, and an ACK does not bring it back.
				d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: c.typeURL, ResourceNamesUnsubscribe: []string{"*"}})
				d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: c.typeURL})
			}
			d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: c.typeURL, ResourceNamesSubscribe: []string{"b"}})
			next("+b=1")
			s.change(sh, c.typeURL, "a=1")
			s.change(sh, c.typeURL, "b=2")
			next("+b=2")
			s.change(sh, c.typeURL, "b=1")
			next("+b=1")
		})
		t.Run("SotW "+c.agent+" "+c.typeURL, func(t *testing.T) {
			d := s.openSotW(t, "v")
			ask := func(names ...string) {
				t.Helper()
				req := &discovery.DiscoveryRequest{Node: node, TypeUrl: c.typeURL, ResourceNames: names, ResponseNonce: d.nonces[c.typeURL]}
				if err := d.str.Send(req); err != nil {
					t.Fatal(err)
				}
			}
			next := func(want string) {
				t.Helper()
				if got := showSotW(d.recv()); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
			}
			ask()
			if c.everything {
				next("a=1 b=1")
				ask() // an ACK
				s.change(sh, c.typeURL, "c=1")
				next("a=1 b=1 c=1")
			}
			ask("b")
			s.change(sh, c.typeURL, "b=3")
			for {
				got := showSotW(d.recv()) // both may come in one
				if got == "b=3" {
					break
				}
				if got != "b=1" {
					t.Fatalf("got %q", got)
				}
				ask("b")
			}
			ask() // nothing, now that something was named
			d.quiet(sh)
			s.change(sh, c.typeURL, "a=2", "b=4")
			d.quiet(sh)
		})
	}
}

// In delta, a source may know each name by itself.
func TestDeltaWithNamesNotKnown(t *testing.T) {
	s, sh := serveShelf(t)
	sh.put(mark, "mark1", "mark2", "mark3", "mark4", "mark5", "mark6", "mark7", "mark8", "mark9")
	s.change(sh, thing, "a=1", "gone")
	c := s.open(t, "v")
	next := func(want string) {
		t.Helper()
		if got := showResponse(c.recv()); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		c.subscribe(thing)
	}
	c.subscribe(thing, "a", "b", "gone")
	next("+a=1 -gone")
	c.quiet()
	s.server.Changed(thing) // everything may have changed, and has not
	s.server.Changed(thing, "a", "b", "gone")
	c.quiet()
	s.change(sh, thing, "b=1")
	next("+b=1")
	s.change(sh, thing, "a?") // it keeps what it has
	c.quiet()
	s.change(sh, thing, "a")
	next("-a")
	s.server.Changed(thing)
	c.quiet()
	s.change(sh, thing, "a=1")
	next("+a=1")

	// The wildcard waits for the list.
	sh.list(false)
	c.subscribe(thing, "*")
	s.change(sh, thing, "c=1")
	c.quiet()
	s.change(sh, thing, "b=2") // named as well
	next("+b=2")
	sh.list(true)
	s.server.ChangedIn(thing, "v")
	next("+c=1")

	// One that resumes with all that there is hears so, once all of it is known.
	r := s.open(t, "v")
	r.send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: []string{"a", "x", "y"}, InitialResourceVersions: map[string]string{"a": "1", "x": "1", "y": "1"}})
	r.quiet()
	s.change(sh, thing, "x=1")
	r.quiet()
	s.change(sh, thing, "y=1")
	if got := showResponse(r.recv()); got != "" {
		t.Errorf("got %q", got)
	}
}

// On a stream whose client has acknowledged everything, announcements of
// different types keep their order.
func TestOrderOverTypes(t *testing.T) {
	order := []string{types.ClusterType, thing, types.ListenerType, mark}
	type client struct {
		recv     func() string
		ask, ack func(typeURL string)
	}
	for name, open := range map[string]func(s *service) client{
		"delta": func(s *service) client {
			c := s.open(t, "v")
			return client{
				func() string { return c.recv().GetTypeUrl() },
				func(typeURL string) { c.subscribe(typeURL, "a") },
				func(typeURL string) { c.subscribe(typeURL) },
			}
		},
		"SotW": func(s *service) client {
			c := s.openSotW(t, "v")
			ask := func(typeURL string) { c.ask(typeURL, "a") }
			return client{func() string { return c.recv().GetTypeUrl() }, ask, ask}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, sh := serveShelf(t)
			for _, typeURL := range order {
				sh.put(typeURL, "a=0")
			}
			c := open(s)
			for _, typeURL := range order {
				c.ask(typeURL)
				c.recv()
			}
			for i := 1; i < 50; i++ {
				for _, typeURL := range order {
					c.ack(typeURL)
				}
				for _, typeURL := range order {
					eventually(t, "it is idle", func() bool { return s.idle(typeURL) })
				}
				for _, typeURL := range order {
					s.change(sh, typeURL, fmt.Sprint("a=", i))
				}
				for _, typeURL := range order {
					if got := c.recv(); got != typeURL {
						t.Fatalf("round %d: got %s, want %s", i, got, typeURL)
					}
				}
			}
		})
	}
}

// idle reports whether every watch of a type waits for news.
func (s *service) idle(typeURL string) bool {
	return !slices.ContainsFunc(s.server.index.watches(nil, topic{everyone, typeURL, ""}), func(w *watch) bool { return !w.open.Load() })
}

func TestSettled(t *testing.T) {
	s, sh := serveShelf(t)
	sh.put(mark, "mark1", "mark2", "mark3", "mark4")
	s.change(sh, thing, "a=1", "b=1", "c=1")

	settled := func(names ...string) <-chan error {
		done := make(chan error, 1)
		go func() { done <- s.server.Settled(t.Context(), thing, names...) }()
		return done
	}
	now := func(what string, names ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := s.server.Settled(ctx, thing, names...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	not := func(what string, names ...string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := s.server.Settled(ctx, thing, names...)
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "v1") {
			t.Errorf("%s: %v", what, err)
		}
	}
	now("nobody is there")

	one, two := s.open(t, "v1"), s.openSotW(t, "v2")
	one.subscribe(thing, "a", "b", "x")
	one.recv()
	two.ask(thing, "b")
	two.recv()
	two.ask(thing, "b")
	eventually(t, "the second has acknowledged", func() bool { return s.idleIn("v2") })

	not("the first has not acknowledged")
	not("the first has not acknowledged a", "a")
	now("c is nobody's", "c")
	now("x is not known", "x")
	one.subscribe(thing)
	now("all have")
	now("all have of a and b", "a", "b")

	s.change(sh, thing, "a=2")
	not("a is on its way", "a")
	now("b is not concerned", "b")
	s.change(sh, thing, "b=2") // the first one's waits for its ACK
	two.recv()
	two.ask(thing, "b")
	eventually(t, "the second has acknowledged", func() bool { return s.idleIn("v2") })
	not("b is not sent", "b")
	done := settled("b")
	one.recv()
	one.send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ErrorDetail: &rpcstatus.Status{Message: "no"}}) // a NACK counts
	now("a is refused", "a")
	if got := showResponse(one.recv()); got != "+b=2" {
		t.Errorf("got %s", got)
	}
	select {
	case err := <-done:
		t.Errorf("settled before the ACK: %v", err)
	default:
	}
	one.subscribe(thing)
	if err := <-done; err != nil {
		t.Error(err)
	}

	// A wildcard watch is everybody's.
	one.subscribe(thing, "*")
	one.recv()
	not("c is not acknowledged", "c")
	done = settled("c")
	// Who is gone is not waited for.
	one.cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	two.cancel()
	eventually(t, "all are gone", s.nobody)
}

// idleIn reports whether every watch of things in a view waits for news.
func (s *service) idleIn(view string) bool {
	return !slices.ContainsFunc(s.server.index.watches(nil, topic{byView, thing, view}), func(w *watch) bool { return !w.open.Load() })
}

// What a change costs depends on the watches that it concerns, and an ACK costs
// nothing: told by how often the source is asked.
func TestCost(t *testing.T) {
	s, sh := serveShelf(t)
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprint("n", i))
		sh.put(thing, fmt.Sprint("n", i, "=0"))
	}
	const clients, concerned = 40, 3
	sh.put(thing, "hot=0")
	var all []*rawStream
	for i := range clients {
		c := s.open(t, fmt.Sprint("v", i%8))
		mine := names
		if i < concerned {
			mine = append(slices.Clone(names), "hot")
		}
		if n := sh.asked(func() { c.subscribe(thing, mine...); c.recv() }); n != int64(len(mine)) {
			t.Errorf("a first request of %d names costs %d", len(mine), n)
		}
		all = append(all, c)
	}
	if n := sh.asked(func() {
		for _, c := range all {
			c.subscribe(thing)
		}
		eventually(t, "all have acknowledged", func() bool { return s.idle(thing) })
	}); n != 0 {
		t.Errorf("%d ACKs cost %d", clients, n)
	}
	if n := sh.asked(func() { s.change(sh, thing, "hot=1") }); n != concerned {
		t.Errorf("a change that concerns %d costs %d", concerned, n)
	}
	for _, c := range all[:concerned] {
		c.recv()
		c.subscribe(thing)
	}
	eventually(t, "all have acknowledged", func() bool { return s.idle(thing) })
	if n := sh.asked(func() {
		sh.put(thing, "hot=2")
		s.server.ChangedIn(thing, "v1", "hot", "unknown")
	}); n != 1 {
		t.Errorf("a change in a view with one concerned costs %d", n)
	}
	all[1].recv()
	all[1].subscribe(thing)
	eventually(t, "it has acknowledged", func() bool { return s.idle(thing) })
	if n := sh.asked(func() { s.server.ChangedIn(thing, "elsewhere"); s.change(sh, thing, "cold=1") }); n != 0 {
		t.Errorf("what concerns nobody costs %d", n)
	}
	if n := sh.asked(func() { all[5].subscribe(thing, "cold"); all[5].recv() }); n != 1 {
		t.Errorf("one more name costs %d", n)
	}
	all[5].subscribe(thing)
	if n := sh.asked(func() {
		all[5].send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesUnsubscribe: []string{"n1"}})
		all[5].quietOf(sh)
	}); n > 2 { // the mark's
		t.Errorf("one name less costs %d", n)
	}
}

// quietOf is quiet where a shelf is served.
func (r *rawStream) quietOf(sh *shelf) {
	r.t.Helper()
	sh.put(mark, fmt.Sprint("mark", r.marks+1))
	r.quiet()
}

// A client whose request takes long, however long, holds up neither a change
// that concerns it nor the others.
func TestBusyClientDelaysNobody(t *testing.T) {
	s, sh := serveShelf(t)
	hold := make(chan struct{})
	sh.hold = map[string]chan struct{}{"slow": hold}
	s.change(sh, thing, "a=1", "slow=1")
	busy, other := s.open(t, "v"), s.open(t, "v")
	other.subscribe(thing, "a")
	other.recv()
	other.subscribe(thing)
	busy.subscribe(thing, "a", "slow")
	eventually(t, "it is busy", func() bool { return s.watchers() == 2 && s.held("a") == 2 })
	for i := range 20 {
		s.change(sh, thing, fmt.Sprint("a=", i))
	}
	for got := ""; got != "+a=19"; other.subscribe(thing) {
		got = showResponse(other.recv())
	}
	close(hold)
	got := showResponse(busy.recv())
	busy.subscribe(thing)
	if got != "+a=19 +slow=1" { // a was looked up before it changed
		got = showResponse(busy.recv())
	}
	if !strings.HasPrefix(got, "+a=19") {
		t.Errorf("the busy one: got %s", got)
	}
}

// held counts the watches of a thing by name.
func (s *service) held(name string) int { return s.server.index.count(topic{byName, thing, name}) }

// The index finds exactly whom a change concerns, by whichever way it takes.
func TestIndex(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	x := newIndex()
	type sub struct {
		w    *watch
		name string
	}
	subs := map[sub]bool{}
	var watches []*watch
	for range 60 {
		w := &watch{index: x, id: x.ids.Add(1), typeURL: thing, view: fmt.Sprint("v", r.IntN(1+r.IntN(20)))}
		w.follow()
		watches = append(watches, w)
	}
	name := func() string { return fmt.Sprint("n", r.IntN(1+r.IntN(30))) }
	for range 5000 {
		k := sub{watches[r.IntN(len(watches))], name()}
		if r.IntN(3) > 0 {
			x.add(topic{byName, thing, k.name}, k.w)
			subs[k] = true
		} else {
			x.remove(topic{byName, thing, k.name}, k.w)
			delete(subs, k)
		}
		view, n := fmt.Sprint("v", r.IntN(20)), name()
		got := map[*watch]int{}
		for _, w := range x.among(nil, x.watches(nil, topic{byView, thing, view}), thing, view, n) {
			got[w]++
		}
		for _, w := range watches {
			want := 0
			if subs[sub{w, n}] && w.view == view {
				want = 1
			}
			if got[w] != want {
				t.Fatalf("%s in %s: a watch %d times, want %d", n, view, got[w], want)
			}
		}
	}
	for k := range subs {
		x.remove(topic{byName, thing, k.name}, k.w)
	}
	for _, w := range watches {
		w.detach()
	}
	if s := (&service{server: &Server{index: x}}); !s.nobody() {
		t.Error("topics are left")
	}
}

// The view comes from what the client says of itself in the first request, and
// is asked for once a type.
func TestViewOfTheNode(t *testing.T) {
	c := NewCache()
	c.Replace(SetKey{thing, "envoy-1"}, things("a=1"))
	var asked []string
	st := newStream(NewServer(c, nil, nil, nil), Client{View: func(node *core.Node, typeURL string) (string, bool) {
		asked = append(asked, node.GetId()+" "+typeURL)
		return node.GetId(), true
	}})
	for _, node := range []*core.Node{{Id: "envoy-1"}, nil, {Id: "another"}} {
		if err := st.onDeltaRequest(0, &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: thing}); err != nil {
			t.Fatal(err)
		}
		if w, first, err := st.watch(thing, noSubscription{}); err != nil || first != (node != nil && node.GetId() == "envoy-1") || w.view != "envoy-1" {
			t.Errorf("%v: %v, %v, %v", node, w, first, err)
		}
	}
	if want := []string{"envoy-1 " + thing}; !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
	st.detach()

	// One that says nothing is somebody, too.
	st = newStream(NewServer(c, nil, nil, nil), Client{View: func(node *core.Node, _ string) (string, bool) { return node.Id, true }})
	if err := st.onRequest(0, &discovery.DiscoveryRequest{TypeUrl: thing}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := st.watch(thing, noSubscription{}); err != nil {
		t.Error(err)
	}
	big := &core.Node{Id: strings.Repeat("x", maxNode)}
	if err := newStream(NewServer(c, nil, nil, nil), Client{}).onRequest(0, &discovery.DiscoveryRequest{TypeUrl: thing, Node: big}); err == nil {
		t.Error("a huge node is taken")
	}
}

type noSubscription struct{}

func (noSubscription) ReturnedResources() map[string]string     { return nil }
func (noSubscription) SubscribedResources() map[string]struct{} { return nil }
func (noSubscription) IsWildcard() bool                         { return false }
