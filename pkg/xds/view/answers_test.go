package view

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// addresses of an assignment, as "10.1.1.1:8080"; those of later priorities with a
// dash before; "missing" or "pending" where there is none.
func addresses(t testing.TB, c *Catalog, view, name string) string {
	t.Helper()
	r, answer := c.Lookup(view, resource.EndpointType, name)
	if answer != xds.Found {
		return answer.String()
	}
	var m endpoint.ClusterLoadAssignment
	if err := r.GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range m.GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			text := netip.AddrPortFrom(netip.MustParseAddr(a.GetAddress()), uint16(a.GetPortValue())).String()
			if l.GetPriority() > 0 {
				text = "-" + text
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestPending(t *testing.T) {
	c := New(t.Context(), options(false))
	echo := fmt.Sprintf(ofClients, "echo")
	c.SetTopology(twoClusters())
	set(c, everywhere("echo"))
	c.SetReport(node("east/n1"), allUp(node("east/n1")))
	for _, v := range []string{grpcOn("east/n1"), envoyOn("east/n1"), gatewayOf("east")} {
		for _, typeURL := range types {
			for _, n := range []string{echo, "echo.demo:80", "nonsense"} {
				if _, answer := c.Lookup(v, typeURL, n); answer != xds.Pending {
					t.Errorf("before the beginning %s has %v for %s", v, answer, n)
				}
			}
			if _, ok := c.Names(v, typeURL); ok {
				t.Errorf("before the beginning %s is told what there is", v)
			}
		}
	}
	c.Begin(nil)
	expect := func(what, view, want string) {
		t.Helper()
		if got := addresses(t, c, view, echo); got != want {
			t.Errorf("%s: %s has %s, want %s", what, view, got, want)
		}
	}
	const direct, through = "-203.0.113.2:15447 10.1.1.1:8080 10.2.1.1:8080", "10.1.1.1:8080 203.0.113.2:15443"
	expect("reported", grpcOn("east/n1"), direct)
	for _, v := range []string{grpcOn("east/n2"), envoyOn("east/n2"), grpcOn("east/unheard-of")} {
		expect("not reported", v, "pending")
		if got := addresses(t, c, v, "outbound|81||echo.demo.svc.cluster.local"); got != "missing" {
			t.Errorf("not reported: a port that nobody has is %s", got)
		}
	}
	// All else does not hang on reports.
	if _, answer := c.Lookup(grpcOn("east/n2"), resource.ClusterType, echo); answer != xds.Found {
		t.Errorf("not reported: the cluster is %v", answer)
	}
	c.GiveUp(node("east/n2"))
	expect("given up", grpcOn("east/n2"), through)
	c.SetReport(node("east/n2"), allUp(node("east/n2")))
	expect("reported after all", grpcOn("east/n2"), direct)
	c.SetReport(node("east/n2"), nil)
	expect("its stream has ended", grpcOn("east/n2"), "pending")
	c.GiveUp(node("east/n2"))
	c.Forget(node("east/n2"))
	expect("forgotten", grpcOn("east/n2"), "pending")
	// The other end's word counts as long as its stream is open.
	c.SetReport(node("west/n1"), but(allUp(node("west/n1")), "east/n1", mesh.Down))
	expect("Down at the other end", grpcOn("east/n1"), through)
	c.SetReport(node("west/n1"), nil)
	expect("silent at the other end", grpcOn("east/n1"), direct)
}

// found returns the listeners that there are for gRPC clients on a node, of names.
func found(c *Catalog, on string, names ...string) (out []string) {
	for _, n := range names {
		if r, answer := c.Lookup(grpcOn(on), resource.ListenerType, n); answer == xds.Found && r.GetName() == n {
			out = append(out, n)
		}
	}
	return out
}

// A service has all of its names, and no others.
func TestListenerNames(t *testing.T) {
	short := []string{"echo.demo", "echo.demo.svc", "echo.demo.svc.cluster.local"}
	setName := "echo.demo.svc.clusterset.local"
	withPorts := func(names []string, ports ...int) (out []string) {
		for _, n := range names {
			for _, p := range ports {
				out = append(out, fmt.Sprintf("%s:%d", n, p))
			}
		}
		return out
	}
	all := slices.Concat(short, []string{setName}, withPorts(append(slices.Clone(short), setName), 80, 81, 53))
	udp := func(p *mesh.ServicePort) { p.Protocol = mesh.UDP }
	unexported := withPort(aPart("west", 1), 81, nil)
	unexported.Exported = false
	for _, c := range []struct {
		name string
		mcs  bool
		s    *mesh.Service
		want []string
	}{
		{"one port", false, everywhere("echo"), slices.Concat(short, []string{setName}, withPorts(append(slices.Clone(short), setName), 80))},
		{"two ports", false, aService("echo", withPort(aPart("east", 1), 81, nil)), withPorts(append(slices.Clone(short), setName), 80, 81)},
		{"one of TCP", false, aService("echo", withPort(aPart("east", 1), 53, udp)), slices.Concat(short, []string{setName}, withPorts(append(slices.Clone(short), setName), 80))},
		// What another cluster keeps to itself does not make a name ambiguous.
		{"another's own port", false, aService("echo", aPart("east", 1), unexported), slices.Concat(short, []string{setName}, withPorts(append(slices.Clone(short), setName), 80))},
		{"mcs", true, everywhere("echo"), slices.Concat(short, []string{setName}, withPorts(append(slices.Clone(short), setName), 80))},
		{"mcs, elsewhere alone", true, aService("echo", aPart("west", 1)), slices.Concat([]string{setName}, withPorts([]string{setName}, 80))},
		{"mcs, at home alone", true, aService("echo", func() mesh.ServicePart { p := aPart("east", 1); p.Exported = false; return p }()), slices.Concat(short, withPorts(short, 80))},
	} {
		t.Run(c.name, func(t *testing.T) {
			cat := begun(t, c.mcs, c.s)
			if got := found(cat, "east/n1", all...); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(c.want))) {
				t.Errorf("found %v, want %v", got, c.want)
			}
			// A name of which there is a resource is one by which changes are told.
			told := newServed(c.s).namesOf(resource.ListenerType, c.mcs)
			for _, n := range c.want {
				if !slices.Contains(told, n) {
					t.Errorf("changes of %s are not told", n)
				}
			}
		})
	}
}

