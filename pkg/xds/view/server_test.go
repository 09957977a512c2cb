package view

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flatmesh/flatmesh/pkg/xds"
)

// patience bounds how long a test waits for what must come.
const patience = time.Minute

// serving is a Catalog behind the real server, on loopback. A client's view is
// what it calls itself.
type serving struct {
	t      *testing.T
	c      *Catalog
	server *xds.Server
	addr   string
	conn   *grpc.ClientConn

	mu   sync.Mutex
	sent map[string]int // responses, by view and type
}

func serve(t *testing.T, c *Catalog) *serving {
	t.Helper()
	s := &serving{t: t, c: c, sent: map[string]int{}}
	s.server = xds.NewServer(c, slog.New(slog.DiscardHandler), func(ctx context.Context) (xds.Client, context.Context, func(), error) {
		return xds.Client{Name: "test", View: func(node *core.Node, _ string) (string, bool) { return node.GetId(), true }}, ctx, func() {}, nil
	}, func(typeURL string) {
		t.Errorf("a client refuses a %s", typeURL)
	})
	c.Attach(s.server)
	gs := grpc.NewServer(grpc.StreamInterceptor(func(srv any, str grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		return handle(srv, &counted{ServerStream: str, s: s})
	}))
	discovery.RegisterAggregatedDiscoveryServiceServer(gs, s.server)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- gs.Serve(ln) }()
	t.Cleanup(func() {
		gs.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	s.conn, err = grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s
}

// counted is a stream whose responses are counted.
type counted struct {
	grpc.ServerStream
	s    *serving
	view string // of its first request
}

func (c *counted) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if req, ok := m.(interface{ GetNode() *core.Node }); ok && err == nil && req.GetNode().GetId() != "" {
		c.s.mu.Lock()
		c.view = req.GetNode().GetId()
		c.s.mu.Unlock()
	}
	return err
}

func (c *counted) SendMsg(m any) error {
	if resp, ok := m.(interface{ GetTypeUrl() string }); ok {
		c.s.mu.Lock()
		c.s.sent[c.view+" "+resp.GetTypeUrl()]++
		c.s.mu.Unlock()
	}
	return c.ServerStream.SendMsg(m)
}

// sentTo counts the assignments' responses to a view so far.
func (s *serving) sentTo(view string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[view+" "+resource.EndpointType]
}

// settled waits until all clients have acknowledged what is current of these
// names, or of everything.
func (s *serving) settled(typeURL string, names ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if err := s.server.Settled(ctx, typeURL, names...); err != nil {
		s.t.Fatal(err)
	}
}

// client is a delta client that acknowledges only when it is told to.
type client struct {
	t   *testing.T
	str discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (s *serving) open(view string) *client {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	str, err := discovery.NewAggregatedDiscoveryServiceClient(s.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &client{s.t, str}
	c.send(&discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: view}, TypeUrl: "type.googleapis.com/none"})
	return c
}

func (c *client) send(req *discovery.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.str.Send(req); err != nil {
		c.t.Fatal(err)
	}
}

// ask subscribes to a name of each type.
func (c *client) ask(cluster, listener string) {
	c.t.Helper()
	for _, x := range [][2]string{{resource.ClusterType, cluster}, {resource.EndpointType, cluster}, {resource.ListenerType, listener}, {resource.RouteType, cluster}} {
		c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: x[0], ResourceNamesSubscribe: []string{x[1]}})
	}
}

// next receives a response, as "+CDS" for a resource and "-CDS" for one that is
// removed.
func (c *client) next() (string, *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	resp, err := c.str.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	short := map[string]string{resource.ClusterType: "CDS", resource.EndpointType: "EDS", resource.ListenerType: "LDS", resource.RouteType: "RDS"}[resp.GetTypeUrl()]
	return strings.Repeat("+"+short, len(resp.GetResources())) + strings.Repeat("-"+short, len(resp.GetRemovedResources())), resp
}

func (c *client) ack(resp *discovery.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()})
}

// take receives responses and acknowledges them.
func (c *client) take(n int) (out []string) {
	c.t.Helper()
	for range n {
		text, resp := c.next()
		c.ack(resp)
		out = append(out, text)
	}
	return out
}

// Over a real stream: what is new comes in the order in which it refers, and of
// what goes clusters and assignments stay until the client has acknowledged that
// its listener and its route are gone.
func TestMakeBeforeBreak(t *testing.T) {
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprint("patient=", patient), func(t *testing.T) {
			cat := begun(t, false)
			if !patient {
				cat.patience = 50 * time.Millisecond
			}
			s := serve(t, cat)
			c := s.open(grpcOn("east/n1"))
			c.ask("outbound|80||echo.demo.svc.cluster.local", "echo.demo:80")
			if got := c.take(4); !slices.Equal(got, []string{"-CDS", "-EDS", "-LDS", "-RDS"}) {
				t.Fatalf("before there is one: %v", got)
			}
			s.settled(resource.RouteType)

			set(cat, everywhere("echo"))
			if got := c.take(4); !slices.Equal(got, []string{"+CDS", "+EDS", "+LDS", "+RDS"}) {
				t.Fatalf("new: %v", got)
			}
			s.settled(resource.RouteType)

			remove(cat, "echo")
			lds, first := c.next()
			rds, second := c.next()
			if lds != "-LDS" || rds != "-RDS" {
				t.Fatalf("gone: %s %s", lds, rds)
			}
			if !patient {
				if got := c.take(2); !slices.Equal(got, []string{"-EDS", "-CDS"}) {
					t.Fatalf("without a word from the client: %v", got)
				}
				return
			}
			c.ack(first)
			// Whatever came meanwhile would come before the answer to this.
			c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{"x"}})
			if got, resp := c.next(); resp.GetTypeUrl() != resource.SecretType {
				t.Fatalf("before the route was acknowledged: %s", got)
			}
			if addresses(t, cat, grpcOn("east/n1"), "outbound|80||echo.demo.svc.cluster.local") == "missing" {
				t.Error("the assignment is gone before the route was acknowledged")
			}
			c.ack(second)
			if got := c.take(2); !slices.Equal(got, []string{"-EDS", "-CDS"}) {
				t.Fatalf("in the end: %v", got)
			}
		})
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
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
