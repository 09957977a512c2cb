package xds

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachetypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	types "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

const (
	benchNames = 100 // that each client subscribes to
	benchConns = 20
	hot, rare  = "hot", "rare" // all clients subscribe to the one, 1% to the other
)

func benchName(i int) string { return fmt.Sprintf("outbound|8080||svc-%05d.ns1.svc.cluster.local", i) }

func benchAssignment(name string, version int) *endpoint.ClusterLoadAssignment {
	out := &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{Locality: &core.Locality{Zone: "z"}}}}
	for i := range 5 {
		socket := &core.SocketAddress{Address: fmt.Sprintf("10.%d.%d.%d", version/250%250, version%250, i), PortSpecifier: &core.SocketAddress_PortValue{PortValue: 8080}}
		out.Endpoints[0].LbEndpoints = append(out.Endpoints[0].LbEndpoints, &endpoint.LbEndpoint{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
			Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: socket}},
		}}})
	}
	return out
}

// benchServer serves assignments of names, and changes one.
type benchServer struct {
	register func(*grpc.Server)
	change   func(name string, version int)
}

// ours gives each client a view of its own.
func ours(b *testing.B, names []string, _ int) benchServer {
	sh := newShelf()
	put := func(name string, version int) {
		r, err := resource(name, types.EndpointType, benchAssignment(name, version))
		if err != nil {
			b.Fatal(err)
		}
		sh.mu.Lock()
		sh.names[topic{typeURL: types.EndpointType, key: name}] = r
		sh.mu.Unlock()
	}
	for _, n := range names {
		put(n, 0)
	}
	s := NewServer(sh, slog.New(slog.DiscardHandler), func(ctx context.Context) (Client, context.Context, func(), error) {
		return Client{View: func(node *core.Node, _ string) (string, bool) { return node.GetId(), true }}, ctx, func() {}, nil
	}, func(string) {})
	return benchServer{
		func(gs *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(gs, s) },
		func(name string, version int) { put(name, version); s.Changed(types.EndpointType, name) },
	}
}

// linear is go-control-plane's cache of one type, which shows all clients the
// same.
func linear(b *testing.B, names []string, _ int) benchServer {
	return linears(b, names, 1, func(*core.Node) string { return "n0" })
}

// linearViews gives each client a view of its own by a cache of its own.
func linearViews(b *testing.B, names []string, clients int) benchServer {
	return linears(b, names, clients, (*core.Node).GetId)
}

func linears(b *testing.B, names []string, views int, view func(*core.Node) string) benchServer {
	initial := map[string]cachetypes.Resource{}
	for _, n := range names {
		initial[n] = benchAssignment(n, 0)
	}
	mux := &cache.MuxCache{
		Classify:      func(r *cache.Request) string { return view(r.GetNode()) },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return view(r.GetNode()) },
		Caches:        map[string]cache.Cache{},
	}
	var all []*cache.LinearCache
	for i := range views {
		c := cache.NewLinearCache(types.EndpointType, cache.WithInitialResources(initial), cache.WithLogger(log.NewDefaultLogger()))
		mux.Caches[fmt.Sprint("n", i)] = c
		all = append(all, c)
	}
	return benchServer{
		func(gs *grpc.Server) {
			discovery.RegisterAggregatedDiscoveryServiceServer(gs, server.NewServer(context.Background(), mux, nil))
		},
		func(name string, version int) {
			for _, c := range all {
				if err := c.UpdateResource(name, benchAssignment(name, version)); err != nil {
					b.Fatal(err)
				}
			}
		},
	}
}

// snapshots is go-control-plane's cache of a snapshot for each node, which all
// share here: the best case for it.
func snapshots(b *testing.B, names []string, clients int) benchServer {
	c := cache.NewSnapshotCache(false, cache.IDHash{}, log.NewDefaultLogger())
	items := map[string]cachetypes.ResourceWithTTL{}
	for _, n := range names {
		items[n] = cachetypes.ResourceWithTTL{Resource: benchAssignment(n, 0)}
	}
	set := func(version int) {
		s := &cache.Snapshot{}
		s.Resources[cachetypes.Endpoint] = cache.Resources{Version: fmt.Sprint(version), Items: items}
		for i := range clients {
			if err := c.SetSnapshot(context.Background(), fmt.Sprint("n", i), s); err != nil {
				b.Fatal(err)
			}
		}
	}
	set(0)
	return benchServer{
		func(gs *grpc.Server) {
			discovery.RegisterAggregatedDiscoveryServiceServer(gs, server.NewServer(context.Background(), c, nil))
		},
		func(name string, version int) {
			next := make(map[string]cachetypes.ResourceWithTTL, len(items))
			for n, r := range items {
				next[n] = r
			}
			next[name] = cachetypes.ResourceWithTTL{Resource: benchAssignment(name, version)}
			items = next
			set(version)
		},
	}
}

// crowd is many delta clients of one server, in this process.
type crowd struct {
	clients int
	got     atomic.Int64
	want    atomic.Int64
	reached chan struct{}
}

