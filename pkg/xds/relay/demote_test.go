package relay

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

var west = mesh.NodeID{Cluster: "west", Name: "w1"}

// acrossTunnel is an assignment with one pod in west behind a tunnel, and a
// gateway.
func acrossTunnel(pod, gateway netip.AddrPort) build.Assignment {
	return build.Assignment{
		Direct: []build.Direct{{Addr: pod, Node: west, Reason: mesh.ReasonTunnel}},
		Remote: []build.Remote{{Cluster: "west", Serving: []netip.AddrPort{gateway}}},
	}
}

// A tunnel that goes down moves clients to the gateway without the control plane,
// and back when it comes up.
func TestDemotesAndLifts(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	pod, gateway := newBackend(t, "pod"), newBackend(t, "gateway")
	c.service("echo", acrossTunnel(pod.addr, gateway.addr))
	r := n.start(c)
	conn := n.dial("echo.demo:80")
	answers(t, conn, "pod")
	for _, away := range []bool{false, true} {
		if away {
			c.down()
		}
		r.SetDown(map[mesh.NodeID]bool{west: true})
		answers(t, conn, "gateway")
		if got := r.Status(); !slices.Equal(got.Demoted, []mesh.NodeID{west}) || got.DemotedAssignments != 1 {
			t.Errorf("status %v, %d", got.Demoted, got.DemotedAssignments)
		}
		r.SetDown(nil)
		answers(t, conn, "pod")
	}
	if got := n.refusals(); got != 0 {
		t.Errorf("%d refusals", got)
	}
}

// A demotion is one push of what it concerns, and lifting it gives back the version
// that the control plane gave.
func TestDemotionIsOnePush(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	c.service("echo", acrossTunnel(netip.MustParseAddrPort("127.0.1.1:1"), netip.MustParseAddrPort("127.0.1.2:1")))
	c.service("other", build.Assignment{Direct: []build.Direct{{Addr: netip.MustParseAddrPort("127.0.1.3:1"), Node: west, Reason: mesh.ReasonNative}}})
	r := n.start(c)
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, echoName, otherName)
	s.expect("+" + echoName + " +" + otherName)
	version := func() string {
		found, _ := r.cache.Lookup(string(build.GRPC), grpcEDS.typeURL, echoName)
		return found.GetVersion()
	}
	direct := version()
	down := map[mesh.NodeID]bool{west: true, {Cluster: "north", Name: "n1"}: true}
	r.SetDown(down)
	s.expect("+" + echoName)
	if version() == direct {
		t.Error("a demoted assignment has the version of the direct one")
	}
	r.SetDown(down) // nothing new
	r.SetDown(map[mesh.NodeID]bool{west: true})
	if err := r.Settled(t.Context()); err != nil {
		t.Error(err)
	}
	r.SetDown(nil)
	s.expect("+" + echoName)
	if got := version(); got != direct {
		t.Errorf("version %s after the demotion is lifted, %s before", got, direct)
	}
	// An answer of the control plane to what is demoted is demoted too.
	r.SetDown(down)
	s.expect("+" + echoName)
	c.service("echo", acrossTunnel(netip.MustParseAddrPort("127.0.1.4:1"), netip.MustParseAddrPort("127.0.1.5:1")))
	s.expect("+" + echoName)
	found, _ := r.cache.Lookup(string(build.GRPC), grpcEDS.typeURL, echoName)
	if a, err := build.ParseEDS(found); err != nil || len(a.Direct) > 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

// Settled waits for clients that have not acknowledged, and for no longer than it
// is told.
func TestSettled(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	c.service("echo", acrossTunnel(netip.MustParseAddrPort("127.0.1.1:1"), netip.MustParseAddrPort("127.0.1.2:1")))
	r := n.start(c)
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, echoName)
	recv := func() *discovery.DeltaDiscoveryResponse {
		t.Helper()
		resp, err := s.delta.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	ack := func(resp *discovery.DeltaDiscoveryResponse) {
		s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()})
	}
	resp := recv()
	if err := r.Settled(t.Context()); err != nil {
		t.Errorf("nothing is demoted: %v", err)
	}
	ack(resp)
	r.SetDown(map[mesh.NodeID]bool{west: true})
	resp = recv()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Settled(short); err == nil {
		t.Error("settled before the client has acknowledged")
	}
	settled := make(chan error, 1)
	go func() { settled <- r.Settled(t.Context()) }()
	ack(resp)
	if err := <-settled; err != nil {
		t.Error(err)
	}
}

