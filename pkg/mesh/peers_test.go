package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// world is a dual-stack mesh of four clusters: east and west with two nodes,
// north, and south, which shares west's network. A node's prefixes and tunnel
// addresses name its place: west is 2, so west/n1 has 10.2.1.0/24, fd00:2:1::/64,
// 198.19.2.1 and fd19::2:1.
//
// claims and conflicts are lines: "3 west pod 10.2.0.0/16" and "yields 1 3".
func world(t *testing.T, claims, conflicts string) Topology {
	t.Helper()
	top := Topology{TunnelRanges: prefixes("198.19.0.0/16", "fd19::/64")}
	clusters := []string{"", "east", "west", "north", "south"}
	networks := []string{"", "east", "vpc", "north", "vpc"}
	for i, name := range clusters {
		if name == "" {
			continue
		}
		top.Clusters = append(top.Clusters, Cluster{Name: name, Network: networks[i]})
		for n := range 2 {
			if n++; n == 2 && (name == "north" || name == "south") {
				continue
			}
			pods := prefixes(fmt.Sprintf("10.%d.%d.0/24", i, n), fmt.Sprintf("fd00:%d:%d::/64", i, n))
			top.Nodes = append(top.Nodes, Node{
				ID: NodeID{name, fmt.Sprintf("n%d", n)}, PodCIDRs: pods, Prefixes: pods,
				Key:         PublicKey{byte(i), byte(n)},
				Endpoints:   []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("192.168.%d.%d:51830", i, n))},
				TunnelAddrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("198.19.%d.%d", i, n)), netip.MustParseAddr(fmt.Sprintf("fd19::%d:%d", i, n))},
			})
		}
	}
	slices.SortFunc(top.Clusters, Cluster.Compare)
	slices.SortFunc(top.Nodes, func(a, b Node) int { return a.ID.Compare(b.ID) })

	byOrder := map[uint64]Claim{}
	for line := range strings.Lines(claims) {
		var c Claim
		var kind, prefix string
		if _, err := fmt.Sscan(line, &c.Order, &c.Cluster, &kind, &prefix); err != nil {
			t.Fatalf("claim %q: %v", line, err)
		}
		c.Cluster, c.Node, _ = strings.Cut(strings.TrimPrefix(c.Cluster, "mesh"), "/")
		if err := c.Kind.UnmarshalText([]byte(kind)); err != nil {
			t.Fatal(err)
		}
		c.Prefix = netip.MustParsePrefix(prefix)
		top.Claims, byOrder[c.Order] = append(top.Claims, c), c
	}
	for line := range strings.Lines(conflicts) {
		var effect string
		var first, second uint64
		if _, err := fmt.Sscan(line, &effect, &first, &second); err != nil {
			t.Fatalf("conflict %q: %v", line, err)
		}
		x := Conflict{First: byOrder[first], Second: byOrder[second]}
		if err := x.Effect.UnmarshalText([]byte(effect)); err != nil {
			t.Fatal(err)
		}
		top.Conflicts = append(top.Conflicts, x)
	}
	return top
}

