package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	grpcxds "google.golang.org/grpc/xds"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// patience is how long a test waits for what must happen; it decides nothing but
// when to give up.
const patience = 60 * time.Second

var self = mesh.NodeID{Cluster: "east", Name: "n1"}

// eventually waits for what nothing announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("never: %s", what)
		}
	}
}

// shelf is the content of a control plane: an xds.Source. What it does not have is
// missing.
type shelf struct {
	mu  sync.Mutex
	all map[setKey]map[string]*discovery.Resource
}

// Lookup implements xds.Source.
func (s *shelf) Lookup(view, typeURL, name string) (*discovery.Resource, xds.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.all[setKey{build.Kind(view), typeURL}][name]; r != nil {
		return r, xds.Found
	}
	return nil, xds.Missing
}

// Names implements xds.Source.
func (s *shelf) Names(view, typeURL string) ([]string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.all[setKey{build.Kind(view), typeURL}])), true
}

// controlPlane is a real xDS server for relays, which may go away and come back.
type controlPlane struct {
	t     testing.TB
	shelf *shelf

	mu      sync.Mutex
	server  *xds.Server
	stop    func()
	addr    string
	sent    int // resources, over all streams of all times
	streams int
	open    int // streams, now
	nacks   int
}

func newControlPlane(t testing.TB) *controlPlane {
	c := &controlPlane{t: t, shelf: &shelf{all: map[setKey]map[string]*discovery.Resource{}}}
	c.up()
	t.Cleanup(func() {
		c.down()
		if c.nacks > 0 {
			t.Errorf("the relay refused %d responses", c.nacks)
		}
	})
	return c
}

// up starts a server with what the shelf holds.
func (c *controlPlane) up() {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	server := xds.NewServer(c.shelf, slog.New(slog.DiscardHandler), func(ctx context.Context) (xds.Client, context.Context, func(), error) {
		return xds.Client{Name: "relay", View: func(node *core.Node, _ string) (string, bool) {
			return node.GetMetadata().GetFields()[KindKey].GetStringValue(), true
		}}, ctx, func() {}, nil
	}, func(string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.nacks++
	})
	gs := grpc.NewServer(grpc.StreamInterceptor(func(srv any, str grpc.ServerStream, _ *grpc.StreamServerInfo, serve grpc.StreamHandler) error {
		c.mu.Lock()
		c.streams++
		c.open++
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.open--
		}()
		return serve(srv, &counted{str, c})
	}))
	discovery.RegisterAggregatedDiscoveryServiceServer(gs, server)
	go func() {
		if err := gs.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			c.t.Error(err)
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server, c.stop, c.addr = server, gs.Stop, l.Addr().String()
}

func (c *controlPlane) down() {
	c.mu.Lock()
	stop := c.stop
	c.server, c.stop, c.addr = nil, nil, ""
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// counted counts the resources that are sent.
type counted struct {
	grpc.ServerStream
	c *controlPlane
}

func (s *counted) SendMsg(m any) error {
	if r, ok := m.(*discovery.DeltaDiscoveryResponse); ok {
		s.c.mu.Lock()
		s.c.sent += len(r.GetResources())
		s.c.mu.Unlock()
	}
	return s.ServerStream.SendMsg(m)
}

func (c *controlPlane) counts() (sent, streams int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent, c.streams
}

// alone waits until of so many streams the last alone is open: what is sent on one
// that has ended, which the server has not seen yet, is lost.
func (c *controlPlane) alone(streams int) {
	c.t.Helper()
	eventually(c.t, "one stream is open", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.open == 1 && c.streams == streams
	})
}

// dial connects to wherever the control plane is now.
func (c *controlPlane) dial() *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///controlplane", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c.mu.Lock()
			addr := c.addr
			c.mu.Unlock()
			if addr == "" {
				return nil, errors.New("the control plane is away")
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// put serves a resource to a kind's clients.
func (c *controlPlane) put(kind build.Kind) func(*discovery.Resource, error) {
	return func(r *discovery.Resource, err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
		k := setKey{kind, r.GetResource().GetTypeUrl()}
		c.shelf.mu.Lock()
		if c.shelf.all[k] == nil {
			c.shelf.all[k] = map[string]*discovery.Resource{}
		}
		c.shelf.all[k][r.GetName()] = r
		c.shelf.mu.Unlock()
		c.tell(k, r.GetName())
	}
}

func (c *controlPlane) remove(k setKey, names ...string) {
	c.shelf.mu.Lock()
	for _, n := range names {
		delete(c.shelf.all[k], n)
	}
	c.shelf.mu.Unlock()
	c.tell(k, names...)
}

func (c *controlPlane) tell(k setKey, names ...string) {
	c.mu.Lock()
	server := c.server
	c.mu.Unlock()
	if server != nil {
		server.ChangedIn(k.typeURL, string(k.kind), names...)
	}
}

func echoPort(name string) build.ServicePort {
	return build.ServicePort{Service: mesh.ServiceName{Namespace: "demo", Name: name}, Port: 80, Protocol: mesh.TCP}
}

// service serves a port to gRPC clients, with an assignment.
func (c *controlPlane) service(name string, a build.Assignment) {
	c.t.Helper()
	p, put := echoPort(name), c.put(build.GRPC)
	put(build.CDS(build.GRPC, p))
	put(build.RDS(p))
	for _, n := range build.ListenerNames(p.Service, p.Port, p.Scope) {
		put(build.LDS(n, p))
	}
	a.Name = p.Name(build.GRPC)
	put(build.EDS(a))
}

// node is a relay as an agent runs it, over restarts.
type node struct {
	t    testing.TB
	opts Options
	// relay is that of the current process.
	relay *Relay
	ended func()
}

// newNode makes a node's folders. The socket's path must be short.
func newNode(t testing.TB) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "fmrelay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &node{t: t, opts: Options{
		Node: self, Version: "test", Dir: filepath.Join(dir, "xds"), PodDir: filepath.Join(dir, "xds"),
		CacheFile: filepath.Join(dir, "cache"), Log: slog.New(slog.DiscardHandler),
	}}
}

