package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// holder is the caller of a DeltaClient: it holds what it is given of things.
type holder struct {
	client *DeltaClient

	mu      sync.Mutex
	names   map[string]bool
	state   map[string]string
	refuse  string // a resource of this version is refused
	seen    []string
	changed chan struct{}
}

func newHolder() *holder {
	h := &holder{names: map[string]bool{}, state: map[string]string{}, changed: make(chan struct{}, 1)}
	h.client = NewDeltaClient(h.apply)
	return h
}

func (h *holder) apply(u Update) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, showResponse(&discovery.DeltaDiscoveryResponse{Resources: u.Resources, RemovedResources: u.Removed}))
	select {
	case h.changed <- struct{}{}:
	default:
	}
	for _, r := range u.Resources {
		if r.GetVersion() == h.refuse {
			return errors.New("not that one")
		}
	}
	for _, r := range u.Resources {
		if h.names["*"] || h.names[r.GetName()] { // it may have been removed meanwhile
			h.state[r.GetName()] = r.GetVersion()
		}
	}
	for _, n := range u.Removed {
		delete(h.state, n)
	}
	return nil
}

func (h *holder) add(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range names {
		h.names[n] = true
	}
	h.client.Add(thing, names...)
}

func (h *holder) remove(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range names {
		if h.names[n] { // else it is not this subscription's
			delete(h.names, n)
			delete(h.state, n)
		}
	}
	if !h.names["*"] {
		maps.DeleteFunc(h.state, func(n, _ string) bool { return !h.names[n] })
	}
	h.client.Remove(thing, names...)
}

func (h *holder) read() (state map[string]string, seen []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.state), slices.Clone(h.seen)
}

// next waits for one more response and returns it.
func (h *holder) next(t testing.TB) string {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		h.mu.Lock()
		if len(h.seen) > 0 {
			first := h.seen[0]
			h.seen = h.seen[1:]
			h.mu.Unlock()
			return first
		}
		h.mu.Unlock()
		select {
		case <-h.changed:
		case <-late.C:
			t.Fatal("nothing comes")
		}
	}
}

// connect runs a stream until stop is called.
func (h *holder) connect(t testing.TB, s *service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "view", "v"))
	ended := make(chan error, 1)
	go func() { ended <- h.client.Run(ctx, s.conn, &core.Node{Id: "holder"}) }()
	return func() {
		cancel()
		if err := <-ended; err == nil {
			t.Error("a stream ends without an error")
		}
	}
}

func TestDeltaClient(t *testing.T) {
	s, sh := serveShelf(t)
	s.change(sh, thing, "a=1", "b=1", "c=1", "gone")
	h := newHolder()
	expect := func(want string) {
		t.Helper()
		if got := h.next(t); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	h.add("a", "gone")
	stop := h.connect(t, s)
	expect("+a=1 -gone")
	h.add("a", "b") // a is subscribed to already
	expect("+b=1")
	h.remove("a")
	eventually(t, "nobody wants a", func() bool { return s.held("a") == 0 })
	s.change(sh, thing, "a=2", "b=2")
	expect("+b=2")
	h.add("a")
	expect("+a=2")
	h.remove("b") // and wanted again before the server hears of either: it is lost all the same
	h.add("b")
	expect("+b=2")
	if err := h.client.Run(t.Context(), s.conn, nil); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second stream: %v", err)
	}
	stop()

	// It resumes: what it has is not sent, what changed meanwhile is.
	h.add("c")
	h.remove("b")
	s.change(sh, thing, "gone=1")
	stop = h.connect(t, s)
	expect("+c=1 +gone=1")
	stop()

	// What it refused it does not have.
	h.mu.Lock()
	h.refuse = "3"
	h.mu.Unlock()
	stop = h.connect(t, s)
	expect("") // in step
	s.change(sh, thing, "a=3")
	expect("+a=3")
	eventually(t, "the refusal is counted", func() (ok bool) {
		s.with(func() { ok = s.nacks[thing] == 1 })
		return ok
	})
	s.change(sh, thing, "c=2")
	expect("+c=2") // a is not sent again on this stream
	stop()
	h.mu.Lock()
	h.refuse = ""
	h.mu.Unlock()
	stop = h.connect(t, s)
	expect("+a=3")
	stop()
	if state, _ := h.read(); !maps.Equal(state, map[string]string{"a": "3", "c": "2", "gone": "1"}) {
		t.Errorf("it holds %v", state)
	}
	eventually(t, "the watches are gone", s.nobody)
}

// The wildcard given up and taken again is answered anew, on a new stream of the
// same Run.
func TestDeltaClientRenewsTheWildcard(t *testing.T) {
	s, sh := serveShelf(t)
	s.change(sh, thing, "a=1", "b=1")
	h := newHolder()
	h.add("*", "a")
	stop := h.connect(t, s)
	for i, want := range []string{"+a=1 +b=1", "+b=1", "+b=1"} { // a is still had
		if got := h.next(t); got != want {
			t.Fatalf("round %d: got %q, want %q", i, got, want)
		}
		h.remove("*")
		eventually(t, "the server knows", func() bool { return s.server.index.count(topic{wildcards, thing, ""}) == 0 })
		h.add("*")
	}
	stop()
	eventually(t, "the watches are gone", s.nobody)
}

