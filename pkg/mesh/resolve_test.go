package mesh

import (
	"net/netip"
	"strings"
	"testing"
)

// paths is a mesh to resolve Paths in: east and west apart, near in one Network
// with east, south inside east's range, and clash with services in west's pods.
type paths struct {
	t     Topology
	reach Reachability
}

func registered(cluster, name, pods, addr string, last byte) Node {
	n := Node{
		ID: NodeID{cluster, name}, Key: PublicKey{last}, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		TunnelAddrs: []netip.Addr{netip.AddrFrom4([4]byte{198, 19, 0, last})},
	}
	if pods != "" {
		n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(pods)}
		n.Prefixes = n.PodCIDRs
	}
	return n
}

func newPaths() *paths {
	claim := func(cluster string, kind ClaimKind, p string, order uint64) Claim {
		return Claim{Cluster: cluster, Kind: kind, Prefix: netip.MustParsePrefix(p), Order: order}
	}
	east, west := claim("east", PodRange, "10.1.0.0/16", 1), claim("west", PodRange, "10.2.0.0/16", 2)
	south, clash := claim("south", PodRange, "10.1.128.0/17", 3), claim("clash", ServiceRange, "10.2.64.0/24", 5)
	gateway := func(cluster, addr string) Gateway {
		return Gateway{Cluster: cluster, Name: "flatmesh-system/gw", Addr: netip.MustParseAddr(addr), Ports: []uint16{15443}, StandbyPorts: []uint16{15447}}
	}
	p := &paths{reach: Reachability{}}
	p.t = Topology{
		Clusters: []Cluster{{Name: "bare", Network: "bare"}, {Name: "clash", Network: "clash"}, {Name: "east", Network: "shared"}, {Name: "near", Network: "shared"}, {Name: "south", Network: "south"}, {Name: "west", Network: "west"}},
		Nodes: []Node{
			registered("bare", "n1", "10.5.1.0/24", "192.168.5.1", 5), registered("clash", "n1", "10.6.1.0/24", "192.168.6.1", 6),
			registered("east", "n1", "10.1.1.0/24", "192.168.1.1", 1), registered("near", "n1", "10.4.1.0/24", "192.168.4.1", 4),
			registered("south", "n1", "10.1.129.0/24", "192.168.3.1", 3), registered("west", "n1", "10.2.1.0/24", "192.168.2.1", 2),
			registered("west", "n2", "", "192.168.2.2", 22), registered("west", "n3", "10.2.3.0/24", "192.168.2.3", 0),
		},
		Claims:    []Claim{east, west, south, clash, claim("east", NodeRange, "192.168.1.0/24", 6), claim("east", ServiceRange, "10.96.0.0/16", 7)},
		Conflicts: []Conflict{{Effect: Yields, First: east, Second: south}, {Effect: PairApart, First: west, Second: clash}},
		Gateways:  []Gateway{gateway("clash", "192.168.6.100"), gateway("east", "192.168.1.100"), gateway("near", "192.168.4.100"), gateway("south", "192.168.3.100"), gateway("west", "192.168.2.100")},
	}
	n4 := registered("west", "n4", "10.9.1.0/24", "192.168.2.4", 24)
	n4.Prefixes, n4.Refused = nil, []RefusedPrefix{{Prefix: n4.PodCIDRs[0], Reason: ReasonOutsideRange}}
	p.t.Nodes = append(p.t.Nodes, n4)
	p.says("east/n1", "west/n1", Up, ReasonTunnel)
	p.says("west/n1", "east/n1", Up, ReasonTunnel)
	return p
}

func nodeOf(s string) NodeID {
	cluster, name, _ := strings.Cut(s, "/")
	return NodeID{Cluster: cluster, Name: name}
}