// Names of services that are not there, and names that are none.
func TestStrangeNames(t *testing.T) {
	long := strings.Repeat("a", 64)
	strange := []string{
		"", "*", "echo", "echo.demo:", "echo.demo:0", "echo.demo:080", "echo.demo:65616", "echo.demo:80:80", "ECHO.demo:80", "echo.demo.:80", "echo.demo.svc.cluster.local.:80",
		"nobody.demo:80", "echo.nowhere:80", "echo.demo.svc.cluster.example:80", "a.echo.demo:80", "echo..demo:80", long + ".demo:80", "echo.demo:81",
		"outbound|80||echo.demo", "outbound|80||echo.demo.svc", "outbound|80||echo.demo.svc.clusterset.local", "outbound|80||ECHO.demo.svc.cluster.local",
		"outbound|080||echo.demo.svc.cluster.local", "outbound|0||echo.demo.svc.cluster.local", "outbound|81||echo.demo.svc.cluster.local", "outbound|80|v1|echo.demo.svc.cluster.local",
		"inbound|80||echo.demo.svc.cluster.local", "outbound|80||nobody.demo.svc.cluster.local", "outbound|80||echo.demo.svc.cluster.local\x00", "outbound|80||\xff.demo.svc.cluster.local",
		"outbound_.80_._.ECHO.demo.svc.cluster.local", "outbound_.81_._.echo.demo.svc.cluster.local", "outbound_.80_._.echo.demo.svc.clusterset.local",
	}
	c := begun(t, false, everywhere("echo"))
	for _, v := range views() {
		for _, typeURL := range append(types, "type.googleapis.com/unheard.of", "") {
			for _, n := range strange {
				if _, answer := c.Lookup(v, typeURL, n); answer != xds.Missing {
					t.Errorf("%s %s of %q: %v", v, typeURL, n, answer)
				}
			}
		}
	}
	s := c.services[name("echo")]
	if len(s.spreads) > 0 || len(s.made) > 0 {
		t.Errorf("kept for names that are none: %v %v", s.spreads, s.made)
	}
}