// showPeers reads "west/n1:46", with the families that the peer takes part in.
func showPeers(t *testing.T, top Topology, cluster string) string {
	t.Helper()
	var out []string
	for _, p := range Peers(top, cluster) {
		s := p.Node.String() + ":"
		for _, f := range Families {
			of := slices.ContainsFunc(p.Prefixes, func(q netip.Prefix) bool { return FamilyOf(q.Addr()) == f })
			if p.Has(f) != of {
				t.Errorf("%v has %v prefixes %v, and tunnel addresses %v", p.Node, f, p.Prefixes, p.TunnelAddrs)
			}
			if p.Has(f) {
				s += fmt.Sprint(int(f))
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// showBarriers reads "west/n1!4" for each family that is barred on a node.
func showBarriers(top Topology, cluster string) string {
	var out []string
	for _, c := range NodeConfigs(top, cluster) {
		for _, b := range c.Barriers {
			out = append(out, fmt.Sprintf("%v!%d", c.Node, b.Family))
		}
	}
	return strings.Join(out, " ")
}

const (
	toEast  = "east/n1:46 east/n2:46"
	toWest  = "west/n1:46 west/n2:46"
	toNorth = "north/n1:46"
	toSouth = "south/n1:46"
)

func TestPeersAndBarriers(t *testing.T) {
	for _, c := range []struct {
		name              string
		claims, conflicts string
		change            func(*Topology)
		// peers and barred are by cluster; where one is missing it is that of a mesh
		// without conflicts.
		peers  map[string]string
		barred map[string]string
	}{
		{name: "nothing conflicts"},
		{
			name:      "harmless overlaps are only listed",
			claims:    "1 east service 10.96.0.0/12\n2 west service 10.96.0.0/12\n3 north node 10.96.0.0/24",
			conflicts: "listed 1 2\nlisted 1 3",
		},
		{
			name:      "the nodes in a yielded range have no tunnels for the family",
			claims:    "1 north pod 10.2.1.0/25\n2 west pod 10.2.1.0/24\n3 west pod 10.2.2.0/24",
			conflicts: "yields 1 2",
			peers: map[string]string{
				"east":  "north/n1:46 " + toSouth + " west/n1:6 west/n2:46",
				"north": toEast + " " + toSouth + " west/n1:6 west/n2:46",
			},
			barred: map[string]string{"west": "west/n1!4"},
		},
		{
			name:      "IPv6 yields apart from IPv4",
			claims:    "1 north pod fd00:2::/32\n2 west pod fd00:2::/32",
			conflicts: "yields 1 2",
			peers: map[string]string{
				"east":  "north/n1:46 " + toSouth + " west/n1:4 west/n2:4",
				"north": toEast + " " + toSouth + " west/n1:4 west/n2:4",
			},
			barred: map[string]string{"west": "west/n1!6 west/n2!6"},
		},
		{
			name:      "both families yield: no peer is left",
			claims:    "1 north pod fd00:2::/32\n2 north pod 10.2.0.0/16\n3 west pod 10.2.0.0/16\n4 west pod fd00:2::/32",
			conflicts: "yields 2 3\nyields 1 4",
			peers:     map[string]string{"east": "north/n1:46 " + toSouth, "north": toEast + " " + toSouth},
			barred:    map[string]string{"west": "west/n1!4 west/n1!6 west/n2!4 west/n2!6"},
		},
		{
			// A claim that yields names one cluster: what another has inside the same
			// prefix may be established.
			name:      "two clusters yield the same prefix",
			claims:    "1 north pod 10.0.0.0/8\n2 east pod 10.1.0.0/16\n3 west pod 10.1.0.0/16",
			conflicts: "yields 1 2\nyields 1 3\nyields 2 3",
			peers: map[string]string{
				"west":  "east/n1:6 east/n2:6 " + toNorth,
				"north": "east/n1:6 east/n2:6 " + toSouth + " " + toWest,
				"south": "east/n1:6 east/n2:6 " + toNorth,
			},
			barred: map[string]string{"east": "east/n1!4 east/n2!4"},
		},
		{
			name:      "a node's own claim that yields spares another node's inside it",
			claims:    "1 west/n1 pod 10.2.1.0/24\n2 north pod 10.2.3.0/24\n3 west/n2 pod 10.2.0.0/16",
			conflicts: "yields 2 3",
		},
		{
			name:      "a pod range over another cluster's services parts the pair, both ways",
			claims:    "1 east service 10.2.0.0/16\n2 west pod 10.2.0.0/16",
			conflicts: "pair-apart 1 2",
			peers: map[string]string{
				"east": "north/n1:46 " + toSouth + " west/n1:6 west/n2:6",
				"west": "east/n1:6 east/n2:6 " + toNorth,
			},
		},
		{
			name:      "the same, the other way round",
			claims:    "1 east pod 10.2.0.0/16\n2 west node 10.2.0.0/24",
			conflicts: "pair-apart 1 2",
			peers: map[string]string{
				"east": "north/n1:46 " + toSouth + " west/n1:6 west/n2:6",
				"west": "east/n1:6 east/n2:6 " + toNorth,
			},
		},
		{
			name:      "apart in both families",
			claims:    "1 east pod 10.2.0.0/16\n2 west node 10.2.0.0/24\n3 west pod fd00:2::/32\n4 east service fd00:2::/112",
			conflicts: "pair-apart 1 2\npair-apart 3 4",
			peers:     map[string]string{"east": "north/n1:46 " + toSouth, "west": toNorth},
		},
		{
			name:      "a service or node range over the tunnel range costs that cluster its tunnels",
			claims:    "1 mesh tunnel 198.19.0.0/16\n2 west service 198.18.0.0/15",
			conflicts: "no-tunnels 1 2",
			peers: map[string]string{
				"east":  "north/n1:46 " + toSouth + " west/n1:6 west/n2:6",
				"north": toEast + " " + toSouth + " west/n1:6 west/n2:6",
				"west":  "east/n1:6 east/n2:6 north/n1:6",
			},
			barred: map[string]string{"west": "west/n1!4 west/n2!4"},
		},
		{
			name:      "the same where the tunnel range came later",
			claims:    "1 west node 198.19.0.0/24\n2 mesh tunnel 198.19.0.0/16",
			conflicts: "no-tunnels 1 2",
			peers: map[string]string{
				"east":  "north/n1:46 " + toSouth + " west/n1:6 west/n2:6",
				"north": toEast + " " + toSouth + " west/n1:6 west/n2:6",
				"west":  "east/n1:6 east/n2:6 north/n1:6",
			},
			barred: map[string]string{"west": "west/n1!4 west/n2!4"},
		},
		{
			name:      "a tunnel range that yields ends the family for all",
			claims:    "1 west pod 198.19.0.0/24\n2 mesh tunnel 198.19.0.0/16",
			conflicts: "yields 1 2",
			peers: map[string]string{
				"east":  "north/n1:6 south/n1:6 west/n1:6 west/n2:6",
				"north": "east/n1:6 east/n2:6 south/n1:6 west/n1:6 west/n2:6",
				"south": "east/n1:6 east/n2:6 north/n1:6",
				"west":  "east/n1:6 east/n2:6 north/n1:6",
			},
			barred: map[string]string{"east": "east/n1!4 east/n2!4", "north": "north/n1!4", "south": "south/n1!4", "west": "west/n1!4 west/n2!4"},
		},
		{
			name: "a node without an agent is nobody's peer",
			change: func(top *Topology) {
				n, _ := top.Node(NodeID{"west", "n1"})
				n.Key, n.Endpoints, n.TunnelAddrs = PublicKey{}, nil, nil
			},
			peers: map[string]string{
				"east":  "north/n1:46 " + toSouth + " west/n2:46",
				"north": toEast + " " + toSouth + " west/n2:46",
			},
			barred: map[string]string{"west": "west/n1!4 west/n1!6"},
		},
		{
			name: "a node with a tunnel address of one family has tunnels of that one",
			change: func(top *Topology) {
				n, _ := top.Node(NodeID{"west", "n1"})
				n.TunnelAddrs = n.TunnelAddrs[:1]
			},
			peers: map[string]string{
				"east":  "north/n1:46 " + toSouth + " west/n1:4 west/n2:46",
				"north": toEast + " " + toSouth + " west/n1:4 west/n2:46",
			},
			barred: map[string]string{"west": "west/n1!6"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			top := world(t, c.claims, c.conflicts)
			if c.change != nil {
				c.change(&top)
			}
			all := map[string]string{
				"east":  "north/n1:46 " + toSouth + " " + toWest,
				"north": toEast + " " + toSouth + " " + toWest,
				"south": toEast + " " + toNorth,
				"west":  toEast + " " + toNorth,
			}
			for cluster, want := range all {
				if w, ok := c.peers[cluster]; ok {
					want = w
				}
				if got := showPeers(t, top, cluster); got != want {
					t.Errorf("peers of %s: got  %s\nwant %s", cluster, got, want)
				}
				if got := showBarriers(top, cluster); got != c.barred[cluster] {
					t.Errorf("barriers of %s: got %q, want %q", cluster, got, c.barred[cluster])
				}
			}
		})
	}
}

func TestPeerHoldsWhatTheNodeMayHold(t *testing.T) {
	top := world(t, "", "")
	n, _ := top.Node(NodeID{"west", "n1"})
	n.PodCIDRs = prefixes("10.2.1.0/24", "10.9.0.0/24", "fd00:2:1::/64")
	n.Prefixes = prefixes("10.2.1.0/24", "fd00:2:1::/64")
	n.Refused = []RefusedPrefix{{Prefix: prefixes("10.9.0.0/24")[0], Reason: ReasonOutsideRange, Detail: "x"}}

	peers := Peers(top, "east")
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.Node == n.ID })
	want := Peer{Node: n.ID, Key: n.Key, Endpoints: n.Endpoints, TunnelAddrs: n.TunnelAddrs, Prefixes: n.Prefixes}
	if !peers[i].Equal(want) {
		t.Errorf("got %v, want %v", peers[i], want)
	}
	if got := fmt.Sprint(peers[i].AllowedIPs()); got != "[10.2.1.0/24 198.19.2.1/32 fd00:2:1::/64 fd19::2:1/128]" {
		t.Errorf("allowed IPs: %s", got)
	}
	c := NodeConfigs(top, "west")[0]
	if c.Node != n.ID || !slices.Equal(c.Prefixes, n.Prefixes) || !slices.Equal(c.Refused, n.Refused) || len(c.Barriers) != 0 {
		t.Errorf("node config: %+v", c)
	}
	// Both ends must come to the same digest from what each knows.
	both := func(Family) bool { return true }
	if Digest(n.Key, c.AllowedIPs(both)) != Digest(want.Key, want.AllowedIPs()) {
		t.Error("the node and its peer disagree on what is allowed")
	}
}

func TestOnlyDoesNotTouchThePeer(t *testing.T) {
	p := Peer{TunnelAddrs: []netip.Addr{netip.MustParseAddr("198.19.0.2"), netip.MustParseAddr("fd19::2")}, Prefixes: prefixes("10.1.0.0/24", "fd00::/64")}
	before := fmt.Sprint(p)
	for _, c := range []struct {
		f    func(Family) bool
		want string
		ok   bool
	}{
		{func(f Family) bool { return f == IPv4 }, "[10.1.0.0/24 198.19.0.2/32]", true},
		{func(f Family) bool { return f == IPv6 }, "[fd00::/64 fd19::2/128]", true},
		{func(Family) bool { return true }, "[10.1.0.0/24 198.19.0.2/32 fd00::/64 fd19::2/128]", true},
		{func(Family) bool { return false }, "[]", false},
	} {
		q, ok := p.Only(c.f)
		if got := fmt.Sprint(q.AllowedIPs()); got != c.want || ok != c.ok {
			t.Errorf("got %s %t, want %s %t", got, ok, c.want, c.ok)
		}
		if after := fmt.Sprint(p); after != before {
			t.Fatalf("was changed: %s, before %s", after, before)
		}
	}
}

func TestBars(t *testing.T) {
	c := NodeConfig{Barriers: []Barrier{{Family: IPv6, Reason: ReasonOverlap, Detail: "x"}}}
	if c.Bars(IPv4) != nil || c.Bars(IPv6) == nil || c.Bars(IPv6).Detail != "x" {
		t.Errorf("got %v, %v", c.Bars(IPv4), c.Bars(IPv6))
	}
}

func TestPeersOfAClusterThatIsNotThere(t *testing.T) {
	top := world(t, "", "")
	if p := Peers(top, "x"); len(p) != 0 {
		t.Errorf("peers: %v", p)
	}
	if n := NodeConfigs(top, "x"); len(n) != 0 {
		t.Errorf("nodes: %v", n)
	}
	if _, ok := ClusterConfigOf(top, "x"); ok {
		t.Error("it has a configuration")
	}
	if _, ok := top.Node(NodeID{"west", "n9"}); ok {
		t.Error("a node that is not there was found")
	}
}
