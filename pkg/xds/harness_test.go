package xds

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"
)

// patience bounds how long a test waits for what must come.
const patience = 30 * time.Second

// thing is the type that tests serve, mark one more; every other is unknown.
const (
	thing = "type.googleapis.com/test.Thing"
	mark  = "type.googleapis.com/test.Mark"
)

// service is a Server over a real gRPC connection. A client's view is what it
// writes in its metadata under "view".
type service struct {
	cache  *Cache
	server *Server
	conn   *grpc.ClientConn

	mu       sync.Mutex
	nacks    map[string]int
	revoke   map[string]context.CancelCauseFunc // by view, of its newest stream
	released map[string]int
}

func serve(t testing.TB) *service {
	t.Helper()
	s := newService()
	s.start(t, s.cache)
	return s
}

func newService() *service {
	return &service{cache: NewCache(), nacks: map[string]int{}, revoke: map[string]context.CancelCauseFunc{}, released: map[string]int{}}
}

// start serves source in place of the cache.
func (s *service) start(t testing.TB, source Source) {
	t.Helper()
	s.server = NewServer(source, slog.New(slog.DiscardHandler), s.identify, func(typeURL string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.nacks[typeURL]++
	})
	s.run(t, func(gs *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(gs, s.server) })
}

// run serves what register registers, and connects to it.
func (s *service) run(t testing.TB, register func(*grpc.Server)) {
	t.Helper()
	gs := grpc.NewServer(ServerOptions()...)
	register(gs)
	ln := bufconn.Listen(1 << 20)
	ended := make(chan error, 1)
	go func() { ended <- gs.Serve(ln) }()
	var err error
	s.conn, err = grpc.NewClient("passthrough:///x",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.conn.Close()
		gs.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// watchers counts the watches of things.
func (s *service) watchers() int { return s.server.index.count(topic{everyone, thing, ""}) }

// nobody reports whether the index is empty: every stream has ended.
func (s *service) nobody() bool {
	for i := range s.server.index.shards {
		sh := &s.server.index.shards[i]
		sh.mu.Lock()
		n := len(sh.topics)
		sh.mu.Unlock()
		if n > 0 {
			return false
		}
	}
	return true
}

func (s *service) identify(ctx context.Context) (Client, context.Context, func(), error) {
	md, _ := metadata.FromIncomingContext(ctx)
	view := strings.Join(md.Get("view"), "")
	if view == "" {
		return Client{}, nil, nil, status.Error(codes.Unauthenticated, "who is there?")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	s.revoke[view] = cancel
	s.mu.Unlock()
	release := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.released[view]++
	}
	c := Client{Name: view, View: func(_ *core.Node, typeURL string) (string, bool) {
		return view, typeURL == thing || typeURL == mark || strings.HasPrefix(typeURL, "type.googleapis.com/envoy.") || strings.HasPrefix(typeURL, "served/")
	}}
	return c, ctx, release, nil
}

// with runs f under the service's lock.
func (s *service) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// things makes resources of "name=version".
func things(list ...string) []*discovery.Resource {
	var out []*discovery.Resource
	for _, s := range list {
		name, version, _ := strings.Cut(s, "=")
		out = append(out, &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: thing, Value: []byte(s)}})
	}
	return out
}

// rawStream is a client that does only what it is told to.
type rawStream struct {
	t      testing.TB
	str    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel context.CancelFunc
	nonces map[string]string
	marks  int
}

func (s *service) open(t testing.TB, view string) *rawStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "view", view), patience)
	t.Cleanup(cancel)
	str, err := discovery.NewAggregatedDiscoveryServiceClient(s.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &rawStream{t: t, str: str, cancel: cancel, nonces: map[string]string{}}
}

func (r *rawStream) send(req *discovery.DeltaDiscoveryRequest) {
	r.t.Helper()
	req.ResponseNonce = r.nonces[req.GetTypeUrl()]
	if err := r.str.Send(req); err != nil && err != io.EOF { // what ended it Recv says
		r.t.Fatal(err)
	}
}

func (r *rawStream) subscribe(typeURL string, names ...string) {
	r.t.Helper()
	r.send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "x"}, TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

func (r *rawStream) recv() *discovery.DeltaDiscoveryResponse {
	r.t.Helper()
	resp, err := r.str.Recv()
	if err != nil {
		r.t.Fatalf("recv: %v", err)
	}
	r.nonces[resp.GetTypeUrl()] = resp.GetNonce()
	return resp
}

// fails expects the stream to end with a code, whatever comes before.
func (r *rawStream) fails(code codes.Code) {
	r.t.Helper()
	for {
		if _, err := r.str.Recv(); err != nil {
			if status.Code(err) != code {
				r.t.Errorf("stream ends with %v, want %v", err, code)
			}
			return
		}
	}
}

// quiet expects that nothing waits to be received: what does would come before
// the answer to a new subscription.
func (r *rawStream) quiet() {
	r.t.Helper()
	r.marks++
	name := fmt.Sprintf("mark%d", r.marks)
	r.subscribe(mark, name)
	if resp := r.recv(); resp.GetTypeUrl() != mark || !slices.Equal(resp.GetRemovedResources(), []string{name}) {
		r.t.Fatalf("unasked: %s %s", resp.GetTypeUrl(), showResponse(resp))
	}
}

// showResponse reads "+a=1 -b".
func showResponse(resp *discovery.DeltaDiscoveryResponse) string {
	var out []string
	for _, x := range resp.GetResources() {
		out = append(out, "+"+x.GetName()+"="+x.GetVersion())
	}
	for _, n := range resp.GetRemovedResources() {
		out = append(out, "-"+n)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// mirror is a client by Subscribe that keeps what it is told over reconnects.
type mirror struct {
	view  string
	names []string // "*" or names

	mu      sync.Mutex
	state   map[string]string
	answers int
	changed chan struct{}
}

func newMirror(view string, names ...string) *mirror {
	return &mirror{view: view, names: names, state: map[string]string{}, changed: make(chan struct{}, 1)}
}

// run is one stream of the mirror.
func (m *mirror) run(ctx context.Context, s *service) error {
	m.mu.Lock()
	have := maps.Clone(m.state)
	m.mu.Unlock()
	ctx = metadata.AppendToOutgoingContext(ctx, "view", m.view)
	return Subscribe(ctx, s.conn, &core.Node{Id: m.view}, []Subscription{{TypeURL: thing, Names: m.names, Versions: have}}, func(u Update) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, r := range u.Resources {
			m.state[r.GetName()] = r.GetVersion()
		}
		for _, n := range u.Removed {
			delete(m.state, n)
		}
		m.answers++
		select {
		case m.changed <- struct{}{}:
		default:
		}
		return nil
	})
}

func (m *mirror) snapshot() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.state)
}

// until waits for a condition on what the mirror holds.
func (m *mirror) until(t testing.TB, what string, ok func(state map[string]string) bool) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		if ok(m.snapshot()) {
			return
		}
		select {
		case <-m.changed:
		case <-late.C:
			t.Fatalf("never: %s; it holds %v", what, m.snapshot())
		}
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			buf := make([]byte, 1<<20)
			t.Fatalf("never: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}
