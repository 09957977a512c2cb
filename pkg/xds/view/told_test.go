package view

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// notes is a Listener that writes down what it is told.
type notes struct {
	audience
	mu   sync.Mutex
	list []telling
}

func (n *notes) Changed(typeURL string, names ...string) { n.ChangedIn(typeURL, "", names...) }

func (n *notes) ChangedIn(typeURL, view string, names ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, telling{typeURL, view, names})
}

// take returns what was told since it was last called, as lines "CDS view: names".
func (n *notes) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	short := map[string]string{
		resource.ClusterType: "CDS", resource.EndpointType: "EDS", resource.ListenerType: "LDS", resource.RouteType: "RDS", resource.SecretType: "SDS",
	}
	var out []string
	for _, x := range n.list {
		out = append(out, fmt.Sprintf("%s %s: %s", short[x.typeURL], x.view, strings.Join(x.names, " ")))
	}
	n.list = nil
	return out
}

const (
	ofClients  = "outbound|80||%s.demo.svc.cluster.local"
	ofGateways = "outbound_.80_._.%s.demo.svc.cluster.local"
)

// both are services' names of clusters and assignments.
func both(services ...string) string {
	var out []string
	for _, s := range services {
		out = append(out, fmt.Sprintf(ofClients, s), fmt.Sprintf(ofGateways, s))
	}
	return strings.Join(sorted(out), " ")
}

// What is told of a change is what it concerns, however many services there are.
func TestToldIsWhatAChangeConcerns(t *testing.T) {
	for _, many := range []int{0, 10, 500} {
		t.Run(fmt.Sprint(many), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { concerns(t, many) }) })
	}
}

