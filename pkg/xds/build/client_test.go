package build

import (
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func plainPort() ServicePort {
	return ServicePort{Service: mesh.ServiceName{Namespace: "demo", Name: "echo"}, Port: 80, Protocol: mesh.TCP, Retry: true}
}

// A gRPC client accepts every assignment, whatever it was made of. Its addresses
// are loopback ones on which nobody listens.
func TestClientAcceptsRandomAssignments(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	c.service(p)
	c.set(EDS(Assignment{Name: p.Name(GRPC)}))
	conn := c.dial("echo.demo:80", "", nil)
	conn.Connect()
	n := c.answers(resource.EndpointType, 0)
	rnd := rand.New(rand.NewPCG(7, 8))
	for range 300 {
		b := make([]byte, 40+rnd.IntN(360))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		a := (&choices{b}).assignment()
		loopback(&a)
		c.set(EDS(a))
		n = c.answers(resource.EndpointType, n)
		if bad := c.refusals(); len(bad) > 0 {
			t.Fatalf("refused: %+v", a)
		}
	}
}

// loopback moves an assignment's addresses to where no test may send packets
// elsewhere, keeping equal ones equal.
func loopback(a *Assignment) {
	move := func(ap *netip.AddrPort) {
		ip := ap.Addr()
		switch {
		case ip.IsUnspecified(), !ip.IsValid(), ip.Zone() != "":
		case ip.Is6() && !ip.Is4In6():
			*ap = netip.AddrPortFrom(netip.IPv6Loopback(), 1+uint16(ip.As16()[15]))
		default:
			ip4 := ip.Unmap().As4()
			*ap = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, ip4[3]}), ap.Port())
		}
	}
	for i := range a.Direct {
		move(&a.Direct[i].Addr)
	}
	for i := range a.Remote {
		for j := range a.Remote[i].Serving {
			move(&a.Remote[i].Serving[j])
		}
		for j := range a.Remote[i].StandbyAddrs {
			move(&a.Remote[i].StandbyAddrs[j])
		}
	}
}

// Every name of a service leads to it.
func TestClientNames(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	pod := newBackend(t, "pod")
	c.service(p)
	c.set(EDS(Assignment{Name: p.Name(GRPC), Direct: []Direct{{Addr: pod.addr, Reason: mesh.ReasonLocal}}}))
	for _, n := range ListenerNames(p.Service, p.Port, p.Scope) {
		if got := counts(t, c.dial(n, "", nil), 1); got["pod"] != 1 {
			t.Errorf("%s: answered by %v", n, got)
		}
	}
}

// Pods get the same share whether they are direct or behind a gateway; the
// gateway stands by where none is left; a demoted pod's share goes there at once.
func TestClientSpreads(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	var pods []*backend
	a := Assignment{Name: p.Name(GRPC), Remote: []Remote{{Cluster: "west", Pods: 5, Standby: true}}}
	west := &a.Remote[0]
	for _, id := range []string{"east1", "west1", "west2"} {
		b := newBackend(t, id)
		pods = append(pods, b)
		a.Direct = append(a.Direct, Direct{Addr: b.addr, Node: mesh.NodeID{Cluster: id[:4], Name: id}, Region: "r1", Zone: "z" + id[4:], Reason: mesh.ReasonTunnel})
	}
	a.Direct[0].Reason = mesh.ReasonLocal
	for range 2 {
		west.Serving = append(west.Serving, newBackend(t, "gateway").addr)
	}
	west.StandbyAddrs = append(west.StandbyAddrs, newBackend(t, "standby").addr)
	c.service(p)
	c.set(EDS(a))
	conn := c.dial("echo.demo:80", "", nil)
	all := map[string]bool{}
	until(t, conn, 1, patience, "all connections", func(id string, _ error) bool {
		all[id] = true
		return len(all) == 4
	})

	const calls = 1600
	near := func(got, want float64) bool { return math.Abs(got-want) < 6*math.Sqrt(want) }
	got := counts(t, conn, calls)
	for id, share := range map[string]float64{"east1": 1. / 8, "west1": 1. / 8, "west2": 1. / 8, "gateway": 5. / 8} {
		if !near(float64(got[id]), share*calls) {
			t.Errorf("%s answered %d of %d calls, want about %.0f", id, got[id], calls, share*calls)
		}
	}

	// The relay has only what it was sent.
	sent, err := EDS(a)
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseEDS(sent)
	if err != nil {
		t.Fatal(err)
	}
	c.set(EDS(read.Demote(func(n mesh.NodeID) bool { return n.Name == "west1" })))
	until(t, conn, 200, patience, "no more calls to a demoted pod", func(id string, err error) bool { return err == nil && id != "west1" })
	got = counts(t, conn, calls)
	if !near(float64(got["gateway"]), calls*6./8) {
		t.Errorf("the gateway answered %d of %d calls for 6 pods of 8", got["gateway"], calls)
	}

	a.Remote[0].Pods = 0
	c.set(EDS(a))
	until(t, conn, 200, patience, "pods alone", func(id string, err error) bool { return err == nil && id != "gateway" && id != "standby" })
	for _, b := range pods {
		b.server.Stop()
	}
	until(t, conn, 20, patience, "the standby", func(id string, err error) bool { return err == nil && id == "standby" })
}

