package view

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	grpcxds "google.golang.org/grpc/xds"

	"github.com/flatmesh/flatmesh/internal/testmesh"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// network is what clients dial, in memory: who answers at which address. At all
// others nobody does.
type network map[string]*bufconn.Listener

func (n network) dial(ctx context.Context, addr string) (net.Conn, error) {
	if l := n[addr]; l != nil {
		return l.DialContext(ctx)
	}
	return nil, errors.New("nobody answers at " + addr)
}

// answering is a server that says at which address it was called.
type answering struct {
	healthpb.UnimplementedHealthServer
	addr string
}

func (a answering) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, grpc.SetHeader(ctx, metadata.Pairs("addr", a.addr))
}

func newNetwork(t *testing.T, addrs ...string) network {
	n := network{}
	for _, a := range addrs {
		l := bufconn.Listen(1 << 16)
		n[a] = l
		gs := grpc.NewServer()
		healthpb.RegisterHealthServer(gs, answering{addr: a})
		ended := make(chan error, 1)
		go func() { ended <- gs.Serve(l) }()
		t.Cleanup(func() {
			gs.Stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return n
}

// dial makes an unmodified gRPC client on a node.
func (s *serving) dial(on, target string, n network) *grpc.ClientConn {
	s.t.Helper()
	// The files need not be there: these clients speak no TLS, and still refuse a
	// cluster whose provider they do not have.
	config := fmt.Sprintf(`{"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}], "node": {"id": %q},
		"certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {"certificate_file": "x", "private_key_file": "x", "ca_certificate_file": "x"}}}}`, s.addr, grpcOn(on))
	resolver, err := grpcxds.NewXDSResolverWithConfigForTesting([]byte(config))
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(n.dial))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// reaches waits until calls are answered at these addresses, each of them, and at
// no other for a while.
func reaches(t *testing.T, conn *grpc.ClientConn, want ...string) {
	t.Helper()
	got := map[string]int{}
	calls := 0
	eventually(t, fmt.Sprint("calls are answered at ", want), func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var header metadata.MD
		if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		addr := strings.Join(header.Get("addr"), "")
		if !slices.Contains(want, addr) {
			got, calls = map[string]int{}, 0
			return false
		}
		got[addr]++
		calls++
		return len(got) == len(want) && calls >= 20*len(want)
	})
}

// A tunnel that goes down moves the clients on that node, who go through the
// gateway, and others are not even told.
func TestFlipMovesOneClient(t *testing.T) {
	c := begun(t, false, everywhere("echo"))
	s := serve(t, c)
	const home, away, gateway = "10.1.1.1:8080", "10.2.1.1:8080", "203.0.113.2:15443"
	n := newNetwork(t, home, away, gateway)
	one, other := s.dial("east/n1", "echo.demo:80", n), s.dial("east/n2", "echo.demo:80", n)
	for range 3 {
		reaches(t, one, home, away)
		reaches(t, other, home, away)
		before, concerned := s.sentTo(grpcOn("east/n2")), s.sentTo(grpcOn("east/n1"))
		c.SetReport(node("east/n1"), but(allUp(node("east/n1")), "west/n1", mesh.Down))
		reaches(t, one, home, gateway)
		reaches(t, other, home, away)
		s.settled(resource.EndpointType)
		if got := s.sentTo(grpcOn("east/n2")); got != before {
			t.Errorf("the other client was sent %d more", got-before)
		}
		if got := s.sentTo(grpcOn("east/n1")); got != concerned+1 {
			t.Errorf("the client was sent %d more, want one", got-concerned)
		}
		c.SetReport(node("east/n1"), allUp(node("east/n1")))
	}
}

// A node whose stream ends keeps what it has.
func TestSilenceMovesNobody(t *testing.T) {
	c := begun(t, false, everywhere("echo"))
	s := serve(t, c)
	const home, away = "10.1.1.1:8080", "10.2.1.1:8080"
	conn := s.dial("east/n1", "echo.demo:80", newNetwork(t, home, away))
	reaches(t, conn, home, away)
	before := s.sentTo(grpcOn("east/n1"))
	c.SetReport(node("east/n1"), nil)
	c.SetReport(node("west/n1"), nil)
	set(c, everywhere("other"))
	s.settled(resource.EndpointType)
	reaches(t, conn, home, away)
	c.SetReport(node("east/n1"), allUp(node("east/n1")))
	s.settled(resource.EndpointType)
	reaches(t, conn, home, away)
	if got := s.sentTo(grpcOn("east/n1")); got != before {
		t.Errorf("it was sent %d more", got-before)
	}
}

// mirror is what a delta client has.
type mirror struct {
	mu  sync.Mutex
	has map[string]map[string]string // by type and name: versions
}

func (m *mirror) apply(u xds.Update) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range u.Resources {
		m.has[u.TypeURL][r.GetName()] = r.GetVersion()
	}
	for _, n := range u.Removed {
		delete(m.has[u.TypeURL], n)
	}
	return nil
}

// watch runs a delta client that subscribes to all names of its kind, or to
// everything of a type where that can be.
func (s *serving) watch(view string, everything bool) *mirror {
	m := &mirror{has: map[string]map[string]string{}}
	c := xds.NewDeltaClient(m.apply)
	for _, typeURL := range types {
		m.has[typeURL] = map[string]string{}
		if everything && (typeURL == resource.ClusterType || typeURL == resource.ListenerType) {
			c.Add(typeURL, "*")
			continue
		}
		c.Add(typeURL, namesIn(typeURL, s.c.opts.MCS)...)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, s.conn, &core.Node{Id: view}) }()
	s.t.Cleanup(func() { cancel(); <-ended })
	return m
}