// silent is an upstream that takes note of nothing.
type silent struct{}

func (silent) Add(string, ...string)    {}
func (silent) Remove(string, ...string) {}

func newTestCache(o Options) *cache {
	o.Log = slog.New(slog.DiscardHandler)
	return newCache(o.withDefaults(), func(build.Kind) upstream { return silent{} })
}

// Whatever the control plane assigns and whatever tunnels do, clients get what the
// builders make of the assignment without those tunnels, and nothing is direct that
// was not.
func TestDemotionProperty(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	ids := []mesh.NodeID{}
	for _, cluster := range []string{"east", "west", "north"} {
		for i := range 3 {
			ids = append(ids, mesh.NodeID{Cluster: cluster, Name: fmt.Sprintf("n%d", i)})
		}
	}
	addr := func() netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + rnd.IntN(60))}), uint16(80+rnd.IntN(3)))
	}
	addrs := func() (out []netip.AddrPort) {
		for range rnd.IntN(4) {
			out = append(out, addr())
		}
		return out
	}
	random := func(name string) build.Assignment {
		a := build.Assignment{Name: name, GatewayPriority: uint8(rnd.IntN(3))}
		for range rnd.IntN(12) {
			a.Direct = append(a.Direct, build.Direct{
				Addr: addr(), Node: ids[rnd.IntN(len(ids))], Zone: fmt.Sprintf("z%d", rnd.IntN(2)),
				Reason: []mesh.Reason{mesh.ReasonTunnel, mesh.ReasonTunnel, mesh.ReasonLocal, mesh.ReasonNative}[rnd.IntN(4)], Priority: uint8(rnd.IntN(3)),
			})
		}
		for _, cluster := range []string{"west", "north"} {
			if rnd.IntN(3) > 0 {
				a.Remote = append(a.Remote, build.Remote{Cluster: cluster, Pods: rnd.IntN(9), Standby: rnd.IntN(2) == 0, Serving: addrs(), StandbyAddrs: addrs()})
			}
		}
		return a
	}

	c, who := newTestCache(Options{Node: self}), &asker{unknown: map[*entry]int{}}
	assigned := map[string]build.Assignment{}
	down := map[mesh.NodeID]bool{}
	served := map[string]string{} // versions, as clients have them
	list := names("outbound|80||s", 8)
	for _, n := range list {
		if _, err := c.subscribe(who, grpcEDS, n); err != nil {
			t.Fatal(err)
		}
	}
	for step := range 1000 {
		told := map[string]bool{}
		if rnd.IntN(2) == 0 {
			a := random(list[rnd.IntN(len(list))])
			r, err := build.EDS(a)
			if err != nil {
				t.Fatal(err)
			}
			if a, err = build.ParseEDS(r); err != nil {
				t.Fatal(err)
			}
			assigned[a.Name] = a
			got, err := c.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: []*discovery.Resource{r}})
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range got.names {
				told[n] = true
			}
		} else {
			id := ids[rnd.IntN(len(ids))]
			if down[id] = !down[id]; !down[id] {
				delete(down, id)
			}
			for _, n := range c.setDown(down)[build.GRPC] {
				told[n] = true
			}
		}
		for name, a := range assigned {
			got, answer := c.Lookup(string(build.GRPC), grpcEDS.typeURL, name)
			want, err := build.EDS(a.Demote(func(n mesh.NodeID) bool { return down[n] }))
			if err != nil || answer != xds.Found || !proto.Equal(got, want) {
				t.Fatalf("step %d: %s is %v (%v), want %v (%v)", step, name, got, answer, want, err)
			}
			// Who was not told has what is served.
			if v := served[name]; v != got.GetVersion() && !told[name] {
				t.Fatalf("step %d: %s went from %s to %s, and nobody was told", step, name, v, got.GetVersion())
			}
			served[name] = got.GetVersion()
			b, err := build.ParseEDS(got)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range b.Direct {
				if d.Reason == mesh.ReasonTunnel && down[d.Node] || !slices.ContainsFunc(a.Direct, func(o build.Direct) bool { return o.Addr == d.Addr && o.Node == d.Node && o.Reason == d.Reason }) {
					t.Fatalf("step %d: %s has %+v direct", step, name, d)
				}
			}
		}
		// The index holds what hangs on tunnels now, and nothing else.
		want := map[mesh.NodeID]int{}
		for _, a := range assigned {
			seen := map[mesh.NodeID]bool{}
			for _, d := range a.Direct {
				if d.Reason == mesh.ReasonTunnel && !seen[d.Node] {
					seen[d.Node] = true
					want[d.Node]++
				}
			}
		}
		for _, id := range ids {
			if got := len(c.tunnels.byNode[id]); got != want[id] {
				t.Fatalf("step %d: %d entries hang on %v, want %d", step, got, id, want[id])
			}
		}
	}
}

