package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/internal/testenv"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// ends waits until a stream ends, whatever comes before, and returns its code.
func (s *stream) ends() codes.Code {
	for {
		if _, err := s.delta.Recv(); err != nil {
			return status.Code(err)
		}
	}
}

// size counts the cache's entries, and the streams that they have.
func (c *cache) size() (entries, users int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sets {
		entries += len(s.entries)
		for _, e := range s.entries {
			users += e.users
		}
	}
	return entries, users
}

// A client that asks for a million names is sent away, costs nothing afterwards,
// and others notice nothing.
func TestMillionNames(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	one, two := newBackend(t, "one"), newBackend(t, "two")
	c.service("echo", one.local())
	n.start(c)
	conn := n.dial("echo.demo:80")
	answers(t, conn, "one")
	entries, _ := n.relay.cache.size()
	for name, send := range map[string]func(*stream){
		"at once": func(s *stream) { s.subscribe(grpcEDS.typeURL, names("n", 400_000)...) },
		"bit by bit": func(s *stream) {
			for i := range 1000 {
				s.subscribe(grpcEDS.typeURL, names(fmt.Sprintf("n%d-", i), 1000)...)
			}
		},
		"in all types": func(s *stream) {
			for _, typeURL := range types {
				s.subscribe(typeURL, names("n", 500)...)
			}
		},
	} {
		s := n.openDelta(n.connect(), "grpc-test")
		send(s)
		if got := s.ends(); got != codes.ResourceExhausted {
			t.Errorf("%s: the stream ends with %v", name, got)
		}
	}
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, strings.Repeat("x", maxName+1))
	if got := s.ends(); got != codes.InvalidArgument {
		t.Errorf("a long name: the stream ends with %v", got)
	}
	c.service("echo", two.local())
	answers(t, conn, "two")
	eventually(t, "the names are forgotten", func() bool {
		got, _ := n.relay.cache.size()
		return got == entries
	})
}

// Names that exist are no limit, nor are those that clusters just told of.
func TestManyNamesThatExist(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	const count = 3 * maxUnknown
	put := c.put(build.Envoy)
	var list []string
	for _, name := range names("s", count) {
		p := echoPort(name)
		put(build.CDS(build.Envoy, p))
		put(build.EDS(build.Assignment{Name: p.Name(build.Envoy)}))
		list = append(list, p.Name(build.Envoy))
	}
	n.start(c)
	s := n.openDelta(n.connect(), "envoy")
	s.subscribe(envoyCDS.typeURL)
	for got := 0; got < count; {
		got += strings.Count(s.recv(), "+")
	}
	s.subscribe(envoyEDS.typeURL, list...)
	for got := 0; got < count; {
		got += strings.Count(s.recv(), "+")
	}
}

// Clients that refuse everything, or never read, or never answer, delay nobody.
func TestBadClients(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	c.service("echo", acrossTunnel(netip.MustParseAddrPort("127.0.1.1:1"), netip.MustParseAddrPort("127.0.1.2:1")))
	big := build.Assignment{}
	for i := range 2000 {
		big.Direct = append(big.Direct, build.Direct{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 1), Node: west, Reason: mesh.ReasonTunnel})
	}
	c.service("other", big)
	r := n.start(c)

	refusing := n.openDelta(n.connect(), "grpc-test")
	refusing.subscribe(grpcEDS.typeURL, echoName)
	go func() {
		for {
			resp, err := refusing.delta.Recv()
			if err != nil {
				return
			}
			_ = refusing.delta.Send(&discovery.DeltaDiscoveryRequest{
				TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "no"},
			})
		}
	}()
	for range 5 {
		deaf := n.openDelta(n.connect(), "grpc-test")
		deaf.subscribe(grpcEDS.typeURL, otherName, echoName)
	}
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, echoName)
	s.expect("+" + echoName)
	for i := range 50 {
		r.SetDown(map[mesh.NodeID]bool{west: i%2 == 0})
		s.expect("+" + echoName)
	}
	// A slow client is told of the last of several changes alone.
	for i := 0; n.refusals() < 5; i++ {
		r.SetDown(map[mesh.NodeID]bool{west: i%2 == 0})
		s.expect("+" + echoName)
	}
	for _, x := range r.Status().Kinds[0].Types {
		if x.Type != "ClusterLoadAssignment" && x.NACKs > 0 {
			t.Errorf("refusals of %s", x.Type)
		}
	}
}

