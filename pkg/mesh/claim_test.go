package mesh

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func TestConflictSaysWhatFollows(t *testing.T) {
	claim := func(cluster, node string, kind ClaimKind, p string, order uint64) Claim {
		return Claim{Cluster: cluster, Node: node, Kind: kind, Prefix: netip.MustParsePrefix(p), Order: order}
	}
	mesh := claim("", "", TunnelRange, "198.19.0.0/16", 1)
	pods := claim("east", "", PodRange, "10.1.0.0/16", 2)
	for _, c := range []struct {
		x    Conflict
		want string
	}{
		{Conflict{Yields, pods, claim("west", "n1", PodRange, "10.1.1.0/24", 3)},
			"pod range 10.1.1.0/24 of west/n1 overlaps pod range 10.1.0.0/16 of east: the later claim yields, so nodes of west with pods in it have no IPv4 tunnels"},
		{Conflict{Yields, claim("east", "", PodRange, "198.19.4.0/24", 1), claim("", "", TunnelRange, "198.19.0.0/16", 3)},
			"tunnel range 198.19.0.0/16 of the mesh overlaps pod range 198.19.4.0/24 of east: the later claim yields, so there are no IPv4 tunnels at all"},
		{Conflict{PairApart, pods, claim("west", "", ServiceRange, "10.0.0.0/8", 3)},
			"service range 10.0.0.0/8 of west overlaps pod range 10.1.0.0/16 of east: no IPv4 tunnels between east and west"},
		{Conflict{NoTunnels, mesh, claim("west", "", NodeRange, "198.19.7.0/24", 3)},
			"node range 198.19.7.0/24 of west overlaps tunnel range 198.19.0.0/16 of the mesh: west has no IPv4 tunnels"},
		{Conflict{NoTunnels, claim("west", "", NodeRange, "fd19::/64", 1), claim("", "", TunnelRange, "fd19::/64", 3)},
			"tunnel range fd19::/64 of the mesh overlaps node range fd19::/64 of west: west has no IPv6 tunnels"},
		{Conflict{Listed, claim("east", "", ServiceRange, "10.96.0.0/12", 1), claim("west", "", ServiceRange, "10.96.0.0/12", 3)},
			"service range 10.96.0.0/12 of west overlaps service range 10.96.0.0/12 of east: harmless"},
	} {
		if got := c.x.String(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		b, err := json.Marshal(c.x)
		if err != nil {
			t.Fatal(err)
		}
		var back Conflict
		if err := json.Unmarshal(b, &back); err != nil || back != c.x {
			t.Errorf("%s comes back as %v (%v)", b, back, err)
		}
	}
}

func TestClaimOrder(t *testing.T) {
	p := netip.MustParsePrefix
	sorted := []Claim{
		{Order: 0, Cluster: "b", Kind: PodRange, Prefix: p("10.0.0.0/8")},
		{Order: 1, Cluster: "a", Kind: PodRange, Prefix: p("10.0.0.0/8")},
		{Order: 1, Cluster: "a", Kind: PodRange, Prefix: p("10.0.0.0/16")},
		{Order: 1, Cluster: "a", Kind: PodRange, Prefix: p("10.0.0.0/16"), Node: "n1"},
		{Order: 1, Cluster: "a", Kind: PodRange, Prefix: p("fd00::/8")},
		{Order: 1, Cluster: "a", Kind: ServiceRange, Prefix: p("10.0.0.0/8")},
		{Order: 1, Cluster: "b", Kind: PodRange, Prefix: p("10.0.0.0/8")},
		{Order: 2, Cluster: "a", Kind: PodRange, Prefix: p("10.0.0.0/8")},
	}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := a.Compare(b); got != compareInts(i, j) {
				t.Errorf("Compare(%v, %v) = %d", a, b, got)
			}
		}
	}
}