// No client fills the memory by asking for ports and names that there are not.
func TestNothingIsKeptOfWhatIsNot(t *testing.T) {
	c := begun(t, true, everywhere("echo"))
	for port := range 2000 {
		for _, scope := range []mesh.Scope{mesh.ScopeCluster, mesh.ScopeSet} {
			host := build.Host(name("echo"), scope)
			for _, v := range []string{grpcOn("east/n1"), envoyOn("west/n1"), gatewayOf("east")} {
				for _, n := range []string{build.ClusterName(uint16(port+100), host), build.SNI(uint16(port+100), host), fmt.Sprintf("%s:%d", host, port+100)} {
					for _, typeURL := range types {
						c.Lookup(v, typeURL, n)
					}
				}
			}
		}
	}
	s := c.services[name("echo")]
	if n := len(s.spreads) + len(s.made); n != 0 {
		t.Errorf("%d entries are kept", n)
	}
}

// Under the MCS API cluster.local is the own cluster's alone and clusterset.local
// what is exported, the own part too only where it is.
func TestScopes(t *testing.T) {
	home := aPart("east", 1)
	home.Exported = false
	clusterName, setName := "outbound|80||echo.demo.svc.cluster.local", "outbound|80||echo.demo.svc.clusterset.local"
	for _, c := range []struct {
		name              string
		mcs               bool
		s                 *mesh.Service
		view              string
		local, clusterset string
	}{
		{"sameness", false, everywhere("echo"), grpcOn("east/n1"), "-203.0.113.2:15447 10.1.1.1:8080 10.2.1.1:8080", "missing"},
		{"exported", true, everywhere("echo"), grpcOn("east/n1"), "10.1.1.1:8080", "-203.0.113.2:15447 10.1.1.1:8080 10.2.1.1:8080"},
		{"not exported at home", true, aService("echo", home, aPart("west", 1)), grpcOn("east/n1"), "10.1.1.1:8080", "-203.0.113.2:15447 10.2.1.1:8080"},
		{"not exported elsewhere", true, aService("echo", home, aPart("west", 1)), grpcOn("west/n1"), "10.2.1.1:8080", "10.2.1.1:8080"},
		{"kept at home", true, aService("echo", home), grpcOn("east/n1"), "10.1.1.1:8080", "missing"},
		{"kept elsewhere", false, aService("echo", home), grpcOn("west/n1"), "missing", "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cat := begun(t, c.mcs, c.s)
			for n, want := range map[string]string{clusterName: c.local, setName: c.clusterset} {
				if got := addresses(t, cat, c.view, n); got != want {
					t.Errorf("%s: %s, want %s", n, got, want)
				}
				if _, answer := cat.Lookup(c.view, resource.ClusterType, n); (answer == xds.Found) != (want != "missing") {
					t.Errorf("cluster %s is %v", n, answer)
				}
			}
		})
	}
}