func concerns(t *testing.T, many int) {
	services := []*mesh.Service{everywhere("echo"), aService("east", aPart("east", 1)), aService("west2", aPart("west", 2))}
	for i := range many {
		services = append(services, aService(fmt.Sprint("other", i), aPart("east", 2))) // unconcerned
	}
	c := begun(t, false, services...)
	n := &notes{}
	c.Attach(n)
	expect := func(what string, want ...string) {
		t.Helper()
		synctest.Wait()
		if got := n.take(); !slices.Equal(got, want) {
			t.Errorf("%s: told\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	top := twoClusters()
	topology := func(change func(*mesh.Topology)) {
		next := top
		next.Nodes, next.Gateways, next.Claims = slices.Clone(top.Nodes), slices.Clone(top.Gateways), slices.Clone(top.Claims)
		change(&next)
		top = next
		c.SetTopology(next)
	}
	east1, west1 := node("east/n1"), node("west/n1")
	echo := "outbound|80||echo.demo.svc.cluster.local"

	topology(func(*mesh.Topology) {})
	expect("nothing")

	set(c, aService("echo", aPart("east", 1), aPart("west", 1, 2)))
	expect("an endpoint", "EDS : "+both("echo"))
	set(c, everywhere("echo"))
	n.take()

	// Up is the reporter's matter, Down also the other end's.
	c.SetReport(east1, but(allUp(east1), "west/n1", mesh.Unknown))
	expect("a tunnel unknown", "EDS grpc|east/n1: "+echo, "EDS envoy|east/n1: "+echo)
	c.SetReport(east1, but(allUp(east1), "west/n1", mesh.Down))
	eastNames := "outbound|80||east.demo.svc.cluster.local " + echo
	expect("a tunnel down", "EDS grpc|west/n1: "+eastNames, "EDS envoy|west/n1: "+eastNames)
	c.SetReport(east1, allUp(east1))
	expect("a tunnel up", "EDS grpc|east/n1: "+echo, "EDS envoy|east/n1: "+echo, "EDS grpc|west/n1: "+eastNames, "EDS envoy|west/n1: "+eastNames)
	c.SetReport(east1, allUp(east1))
	expect("the same report")
	c.SetReport(east1, nil)
	expect("its stream ended")
	c.GiveUp(east1)
	expect("given up", "EDS grpc|east/n1: ", "EDS envoy|east/n1: ")
	c.SetReport(east1, allUp(east1))
	expect("its first report", "EDS grpc|east/n1: ", "EDS envoy|east/n1: ")
	c.GiveUp(east1)
	expect("given up though it has reported")
	c.Forget(west1)
	expect("forgotten")

	topology(func(t *mesh.Topology) { t.Gateways[1].Lost = true })
	expect("a gateway of west", "EDS : "+both("echo", "west2"))
	// A claim of another cluster covers its address, and goes.
	claim := mesh.Claim{Cluster: "east", Kind: mesh.NodeRange, Prefix: netip.MustParsePrefix("203.0.113.2/32"), Order: 9}
	topology(func(t *mesh.Topology) { t.Claims = append(t.Claims, claim) })
	expect("a claim on a gateway", "EDS : "+both("echo", "west2"))
	topology(func(t *mesh.Topology) { t.Claims = t.Claims[:2] })
	expect("a claim on a gateway ends", "EDS : "+both("echo", "west2"))

	// A node that joins brings claims, and conflicts from which nothing follows.
	joined := aNode("west", 1, 2)
	topology(func(t *mesh.Topology) {
		t.Nodes = append(t.Nodes, joined)
		range1 := mesh.Claim{Cluster: "west", Kind: mesh.NodeRange, Prefix: netip.MustParsePrefix("192.168.2.3/32"), Node: "n3", Order: 10}
		t.Claims = append(t.Claims, range1)
		t.Conflicts = []mesh.Conflict{{Effect: mesh.Listed, First: t.Claims[0], Second: range1}}
	})
	expect("a node joins", "EDS grpc|west/n3: ", "EDS envoy|west/n3: ")
	topology(func(t *mesh.Topology) { t.Nodes[3].Zone = "z2" })
	expect("a node's zone", "EDS grpc|west/n2: ", "EDS envoy|west/n2: ", "EDS : "+both("west2"))
	topology(func(t *mesh.Topology) {
		t.Nodes[3].Endpoints = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:1")}
	})
	expect("what is WireGuard's alone")

	n.take()
	// Definitions: what is referred to is told first; removal is in leaving_test.go.
	retry := everywhere("echo")
	retry.Parts[0].Retry = true
	set(c, retry)
	routes, listeners := echo+" 80", "virtualOutbound virtualOutbound-v6 0.0.0.0_80 ::_80 10.96.1.1_80 10.96.2.1_80"
	for _, alias := range []string{"echo.demo", "echo.demo.svc", "echo.demo.svc.cluster.local", "echo.demo.svc.clusterset.local"} {
		listeners += " " + alias + " " + alias + ":80"
	}
	expect("a definition", "CDS : "+both("echo"), "EDS : "+both("echo"),
		"LDS : "+strings.Join(sorted(strings.Fields(listeners)), " "), "RDS : "+strings.Join(sorted(strings.Fields(routes)), " "))
}

// A cluster that gets its first pods of a family is served other addresses of
// dual-stack pods, on all of its nodes.
func TestToldOfAFamily(t *testing.T) {
	part := aPart("west", 1)
	part.ClusterIPs = []netip.Addr{netip.MustParseAddr("fd96::1"), netip.MustParseAddr("10.96.2.1")}
	b := part.Ports[0].Backends[0]
	b.Addr = netip.MustParseAddrPort("[fd02::1]:8080")
	part.Ports[0].Backends = append(part.Ports[0].Backends, b)
	c := begun(t, false, aService("echo", part))
	k := key{grpcOn("east/n2"), resource.EndpointType, fmt.Sprintf(ofClients, "echo")}
	before := look(c, k)
	n := &notes{}
	c.Attach(n)
	top := twoClusters()
	// Declared are other ranges, so that no claim says so.
	top.Nodes[0].PodCIDRs = append(slices.Clone(top.Nodes[0].PodCIDRs), netip.MustParsePrefix("fd01::/64"))
	c.SetTopology(top)
	if after := look(c, k); after == before {
		t.Error("the clients of another node see no other address")
	}
	if got := n.take(); !slices.Contains(got, "EDS : "+both("echo")) {
		t.Errorf("told %v", got)
	}
}

// Who waits for the beginning is told of it once for each type.
func TestBeginTellsThoseWhoWait(t *testing.T) {
	c := New(t.Context(), options(false))
	n := &notes{}
	c.Attach(n)
	tell(c, everywhere("echo"))
	n.take()
	c.Begin([]mesh.NodeID{node("east/n2")})
	var want []string
	for _, typeURL := range []string{"SDS", "CDS", "EDS", "LDS", "RDS"} {
		for _, v := range []string{grpcOn("east/n2"), envoyOn("east/n2"), gatewayOf("east"), gatewayOf("west")} {
			want = append(want, typeURL+" "+v+": ")
		}
	}
	if got := n.take(); !slices.Equal(got, want) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
