package build

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/xds"
)

// patience is how long a test waits for what must happen; it decides nothing but
// when to give up.
const patience = 60 * time.Second

// controlPlane serves resources with go-control-plane's own server and cache, and
// keeps what clients said of them.
type controlPlane struct {
	t      *testing.T
	addr   string
	caches map[string]*cache.LinearCache

	mu       sync.Mutex
	nacks    []string
	answered map[string]int // by type: responses that were accepted or refused
	changed  *sync.Cond
}

func newControlPlane(t *testing.T) *controlPlane {
	c := &controlPlane{t: t, caches: map[string]*cache.LinearCache{}, answered: map[string]int{}}
	c.changed = sync.NewCond(&c.mu)
	mux := &cache.MuxCache{
		Classify:      func(r *cache.Request) string { return r.GetTypeUrl() },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        map[string]cache.Cache{},
	}
	for _, u := range []string{resource.ListenerType, resource.RouteType, resource.ClusterType, resource.EndpointType} {
		c.caches[u] = cache.NewLinearCache(u)
		mux.Caches[u] = c.caches[u]
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(s, server.NewServer(ctx, mux, server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discovery.DiscoveryRequest) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if r.GetErrorDetail() != nil {
				c.nacks = append(c.nacks, r.GetTypeUrl()+": "+r.GetErrorDetail().GetMessage())
			}
			if r.GetResponseNonce() != "" {
				c.answered[r.GetTypeUrl()]++
				c.changed.Broadcast()
			}
			return nil
		},
	}))
	c.addr = serve(t, s)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		for _, n := range c.refusals() {
			t.Errorf("a client refused %s", n)
		}
	})
	return c
}

func serve(t *testing.T, s *grpc.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := s.Serve(l); err != nil {
			slog.Error("serve", "err", err)
		}
	}()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func (c *controlPlane) refusals() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nacks
}

// answers waits until clients have accepted or refused more than n responses of a
// type, and returns how many.
func (c *controlPlane) answers(typeURL string, n int) int {
	c.t.Helper()
	stop := time.AfterFunc(patience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.answered[typeURL] = -1
		c.changed.Broadcast()
	})
	defer stop.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.answered[typeURL] >= 0 && c.answered[typeURL] <= n {
		c.changed.Wait()
	}
	if c.answered[typeURL] < 0 {
		c.t.Fatalf("no client has answered a %s", typeURL)
	}
	return c.answered[typeURL]
}

func (c *controlPlane) set(r *discovery.Resource, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := Validate(r); err != nil {
		c.t.Fatal(err)
	}
	m, err := r.GetResource().UnmarshalNew()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.caches[r.GetResource().GetTypeUrl()].UpdateResource(r.GetName(), m.(types.Resource)); err != nil {
		c.t.Fatal(err)
	}
}

// service serves what there is of a port besides its assignment.
func (c *controlPlane) service(p ServicePort) {
	c.t.Helper()
	c.set(CDS(GRPC, p))
	c.set(RDS(p))
	for _, n := range ListenerNames(p.Service, p.Port, p.Scope) {
		c.set(LDS(n, p))
	}
}

// dial makes an unmodified gRPC client. More is further JSON of its bootstrap.
func (c *controlPlane) dial(target, more string, creds credentials.TransportCredentials) *grpc.ClientConn {
	c.t.Helper()
	config := fmt.Sprintf(`{"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}], "node": {"id": "test"}%s}`, c.addr, more)
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(config))
	if err != nil {
		c.t.Fatal(err)
	}
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(creds))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// backend is a pod or, as far as its clients see, a gateway.
type backend struct {
	healthpb.UnimplementedHealthServer
	id     string
	addr   netip.AddrPort
	server *grpc.Server
}

func newBackend(t *testing.T, id string, opts ...grpc.ServerOption) *backend {
	t.Helper()
	b := &backend{id: id, server: grpc.NewServer(opts...)}
	healthpb.RegisterHealthServer(b.server, b)
	b.addr = netip.MustParseAddrPort(serve(t, b.server))
	return b
}

// Check answers who it is.
func (b *backend) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("id", b.id)); err != nil {
		return nil, err
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// call returns who answered.
func call(conn *grpc.ClientConn, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var header metadata.MD
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header))
	return strings.Join(header.Get("id"), ""), err
}

// counts returns who answered how often. Every call must be answered.
func counts(t *testing.T, conn *grpc.ClientConn, calls int) map[string]int {
	t.Helper()
	out := map[string]int{}
	for range calls {
		id, err := call(conn, patience)
		if err != nil {
			t.Fatal(err)
		}
		out[id]++
	}
	return out
}

// until calls until the answers of a number of calls in a row are as wanted.
func until(t *testing.T, conn *grpc.ClientConn, calls int, limit time.Duration, what string, want func(id string, err error) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for row := 0; row < calls; {
		id, err := call(conn, limit)
		if row++; !want(id, err) {
			row = 0
			if time.Now().After(deadline) {
				t.Fatalf("%s: still %q, %v", what, id, err)
			}
		}
	}
}