// A gateway has the ports that its cluster exports and whose pods speak mTLS over
// TCP, and of them the pods of its own cluster alone.
func TestGatewayView(t *testing.T) {
	change := func(p mesh.ServicePart, f func(*mesh.ServicePart)) mesh.ServicePart {
		p.Ports = slices.Clone(p.Ports)
		f(&p)
		return p
	}
	plain := func(p *mesh.ServicePart) { p.Ports[0].TLS = false }
	udp := func(p *mesh.ServicePart) { p.Ports[0].Protocol = mesh.UDP }
	kept := func(p *mesh.ServicePart) { p.Exported = false }
	for _, mcs := range []bool{false, true} {
		c := begun(t, mcs,
			everywhere("echo"), aService("far", aPart("west", 1, 2)),
			aService("plain", change(aPart("east", 1), plain), aPart("west", 1)),
			aService("udp", change(aPart("east", 1), udp), aPart("west", 1)),
			aService("kept", change(aPart("east", 1), kept), aPart("west", 1)),
		)
		scope := exportedScope(mcs)
		for _, x := range []struct{ service, east, west string }{
			{"echo", "10.1.1.1:8080", "10.2.1.1:8080"},
			{"far", "missing", "10.2.1.1:8080 10.2.2.2:8080"},
			{"plain", "missing", "10.2.1.1:8080"}, {"udp", "missing", "10.2.1.1:8080"}, {"kept", "missing", "10.2.1.1:8080"},
		} {
			n := build.SNI(80, build.Host(name(x.service), scope))
			for v, want := range map[string]string{gatewayOf("east"): x.east, gatewayOf("west"): x.west} {
				if got := addresses(t, c, v, n); got != want {
					t.Errorf("mcs=%t %s of %s: %s, want %s", mcs, v, x.service, got, want)
				}
				names, _ := c.Names(v, resource.ClusterType)
				_, answer := c.Lookup(v, resource.ClusterType, n)
				if there := want != "missing"; (answer == xds.Found) != there || slices.Contains(names, n) != there {
					t.Errorf("mcs=%t %s of %s: cluster %v, in the list: %t", mcs, v, x.service, answer, slices.Contains(names, n))
				}
			}
		}
		if got, _ := c.Names(gatewayOf("east"), resource.ListenerType); len(got) != len(gatewayPorts) {
			t.Errorf("a gateway listens on %v", got)
		}
		if got := addresses(t, c, gatewayOf("east"), fmt.Sprintf(ofClients, "echo")); got != "missing" {
			t.Errorf("a gateway knows a client's name: %s", got)
		}
		if got := addresses(t, c, grpcOn("east/n1"), build.SNI(80, build.Host(name("echo"), scope))); got != "missing" {
			t.Errorf("a client knows a gateway's name: %s", got)
		}
	}
}

// What an Envoy is given when it asks for everything.
func TestEnvoyLists(t *testing.T) {
	raw := aService("raw", aPart("east", 1), aPart("west", 1))
	for i := range raw.Parts {
		raw.Parts[i].Ports[0].AppProtocol = ""
		raw.Parts[i].Ports[0].Number = 5432
		raw.Parts[i].ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i + 1), 2})}
	}
	c := begun(t, false, everywhere("echo"), raw)
	list := func(typeURL string) string {
		names, ok := c.Names(envoyOn("east/n1"), typeURL)
		if !ok {
			t.Fatal("not known")
		}
		return strings.Join(slices.Sorted(slices.Values(names)), " ")
	}
	fixed, err := build.FixedClusters(build.Envoy)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range fixed {
		all = append(all, r.GetName())
	}
	all = sorted(append(all, "outbound|80||echo.demo.svc.cluster.local", "outbound|5432||raw.demo.svc.cluster.local"))
	if got, want := list(resource.ClusterType), strings.Join(all, " "); got != want {
		t.Errorf("clusters %s, want %s", got, want)
	}
	// Its own cluster's virtual addresses, and no other's.
	if got, want := list(resource.ListenerType), "0.0.0.0_80 10.96.1.2_5432 virtualOutbound"; got != want {
		t.Errorf("listeners %s, want %s", got, want)
	}
	if got, want := list(resource.RouteType), "5432 80"; got != want {
		t.Errorf("routes %s, want %s", got, want)
	}
	if names, ok := c.Names(grpcOn("east/n1"), resource.ListenerType); !ok || len(names) > 0 {
		t.Errorf("a gRPC client that asks for everything gets %v", names)
	}
	r, _ := c.Lookup(envoyOn("east/n1"), resource.ListenerType, "10.96.1.2_5432")
	var l listener.Listener
	if err := r.GetResource().UnmarshalTo(&l); err != nil || l.GetName() != "10.96.1.2_5432" {
		t.Errorf("listener %v: %v", &l, err)
	}
	remove(c, "raw")
	if got, want := list(resource.ListenerType), "0.0.0.0_80 virtualOutbound"; got != want {
		t.Errorf("listeners %s, want %s", got, want)
	}
}