// agrees compares what a client has with what there is. What is not known it may
// have or not.
func (m *mirror) agrees(c *Catalog, view string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, typeURL := range types {
		names := namesIn(typeURL, c.opts.MCS)
		names = sorted(slices.AppendSeq(names, maps.Keys(m.has[typeURL])))
		for _, n := range names {
			r, answer := c.Lookup(view, typeURL, n)
			if answer != xds.Pending && m.has[typeURL][n] != r.GetVersion() {
				return fmt.Sprintf("%s has %q of %s, and there is %q", view, m.has[typeURL][n], n, r.GetVersion())
			}
		}
	}
	return ""
}

// Real clients go through hundreds of changes: none refuses anything, and those
// that keep what they are told end up with what there is.
func TestClientsOnAWalk(t *testing.T) {
	w := &walker{World: testmesh.New(5), c: New(t.Context(), options(false)), gaveUp: map[mesh.NodeID]bool{}}
	w.c.SetTopology(w.Topology)
	w.c.SetServices(w.Services)
	for _, id := range testmesh.Nodes() {
		w.c.SetReport(id, w.Reach[id])
	}
	s := serve(t, w.c)
	w.c.Begin(nil)
	for _, on := range []string{"east/n1", "east/n2", "west/n1"} {
		for _, service := range testmesh.ServiceNames() {
			for _, target := range []string{"%s.demo:80", "%s.demo.svc.clusterset.local:81"} {
				s.dial(on, fmt.Sprintf(target, service.Name), network{}).Connect()
			}
		}
	}
	mirrors := map[string]*mirror{
		grpcOn("east/n1"): nil, envoyOn("east/n1"): nil, envoyOn("west/n2"): nil, gatewayOf("east"): nil, gatewayOf("south"): nil,
	}
	for v := range mirrors {
		mirrors[v] = s.watch(v, !strings.HasPrefix(v, "grpc"))
	}
	for i := range 250 {
		what := w.step()
		if i%10 > 0 {
			continue // several at once
		}
		eventually(t, "nothing leaves any more", func() bool {
			w.c.mu.RLock()
			defer w.c.mu.RUnlock()
			return len(w.c.leaving) == 0
		})
		for _, typeURL := range types {
			s.settled(typeURL)
		}
		for v, m := range mirrors {
			eventually(t, fmt.Sprintf("after %s at step %d: %s", what, i, m.agrees(w.c, v)), func() bool { return m.agrees(w.c, v) == "" })
		}
	}
	if s.sentTo(grpcOn("east/n1")) == 0 {
		t.Error("the gRPC clients were sent no assignment")
	}
}