// Where the service prefers, what is not preferred serves only when nothing else
// does.
func TestClientPrefers(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	own, other := newBackend(t, "own"), newBackend(t, "other")
	c.service(p)
	c.set(EDS(Assignment{
		Name: p.Name(GRPC), GatewayPriority: 1, Direct: []Direct{{Addr: own.addr, Reason: mesh.ReasonLocal}},
		Remote: []Remote{{Cluster: "west", Pods: 10, Serving: []netip.AddrPort{other.addr}}},
	}))
	conn := c.dial("echo.demo:80", "", nil)
	if got := counts(t, conn, 50); got["own"] != 50 {
		t.Errorf("answered by %v, want the own cluster's pod alone", got)
	}
	own.server.Stop()
	until(t, conn, 20, patience, "what is not preferred", func(id string, err error) bool { return err == nil && id == "other" })
}

// A withheld service fails at once, and says what it is.
func TestClientFailsFastWhereWithheld(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	c.service(p)
	c.set(EDS(Assignment{Name: p.Name(GRPC)}))
	_, err := call(c.dial("echo.demo:80", "", nil), patience)
	if err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("%v, want Unavailable", err)
	}
}

// A pod that froze is left out by the client's own experience, and a pod beside
// it, whose calls fail too but not all of them, is not.
func TestClientLeavesOutFrozenPod(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	p.Retry = false
	freeze := make(chan struct{})
	frozen, live := newBackend(t, "frozen"), newBackend(t, "live")
	c.service(p)
	c.set(EDS(Assignment{Name: p.Name(GRPC), Direct: []Direct{
		{Addr: forward(t, frozen.addr, freeze), Reason: mesh.ReasonTunnel},
		{Addr: live.addr, Reason: mesh.ReasonTunnel},
	}}))
	conn := c.dial("echo.demo:80", "", nil)
	seen := map[string]bool{}
	until(t, conn, 1, patience, "both", func(id string, _ error) bool {
		seen[id] = true
		return len(seen) == 2
	})
	close(freeze)
	start := time.Now()
	failed := 0
	until(t, conn, 50, 100*time.Millisecond, "only the live pod", func(id string, err error) bool {
		if err != nil {
			failed++
		}
		return err == nil && id == "live"
	})
	t.Logf("left out after %v and %d calls that failed", time.Since(start).Round(time.Millisecond), failed)
	if failed == 0 {
		t.Error("no call failed: nothing was frozen")
	}
}

// forward accepts connections for a backend, and passes nothing on once it is
// frozen: nothing closes.
func forward(t *testing.T, to netip.AddrPort, freeze <-chan struct{}) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	open := []io.Closer{l}
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range slices.Backward(open) {
			c.Close()
		}
	})
	pass := func(from, to net.Conn) {
		b := make([]byte, 4096)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			select {
			case <-freeze:
				return
			default:
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to.String())
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			go pass(in, out)
			go pass(out, in)
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// What these tests rely on: a client that refuses an assignment is seen.
func TestRefusalsAreSeen(t *testing.T) {
	c, p := newControlPlane(t), plainPort()
	c.service(p)
	c.set(EDS(Assignment{Name: p.Name(GRPC)}))
	c.dial("echo.demo:80", "", nil).Connect()
	n := c.answers(resource.EndpointType, 0)
	good, err := EDS(Assignment{Name: p.Name(GRPC), Direct: []Direct{local("127.0.1.1:1", "east/n1")}})
	if err != nil {
		t.Fatal(err)
	}
	var m endpoint.ClusterLoadAssignment
	if err := good.GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	l := m.GetEndpoints()[0]
	l.LbEndpoints = append(l.LbEndpoints, l.GetLbEndpoints()[0])
	if err := c.caches[resource.EndpointType].UpdateResource(p.Name(GRPC), &m); err != nil {
		t.Fatal(err)
	}
	c.answers(resource.EndpointType, n)
	if seen := c.refusals(); len(seen) != 1 || !strings.Contains(seen[0], "duplicate") {
		t.Errorf("refusals %q, want one of a duplicate", seen)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nacks = nil
}