// gather connects clients that subscribe to benchNames names each, and returns
// once all have been sent them.
func gather(b *testing.B, clients int, s benchServer) *crowd {
	b.Helper()
	ln := bufconn.Listen(1 << 20)
	gs := grpc.NewServer()
	s.register(gs)
	ended := make(chan error, 1)
	go func() { ended <- gs.Serve(ln) }()
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		running.Wait()
		gs.Stop()
		<-ended
	})
	c := &crowd{clients: clients, reached: make(chan struct{}, 1)}
	c.want.Store(int64(clients * benchNames))
	var conns []*grpc.ClientConn
	for range benchConns {
		conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	common := []string{hot}
	for i := range benchNames - 2 {
		common = append(common, benchName(i))
	}
	for i := range clients {
		last := benchName(benchNames)
		if i%100 == 0 {
			last = rare
		}
		names := append(common[:len(common):len(common)], last)
		str, err := discovery.NewAggregatedDiscoveryServiceClient(conns[i%benchConns]).DeltaAggregatedResources(ctx)
		if err != nil {
			b.Fatal(err)
		}
		req := &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: fmt.Sprint("n", i)}, TypeUrl: types.EndpointType, ResourceNamesSubscribe: names}
		if err := str.Send(req); err != nil {
			b.Fatal(err)
		}
		running.Go(func() {
			for {
				resp, err := str.Recv()
				if err != nil {
					return
				}
				if c.got.Add(int64(len(resp.GetResources()))) == c.want.Load() {
					c.reached <- struct{}{}
				}
				if err := str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: types.EndpointType, ResponseNonce: resp.GetNonce()}); err != nil {
					return
				}
			}
		})
	}
	<-c.reached
	return c
}

// push changes a name and waits until all of its clients have it. It returns how
// long the change itself took.
func (c *crowd) push(s benchServer, name string, version, clients int) time.Duration {
	c.want.Add(int64(clients))
	begin := time.Now()
	s.change(name, version)
	took := time.Since(begin)
	<-c.reached
	return took
}

func benchAll() []string {
	names := []string{hot, rare}
	for i := range benchNames + 1 {
		names = append(names, benchName(i))
	}
	return names
}

// BenchmarkPush is one change of one name, until the last client has it, in all
// of this process: server, connections and clients. change-µs is the part of it
// until the call that makes the change returns.
func BenchmarkPush(b *testing.B) {
	for _, clients := range []int{500, 2000} {
		for _, kind := range []struct {
			name string
			make func(b *testing.B, names []string, clients int) benchServer
		}{{"ours", ours}, {"linear", linear}, {"linear-views", linearViews}, {"snapshot", snapshots}} {
			b.Run(fmt.Sprintf("%d/%s", clients, kind.name), func(b *testing.B) {
				s := kind.make(b, benchAll(), clients)
				c := gather(b, clients, s)
				version := 0
				for _, change := range []struct {
					share, name string
					concerned   int
				}{{"1%", rare, clients / 100}, {"all", hot, clients}} {
					b.Run(change.share, func(b *testing.B) {
						before, took := cpu(b), time.Duration(0)
						for b.Loop() {
							version++
							took += c.push(s, change.name, version, change.concerned)
						}
						b.ReportMetric(float64(took)/float64(time.Microsecond)/float64(b.N), "change-µs/op")
						b.ReportMetric(float64(cpu(b)-before)/float64(time.Microsecond)/float64(b.N), "cpu-µs/op")
					})
				}
			})
		}
	}
}

// cpu returns what this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSubscriptionMemory reports the bytes of heap that one subscription of
// one client costs, with go-control-plane's own maps and without gRPC.
func BenchmarkSubscriptionMemory(b *testing.B) {
	const clients = 300
	for _, names := range []int{100, 1000} {
		b.Run(fmt.Sprint(names), func(b *testing.B) {
			c := NewCache()
			var list []*discovery.Resource
			for i := range names {
				list = append(list, things(fmt.Sprintf("%s=0123456789abcdef", benchName(i)))...)
			}
			c.Replace(SetKey{thing, "v"}, list)
			for b.Loop() {
				s := serve(b)
				s.start(b, c)
				before := heap()
				var streams []*rawStream
				for range clients {
					r := s.open(b, "v")
					streams = append(streams, r)
				}
				idle := heap()
				for _, r := range streams {
					var mine []string
					for i := range names {
						mine = append(mine, benchName(i))
					}
					r.subscribe(thing, mine...)
					r.recv()
					r.subscribe(thing)
				}
				eventually(b, "all have acknowledged", func() bool { return s.watchers() == clients && s.idle(thing) })
				b.ReportMetric(float64(heap()-idle)/clients/float64(names), "B/subscription")
				b.ReportMetric(float64(idle-before)/clients, "B/stream")
				for _, r := range streams {
					r.cancel()
				}
				eventually(b, "all are gone", s.nobody)
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