// What is wrong in an answer of the control plane is refused, what is right in it is
// taken, and what stood stays.
func TestApplyTakesWhatIsRight(t *testing.T) {
	c, who := newTestCache(Options{Node: self}), &asker{unknown: map[*entry]int{}}
	for _, n := range []string{echoName, otherName} {
		if _, err := c.subscribe(who, grpcEDS, n); err != nil {
			t.Fatal(err)
		}
	}
	first, err := build.EDS(build.Assignment{Name: echoName})
	if err != nil {
		t.Fatal(err)
	}
	good, err := build.EDS(build.Assignment{Name: otherName})
	if err != nil {
		t.Fatal(err)
	}
	bad := proto.Clone(first).(*discovery.Resource)
	bad.Version, bad.Resource.Value = "2", []byte("no assignment")
	unasked := proto.Clone(good).(*discovery.Resource)
	unasked.Name = "unasked"
	if _, err := c.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: []*discovery.Resource{first}}); err != nil {
		t.Fatal(err)
	}
	got, err := c.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: []*discovery.Resource{bad, unasked, good}})
	if err == nil || !slices.Equal(got.names, []string{otherName}) {
		t.Errorf("changed %v, %v", got.names, err)
	}
	for name, want := range map[string]*discovery.Resource{echoName: first, otherName: good} {
		if r, _ := c.Lookup(string(build.GRPC), grpcEDS.typeURL, name); r != want {
			t.Errorf("%s is %v", name, r)
		}
	}
	if got, err := c.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: []*discovery.Resource{good}}); err != nil || len(got.names) > 0 {
		t.Errorf("what is here already changes %v, %v", got.names, err)
	}
	if _, err := c.apply(build.GRPC, xds.Update{TypeURL: "type.googleapis.com/unknown"}); err == nil {
		t.Error("a type that was not asked for is taken")
	}
}

// A client is what its metadata says, else what it calls itself, else what it asks
// for.
func TestKindOf(t *testing.T) {
	for _, x := range []struct {
		agent, metadata string
		wildcard        bool
		want            build.Kind
	}{
		{"gRPC Go", "", false, build.GRPC},
		{"gRPC Go", "", true, build.GRPC},
		{"gRPC C-core Linux", "", false, build.GRPC},
		{"grpc-java", "envoy", false, build.Envoy},
		{"envoy", "", false, build.Envoy},
		{"Envoy", "grpc", true, build.GRPC},
		{"", "", false, build.GRPC},
		{"", "", true, build.Envoy},
		{"other", "", true, build.Envoy},
		{"other", "grpc", true, build.GRPC},
		{"envoy", "gateway", false, ""},
	} {
		node := &core.Node{UserAgentName: x.agent}
		if x.metadata != "" {
			node.Metadata = describe(Options{}, build.Kind(x.metadata)).GetMetadata()
		}
		got, err := kindOf(node, x.wildcard)
		if got != x.want || (x.want == "") != (status.Code(err) == codes.InvalidArgument) {
			t.Errorf("%+v: %q, %v", x, got, err)
		}
	}
	if got, err := kindOf(nil, false); got != build.GRPC || err != nil {
		t.Errorf("without a node %q, %v", got, err)
	}
}