// start runs the relay; c may be nil, or away.
func (n *node) start(c *controlPlane) *Relay {
	n.t.Helper()
	r, err := Open(n.opts)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	g.Go(func() {
		if err := r.Serve(ctx); err != nil {
			n.t.Errorf("serve: %v", err)
		}
	})
	if c != nil {
		conn := c.dial()
		g.Go(func() {
			defer conn.Close()
			if err := r.Run(ctx, conn); !errors.Is(err, context.Canceled) {
				n.t.Errorf("run: %v", err)
			}
		})
	}
	n.relay = r
	n.ended = sync.OnceFunc(func() {
		cancel()
		g.Wait()
	})
	n.t.Cleanup(n.ended)
	eventually(n.t, "the relay serves", func() bool { return r.Status().Serving })
	return r
}

func (n *node) restart(c *controlPlane) *Relay {
	n.t.Helper()
	n.ended()
	return n.start(c)
}

// refusals counts what clients refused.
func (n *node) refusals() uint64 {
	var out uint64
	for _, k := range n.relay.Status().Kinds {
		for _, t := range k.Types {
			out += t.NACKs
		}
	}
	return out
}

// dial makes an unmodified gRPC client of the bootstrap file as it lies there.
func (n *node) dial(target string) *grpc.ClientConn {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.opts.Dir, BootstrapName))
	if err != nil {
		n.t.Fatal(err)
	}
	resolver, err := grpcxds.NewXDSResolverWithConfigForTesting(b)
	if err != nil {
		n.t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return conn
}

// backend is a pod or, as far as its clients see, a gateway.
type backend struct {
	healthpb.UnimplementedHealthServer
	id   string
	addr netip.AddrPort
}

func newBackend(t testing.TB, id string) *backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{id: id, addr: netip.MustParseAddrPort(l.Addr().String())}
	gs := grpc.NewServer()
	healthpb.RegisterHealthServer(gs, b)
	go func() {
		if err := gs.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	t.Cleanup(gs.Stop)
	return b
}

// Check answers who it is.
func (b *backend) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("id", b.id)); err != nil {
		return nil, err
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// local is an assignment with one pod.
func (b *backend) local() build.Assignment {
	return build.Assignment{Direct: []build.Direct{{Addr: b.addr, Node: self, Reason: mesh.ReasonLocal}}}
}

// call returns who answered.
func call(conn *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var header metadata.MD
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header))
	return strings.Join(header.Get("id"), ""), err
}

// answers waits until a number of calls in a row are answered by one backend.
func answers(t testing.TB, conn *grpc.ClientConn, want string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for row := 0; row < 5; {
		id, err := call(conn)
		if row++; err != nil || id != want {
			row = 0
			if time.Now().After(deadline) {
				t.Fatalf("answered by %q, %v; want %q", id, err, want)
			}
		}
	}
}

// stream is a delta client that does only what it is told to.
type stream struct {
	t      testing.TB
	delta  discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	nonces map[string]string
	agent  string
	cancel context.CancelFunc
}

// connect opens a plain connection to the socket.
func (n *node) connect() *grpc.ClientConn {
	n.t.Helper()
	conn, err := grpc.NewClient("unix://"+n.opts.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return conn
}

// openDelta opens a delta stream of a client that calls itself agent.
func (n *node) openDelta(conn *grpc.ClientConn, agent string) *stream {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	n.t.Cleanup(cancel)
	str, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	return &stream{t: n.t, delta: str, nonces: map[string]string{}, agent: agent, cancel: cancel}
}

func (s *stream) send(req *discovery.DeltaDiscoveryRequest) {
	s.t.Helper()
	if s.agent != "" {
		req.Node = &core.Node{Id: "x", UserAgentName: s.agent}
		s.agent = ""
	}
	_ = s.delta.Send(req) // what ended it Recv says
}

func (s *stream) subscribe(typeURL string, names ...string) {
	s.t.Helper()
	s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// recv returns the next response as "+name -name", acknowledged.
func (s *stream) recv() string {
	s.t.Helper()
	resp, err := s.delta.Recv()
	if err != nil {
		s.t.Fatalf("recv: %v", err)
	}
	s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()})
	return show(resp)
}

func show(resp *discovery.DeltaDiscoveryResponse) string {
	var out []string
	for _, r := range resp.GetResources() {
		out = append(out, "+"+r.GetName())
	}
	for _, n := range resp.GetRemovedResources() {
		out = append(out, "-"+n)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// expect waits for a response with this content.
func (s *stream) expect(want string) {
	s.t.Helper()
	if got := s.recv(); got != want {
		s.t.Fatalf("got %q, want %q", got, want)
	}
}

// answer is what the cache says of a name now.
func (n *node) answer(k setKey, name string) xds.Answer {
	_, a := n.relay.cache.Lookup(string(k.kind), k.typeURL, name)
	return a
}

func names(prefix string, count int) []string {
	out := make([]string, count)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return out
}