func TestDeltaClientResumesFromDisk(t *testing.T) {
	s, sh := serveShelf(t)
	var names []string
	versions := map[string]string{"unwanted": "1"}
	const n = 2*maxNamesAtOnce + 10
	for i := range n {
		name := fmt.Sprintf("n%05d", i)
		names = append(names, name)
		versions[name] = "1"
		sh.put(thing, name+"=1")
	}
	sh.put(thing, "n00007=2")
	h := newHolder()
	h.add(names...)
	h.client.Resume(thing, versions)
	h.client.Resume("never asked for", versions)
	stop := h.connect(t, s)
	// Versions go only into the first request of a type; the names of further ones
	// are sent whole.
	if got := h.next(t); got != "+n00007=2" {
		t.Errorf("got %.100q", got)
	}
	for got := 0; got < n-maxNamesAtOnce; {
		got += len(strings.Fields(h.next(t)))
	}
	stop()
}

// A client that changes its mind all the time over streams that come and go ends
// up with what it wants of what there is.
func TestDeltaClientAgreesWithItsWishes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s, sh := serveShelf(t)
	names := []string{"a", "b", "c", "d", "e"}
	for _, n := range names {
		s.change(sh, thing, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var holders []*holder
	stay := make(chan struct{})
	for i := range 12 {
		h := newHolder()
		holders = append(holders, h)
		h.add("a")
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() { // connects anew again and again
			for ctx.Err() == nil {
				ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "view", "v"))
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_ = h.client.Run(ctx, s.conn, &core.Node{Id: "holder"})
				}()
				for range r.IntN(5) {
					select {
					case <-h.changed:
					case <-stay:
					case <-ctx.Done():
					}
				}
				select {
				case <-stay:
					<-ended
				default:
				}
				cancel()
				<-ended
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 1<<32))
	for range 3000 {
		n := names[r.IntN(len(names))]
		h := holders[r.IntN(len(holders))]
		if r.IntN(6) == 0 {
			n = "*"
		}
		switch r.IntN(6) {
		case 0, 1:
			h.add(n)
		case 2:
			h.remove(n)
		case 3:
			h.remove(n)
			h.add(n)
		default:
			if n != "*" {
				x := n
				if v := r.IntN(4); v > 0 {
					x = fmt.Sprint(n, "=", v)
				}
				s.change(sh, thing, x)
			}
		}
		runtime.Gosched()
	}
	close(stay)
	for i, h := range holders {
		h.mu.Lock()
		want := map[string]string{}
		for _, n := range names {
			if resource, answer := sh.Lookup("v", thing, n); answer == Found && (h.names["*"] || h.names[n]) {
				want[n] = resource.GetVersion()
			}
		}
		h.mu.Unlock()
		var state map[string]string
		defer func() {
			if t.Failed() {
				t.Logf("holder %d wants %v of %v and has %v", i, h.names, want, state)
			}
		}()
		eventually(t, fmt.Sprintf("holder %d holds %v", i, want), func() bool {
			state, _ = h.read()
			return maps.Equal(state, want)
		})
	}
}

// pusher is a server that reads nothing and sends without end.
type pusher struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
}

func (pusher) DeltaAggregatedResources(str discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for i := 0; ; i++ {
		resp := &discovery.DeltaDiscoveryResponse{TypeUrl: []string{thing, "unasked"}[i%2], Nonce: fmt.Sprint(i), Resources: things(fmt.Sprint("a=", i))}
		if err := str.Send(resp); err != nil {
			return err
		}
	}
}

// A server that does not read holds up nothing, and what waits to be sent to it
// is bounded.
func TestDeltaClientWithADeafServer(t *testing.T) {
	s := newService()
	s.run(t, func(gs *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(gs, pusher{}) })
	count := 0
	enough := make(chan struct{})
	var c *DeltaClient
	c = NewDeltaClient(func(u Update) error {
		if count++; count == 2000 {
			close(enough)
		}
		// Far more than fits into any window of flow control.
		c.Add(thing, strings.Repeat("x", 400)+fmt.Sprint(count))
		if count%2 == 0 {
			return errors.New("no")
		}
		return nil
	})
	c.Add(thing, "a")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, s.conn, nil) }()
	select {
	case <-enough:
	case err := <-ended:
		t.Fatal(err)
	}
	c.mu.Lock()
	if n := len(c.of(thing).verdicts); n > maxVerdicts {
		t.Errorf("%d verdicts wait", n)
	}
	c.mu.Unlock()
	cancel()
	<-ended
}

func TestVerdictsAreBounded(t *testing.T) {
	s := &subscribed{}
	no := errors.New("no")
	for i, c := range []struct {
		err  error
		want string
	}{{nil, "0"}, {nil, "1"}, {no, "1 2!"}, {no, "1 2! 3!"}, {nil, "1 2! 3! 4"}, {nil, "1 2! 3! 5"}, {no, "1 2! 3! 5 6!"}, {no, "1 2! 3! 5 6! 7!"}, {no, "1 2! 3! 5 6! 7! 8!"}, {no, "1 2! 3! 5 6! 7! 8! 9!"}, {no, "1 2! 3! 5 6! 7! 8! 10!"}, {nil, "1 2! 3! 5 6! 7! 8! 11"}} {
		s.answer(verdictOf(fmt.Sprint(i), c.err))
		var got []string
		for _, v := range s.verdicts {
			if v.refused != nil {
				v.nonce += "!"
			}
			got = append(got, v.nonce)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("after %d: %v, want %s", i, got, c.want)
		}
	}
}
