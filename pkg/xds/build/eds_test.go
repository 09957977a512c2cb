package build

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// checkEDS holds for every assignment: what is written is what protobuf would
// write, no client refuses it, it says what the normal form says, and it is read
// back as that.
func checkEDS(t *testing.T, a Assignment) {
	t.Helper()
	r, err := EDS(a)
	if err != nil {
		t.Fatalf("%+v: %v", a, err)
	}
	if err := Validate(r); err != nil {
		t.Fatalf("%+v: %v", a, err)
	}
	var m endpoint.ClusterLoadAssignment
	if err := proto.Unmarshal(r.GetResource().GetValue(), &m); err != nil {
		t.Fatal(err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, r.GetResource().GetValue()) {
		t.Errorf("protobuf would write other bytes for %v", &m)
	}
	n := a.Normal()
	checkMembers(t, n, &m)
	if len(m.GetEndpoints()) == 0 {
		n = Assignment{Name: n.Name}
	}
	back, err := ParseEDS(r)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(n, back, append(compareValues, cmpopts.EquateEmpty())...); d != "" {
		t.Errorf("read back otherwise: %s", d)
	}
	if r2, err := EDS(back); err != nil || r2.GetVersion() != r.GetVersion() {
		t.Errorf("written again: %v, %v; want the same version", r2, err)
	}
}

// checkMembers compares addresses, priorities and weights with what an assignment
// in its normal form says they are, in a way of its own.
func checkMembers(t *testing.T, n Assignment, m *endpoint.ClusterLoadAssignment) {
	t.Helper()
	type spot struct {
		priority uint32
		path     string
	}
	got, weight, pods := map[netip.AddrPort]spot{}, map[string]uint64{}, map[string]int{}
	last := uint32(0)
	for _, l := range m.GetEndpoints() {
		last = max(last, l.GetPriority())
		for _, e := range l.GetLbEndpoints() {
			a, err := socketAddr(e.GetEndpoint().GetAddress())
			if err != nil {
				t.Fatal(err)
			}
			f := ours(e)
			got[a] = spot{l.GetPriority(), f[keyPath].GetStringValue()}
			isPod := f[keyNode] != nil
			if isPod != (l.GetLocality().GetSubZone() == "") {
				t.Errorf("%v: a pod: %v, in the locality %v", a, isPod, l.GetLocality())
			}
			if !isPod {
				if got[a].path == pathGateway {
					weight[f[keyCluster].GetStringValue()] += uint64(l.GetLoadBalancingWeight().GetValue())
				}
				if len(l.GetLbEndpoints()) != 1 {
					t.Errorf("%v: not alone in its locality", a)
				}
			}
		}
	}
	want := map[netip.AddrPort]spot{}
	for _, d := range n.Direct {
		want[d.Addr] = spot{uint32(d.Priority), string(d.Reason)}
		pods[d.Node.Cluster]++
	}
	standby := uint32(0)
	if len(n.Direct) > 0 {
		standby = uint32(n.Direct[len(n.Direct)-1].Priority) + 1
	}
	for _, r := range n.Remote {
		if r.Pods > 0 && len(r.Serving) > 0 {
			standby = uint32(n.GatewayPriority) + 1
		}
	}
	level := uint32(n.GatewayPriority)
	for _, r := range n.Remote {
		if r.Pods > 0 {
			for _, a := range r.Serving {
				want[a] = spot{level, pathGateway}
			}
		}
		for _, a := range r.StandbyAddrs {
			want[a] = spot{standby, pathStandby}
		}
	}
	if d := cmp.Diff(want, got, append(compareValues, cmp.AllowUnexported(spot{}))...); d != "" {
		t.Errorf("members: %s", d)
	}
	// Clusters weigh as their pods do, where no rounding was needed.
	for _, r := range n.Remote {
		for _, o := range n.Remote {
			a, b := weight[r.Cluster], weight[o.Cluster]
			if r.Pods < 1000 && o.Pods < 1000 && a > 0 && b > 0 && a*uint64(o.Pods) != b*uint64(r.Pods) {
				if high := uint64(1<<32) / 10; a < high && b < high {
					t.Errorf("%s with %d pods weighs %d, %s with %d weighs %d", r.Cluster, r.Pods, a, o.Cluster, o.Pods, b)
				}
			}
		}
	}
}

func TestRandomAssignments(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		b := make([]byte, 40+rnd.IntN(360))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		c := &choices{b}
		a := c.assignment()
		checkEDS(t, a)
		demoteInvariants(t, a, func(n mesh.NodeID) bool { return n.Name == "n1" || n.Cluster == "north" })
		if t.Failed() {
			t.Fatalf("with %+v", a)
		}
	}
}

func FuzzEDS(f *testing.F) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &choices{b}
		name := pick(c, "n1", "n2", "n3")
		a := c.assignment()
		checkEDS(t, a)
		demoteInvariants(t, a, func(n mesh.NodeID) bool { return n.Name == name })
	})
}

// Whatever bytes come, they are refused or read as something that can be written.
func FuzzParseEDS(f *testing.F) {
	for _, a := range []Assignment{{Name: "x"}, sample(3, 2), sample(0, 1)} {
		r, err := EDS(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.GetResource().GetValue())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseEDS(wrap("x", "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", b))
		if err != nil {
			return
		}
		r, err := EDS(a)
		if err != nil {
			return
		}
		if err := Validate(r); err != nil {
			t.Error(err)
		}
	})
}