// Streams that come and go in the middle of changes leave nothing behind.
func TestChurn(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	const services = 6
	var list []string
	for _, name := range names("s", services) {
		c.service(name, acrossTunnel(netip.MustParseAddrPort("127.0.1.1:1"), netip.MustParseAddrPort("127.0.1.2:1")))
		list = append(list, echoPort(name).Name(build.GRPC))
	}
	list = append(list, "missing", "missing too")
	r := n.start(c)
	var g, changes sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			r.SetDown(map[mesh.NodeID]bool{west: i%2 == 0})
			c.service(fmt.Sprintf("s%d", i%services), acrossTunnel(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 2, byte(1 + i%200)}), 1), netip.MustParseAddrPort("127.0.1.2:1")))
			if err := r.Save(); err != nil {
				t.Error(err)
			}
			r.Status()
			r.cache.expire(r.connected())
			if _, err := r.Explain("demo/s1"); err != nil {
				t.Error(err)
			}
			if err := r.SetLocality("r", fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 4 {
		g.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			conn := n.connect()
			for range 60 {
				ctx, cancel := context.WithTimeout(ctx, patience)
				client := discovery.NewAggregatedDiscoveryServiceClient(conn)
				node := &core.Node{UserAgentName: []string{"gRPC", "envoy"}[rnd.IntN(2)]}
				want := list[:1+rnd.IntN(len(list)-1)]
				if rnd.IntN(2) == 0 {
					str, err := client.DeltaAggregatedResources(ctx)
					if err == nil {
						_ = str.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: grpcEDS.typeURL, ResourceNamesSubscribe: want})
						_ = str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: grpcLDS.typeURL})
						if rnd.IntN(2) == 0 {
							_, _ = str.Recv()
							_ = str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: grpcEDS.typeURL, ResourceNamesUnsubscribe: want[:1]})
						}
					}
				} else {
					str, err := client.StreamAggregatedResources(ctx)
					if err == nil {
						_ = str.Send(&discovery.DiscoveryRequest{Node: node, TypeUrl: grpcEDS.typeURL, ResourceNames: want})
						if node.GetUserAgentName() == "gRPC" && rnd.IntN(2) == 0 {
							if resp, err := str.Recv(); err == nil {
								_ = str.Send(&discovery.DiscoveryRequest{TypeUrl: grpcEDS.typeURL, ResponseNonce: resp.GetNonce(), ResourceNames: want[1:]})
							}
						}
					}
				}
				cancel()
			}
		})
	}
	g.Wait()
	cancel()
	changes.Wait()
	eventually(t, "all streams are gone", func() bool {
		_, users := r.cache.size()
		s := r.Status()
		return users == 0 && s.Kinds[0].Clients+s.Kinds[1].Clients == 0
	})
	r.clients.mu.Lock()
	defer r.clients.mu.Unlock()
	if len(r.clients.pods) > 0 {
		t.Errorf("%d pods are still known", len(r.clients.pods))
	}
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	if got := r.cache.sets[grpcEDS]; len(got.entries) > services {
		t.Errorf("%d assignments are kept of %d", len(got.entries), services)
	}
}

// accepted reports whether the relay takes one more connection: it then speaks
// first.
func accepted(t *testing.T, path string) (net.Conn, bool) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	return c, err == nil
}

// One pod that opens connections without end takes none from another.
func TestConnectionsOfAPodAreBounded(t *testing.T) {
	n := newNode(t)
	r := n.start(nil)
	var held []net.Conn
	for range maxPodConns {
		c, ok := accepted(t, n.opts.socket())
		if !ok {
			t.Fatalf("connection %d is refused", len(held))
		}
		held = append(held, c)
	}
	if _, ok := accepted(t, n.opts.socket()); ok {
		t.Error("a pod may have more connections than one should")
	}
	if s := r.Status(); s.Connections != maxPodConns || s.RefusedConnections != 1 {
		t.Errorf("status: %d connections, %d refused", s.Connections, s.RefusedConnections)
	}
	t.Run("another pod", func(t *testing.T) {
		testenv.NeedRoot(t)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), otherPod+"="+n.opts.socket())
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "accepted\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	held[0].Close()
	eventually(t, "there is room again", func() bool {
		c, ok := accepted(t, n.opts.socket())
		c.Close()
		return ok
	})
}

// otherPod makes the test's program a client in a network namespace of its own: it
// names the socket.
const otherPod = "FM_RELAY_SOCKET"

func TestMain(m *testing.M) {
	path := os.Getenv(otherPod)
	if path == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("accepted")
}

// A pod that opens streams without end takes none from another either.
func TestStreamsOfAPodAreBounded(t *testing.T) {
	n := newNode(t)
	r := n.start(nil)
	var open []*stream
	for range maxPodStreams / maxStreams {
		conn := n.connect()
		for range maxStreams {
			s := n.openDelta(conn, "grpc-test")
			s.subscribe(grpcEDS.typeURL, "a")
			open = append(open, s)
		}
	}
	eventually(t, "all streams are open", func() bool { return r.Status().Kinds[0].Clients == maxPodStreams })
	s := n.openDelta(n.connect(), "grpc-test")
	if got := s.ends(); got != codes.ResourceExhausted {
		t.Errorf("one more ends with %v", got)
	}
	open[0].cancel()
	eventually(t, "there is room again", func() bool { return r.Status().Kinds[0].Clients == maxPodStreams-1 })
	s = n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, "a")
	eventually(t, "it is taken", func() bool { return r.Status().Kinds[0].Clients == maxPodStreams })
}

// What is no gRPC at all goes away by itself.
func TestGarbage(t *testing.T) {
	n := newNode(t)
	n.start(nil)
	c, ok := accepted(t, n.opts.socket())
	if !ok {
		t.Fatal("refused")
	}
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open: %v", err)
	}
}