func (p *paths) says(from, to string, s TunnelState, r Reason) {
	if p.reach[nodeOf(from)] == nil {
		p.reach[nodeOf(from)] = map[NodeID]TunnelStatus{}
	}
	p.reach[nodeOf(from)][nodeOf(to)] = TunnelStatus{State: s, Reason: r}
}

func (p *paths) node(s string) *Node {
	n, _ := p.t.Node(nodeOf(s))
	return n
}

// TestResolve goes through the rules row by row, in their order.
func TestResolve(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(*paths)
		from, to string
		addr     string
		target   func(*Target)
		kind     PathKind
		reason   Reason
		wanted   Reason // where it is not reason
	}{
		{name: "one cluster", from: "east/n1", to: "east/n1", addr: "10.1.1.5", kind: Direct, reason: ReasonLocal},
		{name: "one cluster comes before not exported", from: "east/n1", to: "east/n1", addr: "10.1.1.5", target: func(t *Target) { t.Exported = false }, kind: Direct, reason: ReasonLocal},
		{name: "one cluster that yields", from: "south/n1", to: "south/n1", addr: "10.1.129.5", kind: Direct, reason: ReasonLocal},
		{name: "not exported", from: "east/n1", to: "west/n1", addr: "10.2.1.5", target: func(t *Target) { t.Exported = false }, kind: None, reason: ReasonNotExported},
		{name: "not exported comes before native", from: "east/n1", to: "near/n1", addr: "10.4.1.5", target: func(t *Target) { t.Exported = false }, kind: None, reason: ReasonNotExported},
		{name: "a yielded claim covers the endpoint", from: "west/n1", to: "south/n1", addr: "10.1.129.5", kind: ViaGateway, reason: ReasonOverlap},
		{name: "a yielded claim covers the client", from: "south/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonOverlap},
		{name: "the clusters conflict", from: "clash/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonOverlap},
		{name: "overlap comes before native", change: func(p *paths) { p.t.Clusters[4].Network = "west" }, from: "west/n1", to: "south/n1", addr: "10.1.129.5", kind: ViaGateway, reason: ReasonOverlap},
		{name: "one network", from: "east/n1", to: "near/n1", addr: "10.4.1.5", kind: Direct, reason: ReasonNative},
		{name: "one network, whatever the node", from: "east/n1", to: "near/none", addr: "10.4.7.5", kind: Direct, reason: ReasonNative},
		{name: "one network, plaintext UDP", from: "east/n1", to: "near/n1", addr: "10.4.1.5", target: func(t *Target) { t.TLS, t.TCP = false, false }, kind: Direct, reason: ReasonNative},
		{name: "host network", from: "east/n1", to: "west/n1", addr: "192.168.2.1", kind: ViaGateway, reason: ReasonHostNetwork},
		{name: "a borrowed block", from: "east/n1", to: "west/n1", addr: "10.2.77.5", kind: ViaGateway, reason: ReasonNotRouted},
		{name: "an unknown node", from: "east/n1", to: "west/gone", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonNotRouted},
		{name: "a node without prefix", from: "east/n1", to: "west/n2", addr: "10.2.2.5", kind: ViaGateway, reason: ReasonNoPrefix},
		{name: "another family than the node's", from: "east/n1", to: "west/n1", addr: "fd00::5", kind: None, reason: ReasonNoTLS, wanted: ReasonNoPrefix, target: func(t *Target) { t.TLS = false }},
		{name: "outside the declared range", from: "east/n1", to: "west/n4", addr: "10.9.1.5", kind: ViaGateway, reason: ReasonOutsideRange},
		{name: "up", from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: Direct, reason: ReasonTunnel},
		{name: "up, plaintext", from: "east/n1", to: "west/n1", addr: "10.2.1.5", target: func(t *Target) { t.TLS = false }, kind: Direct, reason: ReasonTunnel},
		{name: "up, UDP", from: "east/n1", to: "west/n1", addr: "10.2.1.5", target: func(t *Target) { t.TCP = false }, kind: Direct, reason: ReasonTunnel},
		{name: "up while the other end is not connected", change: func(p *paths) { delete(p.reach, nodeOf("west/n1")) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: Direct, reason: ReasonTunnel},
		{name: "up while the other end is not sure", change: func(p *paths) { p.says("west/n1", "east/n1", Unknown, ReasonProbing) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: Direct, reason: ReasonTunnel},
		{name: "up while the other end says down", change: func(p *paths) { p.says("west/n1", "east/n1", Down, ReasonProbeLost) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonProbeLost},
		{name: "down", change: func(p *paths) { p.says("east/n1", "west/n1", Down, ReasonForwardBlocked) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonForwardBlocked},
		{name: "not judged", change: func(p *paths) { delete(p.reach[nodeOf("east/n1")], nodeOf("west/n1")) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonProbing},
		{name: "no report", change: func(p *paths) { delete(p.reach, nodeOf("east/n1")) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonNoReport},
		{name: "no agent there", from: "east/n1", to: "west/n3", addr: "10.2.3.5", kind: ViaGateway, reason: ReasonNoAgent},
		{name: "no agent here", from: "west/n3", to: "east/n1", addr: "10.1.1.5", kind: ViaGateway, reason: ReasonNoAgent},
		{name: "no agent here comes first", from: "west/", to: "east/n1", addr: "10.1.1.5", kind: ViaGateway, reason: ReasonNoAgent},
		{name: "an old report of a node that has gone", change: func(p *paths) { p.node("west/n1").Key = PublicKey{} }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonNoAgent},
		{name: "no tunnel address", change: func(p *paths) { p.node("west/n1").TunnelAddrs = nil }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", kind: ViaGateway, reason: ReasonNoTunnelAddr},
		{name: "down, plaintext", change: func(p *paths) { p.says("east/n1", "west/n1", Down, ReasonProbeLost) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", target: func(t *Target) { t.TLS = false }, kind: None, reason: ReasonNoTLS, wanted: ReasonProbeLost},
		{name: "down, UDP", change: func(p *paths) { p.says("east/n1", "west/n1", Down, ReasonProbeLost) }, from: "east/n1", to: "west/n1", addr: "10.2.1.5", target: func(t *Target) { t.TLS, t.TCP = false, false }, kind: None, reason: ReasonNotTCP, wanted: ReasonProbeLost},
		{name: "no gateway", from: "east/n1", to: "bare/n1", addr: "10.5.1.5", kind: None, reason: ReasonNoGateway, wanted: ReasonProbing},
		{name: "overlap without gateway", change: func(p *paths) { p.t.Gateways = nil }, from: "west/n1", to: "south/n1", addr: "10.1.129.5", kind: None, reason: ReasonNoGateway, wanted: ReasonOverlap},
		{name: "the gateway's address is one of the client's own pods", change: func(p *paths) { p.t.Gateways[4].Addr = netip.MustParseAddr("10.1.7.7") }, from: "east/n1", to: "west/n2", addr: "10.2.2.5", kind: None, reason: ReasonGatewayUnroutable, wanted: ReasonNoPrefix},
		{name: "the gateway's address is one of the client's own services", change: func(p *paths) { p.t.Gateways[4].Addr = netip.MustParseAddr("10.96.7.7") }, from: "east/n1", to: "west/n2", addr: "10.2.2.5", kind: None, reason: ReasonGatewayUnroutable, wanted: ReasonNoPrefix},
		{name: "the gateway's address is one of another's pods", change: func(p *paths) { p.t.Gateways[4].Addr = netip.MustParseAddr("10.4.7.7") }, from: "east/n1", to: "west/n2", addr: "10.2.2.5", kind: ViaGateway, reason: ReasonNoPrefix},
		{name: "the gateway is of a family that the client has not", change: func(p *paths) { p.t.Gateways[4].Addr = netip.MustParseAddr("fd00::1") }, from: "east/n1", to: "west/n2", addr: "10.2.2.5", kind: None, reason: ReasonGatewayUnroutable, wanted: ReasonNoPrefix},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPaths()
			if c.change != nil {
				c.change(p)
			}
			to := Target{Addr: netip.MustParseAddr(c.addr), Exported: true, TLS: true, TCP: true}
			to.Node = nodeOf(c.to)
			if c.target != nil {
				c.target(&to)
			}
			got := Resolve(p.t, p.reach, nodeOf(c.from), to)
			wanted := c.wanted
			if wanted == "" {
				wanted = c.reason
			}
			if got.Kind != c.kind || got.Reason != c.reason || got.Wanted != wanted {
				t.Errorf("got %v, %s, wanted for %s; want %v, %s, wanted for %s", got.Kind, got.Reason, got.Wanted, c.kind, c.reason, wanted)
			}
			if (got.Wanted == ReasonOverlap) != (got.Detail() != "") {
				t.Errorf("%s says %q", got.Wanted, got.Detail())
			}
		})
	}
}

// TestGatewaysInUse: a gateway that was lost is left out while another remains.
func TestGatewaysInUse(t *testing.T) {
	p := newPaths()
	second := p.t.Gateways[4]
	second.Addr = netip.MustParseAddr("192.168.2.101")
	p.t.Gateways = append(p.t.Gateways, second)
	for _, c := range []struct {
		lost [2]bool
		want int
	}{{[2]bool{false, false}, 2}, {[2]bool{true, false}, 1}, {[2]bool{false, true}, 1}, {[2]bool{true, true}, 2}} {
		p.t.Gateways[4].Lost, p.t.Gateways[5].Lost = c.lost[0], c.lost[1]
		got, reason := NewResolver(p.t).Gateways(nodeOf("east/n1"), "west")
		if len(got) != c.want || reason != "" {
			t.Errorf("lost %v: got %v, %q", c.lost, got, reason)
		}
		if len(got) == 1 && got[0].Lost {
			t.Errorf("lost %v: the lost one is used", c.lost)
		}
	}
	// One that the client cannot use is not one that remains.
	p.t.Gateways[4].Lost, p.t.Gateways[5].Lost = true, false
	p.t.Gateways[5].Addr = netip.MustParseAddr("10.1.9.9")
	if got, reason := NewResolver(p.t).Gateways(nodeOf("east/n1"), "west"); len(got) != 1 || !got[0].Lost || reason != "" {
		t.Errorf("the last usable one is left out: %v, %q", got, reason)
	}
}

// TestClass: endpoints of one Class have one Path, from every node and whatever
// the service allows.
func TestClass(t *testing.T) {
	p := newPaths()
	p.says("west/n1", "clash/n1", Up, ReasonTunnel)
	r := NewResolver(p.t)
	addrs := []string{"10.2.1.5", "10.2.1.6", "192.168.2.1", "10.2.77.5", "10.1.129.5", "10.1.200.1", "10.4.1.5", "fd00::5", "10.9.1.5"}
	seen := map[Class]map[NodeID]Path{}
	for _, n := range append(p.t.Nodes, Node{ID: NodeID{"west", ""}}, Node{ID: NodeID{"south", "x"}}) {
		for _, addr := range addrs {
			to := Target{Node: n.ID, Addr: netip.MustParseAddr(addr), Exported: true, TLS: true, TCP: true}
			c := r.Class(to)
			for _, from := range p.t.Nodes {
				got := r.Path(p.reach, from.ID, to)
				if seen[c] == nil {
					seen[c] = map[NodeID]Path{}
				}
				if was, ok := seen[c][from.ID]; ok && was != got {
					t.Errorf("%v from %v: %v and %v in one class", to, from.ID, was, got)
				}
				seen[c][from.ID] = got
			}
		}
	}
	if len(seen) < len(p.t.Nodes) {
		t.Errorf("only %d classes", len(seen))
	}
}