// The order in which an assignment is gathered changes nothing.
func TestOrderDoesNotMatter(t *testing.T) {
	a := sample(20, 3)
	want, err := EDS(a)
	if err != nil {
		t.Fatal(err)
	}
	rand.New(rand.NewPCG(5, 6)).Shuffle(len(a.Direct), func(i, j int) { a.Direct[i], a.Direct[j] = a.Direct[j], a.Direct[i] })
	a.Remote[0], a.Remote[2] = a.Remote[2], a.Remote[0]
	got, err := EDS(a)
	if err != nil {
		t.Fatal(err)
	}
	if got.GetVersion() != want.GetVersion() {
		t.Errorf("version %s, shuffled %s", want.GetVersion(), got.GetVersion())
	}
}

func TestWithheldIsEmpty(t *testing.T) {
	r, err := EDS(Assignment{Name: "x", Remote: []Remote{{Cluster: "west", Pods: 3, Reason: mesh.ReasonNoTLS}}})
	if err != nil {
		t.Fatal(err)
	}
	var m endpoint.ClusterLoadAssignment
	if err := r.GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	if len(m.GetEndpoints()) != 0 || m.GetClusterName() != "x" {
		t.Errorf("%v, want a name alone", &m)
	}
}

func TestEDSRefusesWhatDoesNotComeBack(t *testing.T) {
	for _, c := range []struct {
		a    Assignment
		want string
	}{
		{Assignment{}, "no name"},
		{Assignment{Name: "\xff"}, "UTF-8"},
		{Assignment{Name: "x", Direct: []Direct{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Zone: "\xff"}}}, "UTF-8"},
		{Assignment{Name: "x", Direct: []Direct{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Node: mesh.NodeID{Cluster: "a/b"}}}}, "slash"},
		{Assignment{Name: "x", Remote: []Remote{{Cluster: "\xff"}}}, "UTF-8"},
		{Assignment{Name: "x", Remote: []Remote{{Cluster: "west"}, {Cluster: "west"}}}, "twice"},
	} {
		if _, err := EDS(c.a); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error that says %q", c.a, err, c.want)
		}
	}
}

func TestParseEDSRefuses(t *testing.T) {
	good, err := EDS(sample(2, 1))
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(m *endpoint.ClusterLoadAssignment)) *discovery.Resource {
		var m endpoint.ClusterLoadAssignment
		if err := good.GetResource().UnmarshalTo(&m); err != nil {
			t.Fatal(err)
		}
		f(&m)
		r, err := resourceOf(good.GetName(), good.GetResource().GetTypeUrl(), &m)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, r := range map[string]*discovery.Resource{
		"nothing":      nil,
		"another type": wrap(good.GetName(), "type.googleapis.com/envoy.config.cluster.v3.Cluster", good.GetResource().GetValue()),
		"no message":   wrap(good.GetName(), good.GetResource().GetTypeUrl(), []byte{0xff}),
		"another name": change(func(m *endpoint.ClusterLoadAssignment) { m.ClusterName = "other" }),
		"no address": change(func(m *endpoint.ClusterLoadAssignment) {
			m.GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().Address = nil
		}),
		"no node":  change(func(m *endpoint.ClusterLoadAssignment) { m.GetEndpoints()[0].GetLbEndpoints()[0].Metadata = nil }),
		"priority": change(func(m *endpoint.ClusterLoadAssignment) { m.GetEndpoints()[0].Priority = 256 }),
		"gateway": change(func(m *endpoint.ClusterLoadAssignment) {
			list := ours(m.GetEndpoints()[0])[keyRemotes].GetListValue()
			list.GetValues()[0].GetStructValue().GetFields()[keyServing].GetListValue().GetValues()[0].Kind = nil
		}),
	} {
		if a, err := ParseEDS(r); err == nil {
			t.Errorf("%s: read as %+v, want an error", name, a)
		}
	}
}

// sample makes an assignment with pods in three zones of two clusters, and with
// gateways of several others that have pods, standbys or both.
func sample(pods, remotes int) Assignment {
	a := Assignment{Name: "x"}
	for i := range pods {
		d := Direct{
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 8080),
			Node: mesh.NodeID{Cluster: "east", Name: fmt.Sprintf("node-%d", i/10)}, Region: "eu-central-1", Zone: fmt.Sprintf("eu-central-1%c", 'a'+i%3),
			Reason: mesh.ReasonLocal,
		}
		if i%2 == 1 {
			d.Node.Cluster, d.Reason = "west-0", mesh.ReasonTunnel
		}
		a.Direct = append(a.Direct, d)
	}
	for i := range remotes {
		r := Remote{Cluster: fmt.Sprintf("west-%d", i), Pods: i + 1, Standby: true}
		for p := range uint16(4) {
			ip := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
			r.Serving = append(r.Serving, netip.AddrPortFrom(ip, 15443+p))
			r.StandbyAddrs = append(r.StandbyAddrs, netip.AddrPortFrom(ip, 15447+p))
		}
		a.Remote = append(a.Remote, r)
	}
	return a
}

func BenchmarkEDS(b *testing.B) {
	for _, n := range []int{10, 100, 5000} {
		for _, remotes := range []int{0, 2} {
			b.Run(fmt.Sprintf("pods=%d/gateways=%d", n, remotes), func(b *testing.B) {
				a := sample(n, remotes).Normal()
				b.ReportAllocs()
				for b.Loop() {
					if _, err := EDS(a); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkProtobuf is what the same assignments cost through the generated types.
func BenchmarkProtobuf(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprintf("pods=%d", n), func(b *testing.B) {
			r, err := EDS(sample(n, 0))
			if err != nil {
				b.Fatal(err)
			}
			var m endpoint.ClusterLoadAssignment
			if err := r.GetResource().UnmarshalTo(&m); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := resourceOf("x", "x", proto.Clone(&m)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
