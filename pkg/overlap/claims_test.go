package overlap

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func prefixes(text string) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range strings.Fields(text) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

// node makes a node from "east/n1", its pod prefixes and its addresses.
func node(t testing.TB, id, pods, addresses string) mesh.Node {
	t.Helper()
	n := mesh.Node{PodCIDRs: prefixes(pods)}
	var err error
	if n.ID, err = mesh.ParseNodeID(id); err != nil {
		t.Fatal(err)
	}
	for _, a := range strings.Fields(addresses) {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	return n
}

func TestClaims(t *testing.T) {
	declares := mesh.Cluster{Name: "east", PodCIDRs: prefixes("10.1.0.0/16"), ServiceCIDRs: prefixes("10.96.0.0/12 fd00:e::/108"), NodeCIDRs: prefixes("192.168.0.0/24")}
	silent := mesh.Cluster{Name: "west"}
	holder := node(t, "west/n9", "10.2.1.0/24", "")
	holder.Prefixes = holder.PodCIDRs
	for _, tt := range []struct {
		name     string
		clusters []mesh.Cluster
		nodes    []mesh.Node
		tunnel   string
		want     []string
	}{
		{"nothing", nil, nil, "", nil},
		{"the mesh's", nil, nil, "fd00::/64 198.19.0.0/16",
			[]string{"tunnel range 198.19.0.0/16 of the mesh", "tunnel range fd00::/64 of the mesh"}},
		{"declared ranges stand for the nodes', in both families", []mesh.Cluster{declares},
			[]mesh.Node{node(t, "east/n1", "10.1.1.0/24 fd00::/64", "192.168.0.1 fd01::1")}, "",
			[]string{"pod range 10.1.0.0/16 of east", "service range 10.96.0.0/12 of east",
				"service range fd00:e::/108 of east", "node range 192.168.0.0/24 of east"}},
		{"else the nodes' own", []mesh.Cluster{silent},
			[]mesh.Node{node(t, "west/n2", "10.2.2.0/24 fd00::/64", "192.168.0.2"), node(t, "west/n1", "10.2.1.0/24", "192.168.0.1 fd01::1")}, "",
			[]string{"pod range 10.2.1.0/24 of west/n1", "pod range 10.2.2.0/24 of west/n2", "pod range fd00::/64 of west/n2",
				"node range 192.168.0.1/32 of west/n1", "node range 192.168.0.2/32 of west/n2", "node range fd01::1/128 of west/n1"}},
		{"each kind by itself", []mesh.Cluster{{Name: "west", PodCIDRs: prefixes("10.2.0.0/16")}},
			[]mesh.Node{node(t, "west/n1", "10.2.1.0/24", "192.168.0.1")}, "",
			[]string{"pod range 10.2.0.0/16 of west", "node range 192.168.0.1/32 of west/n1"}},
		{"no two with one key", []mesh.Cluster{{Name: "west", ServiceCIDRs: prefixes("10.96.0.0/12 10.96.0.0/12")}},
			[]mesh.Node{node(t, "west/n2", "10.2.1.0/24 10.2.1.0/24", "192.168.0.1"), node(t, "west/n1", "10.2.1.0/24", "192.168.0.1")}, "",
			[]string{"pod range 10.2.1.0/24 of west/n1", "service range 10.96.0.0/12 of west", "node range 192.168.0.1/32 of west/n1"}},
		{"the node that holds is named", []mesh.Cluster{silent},
			[]mesh.Node{node(t, "west/n1", "10.2.1.0/24", ""), holder}, "",
			[]string{"pod range 10.2.1.0/24 of west/n9"}},
		{"what cannot be routed is left out", []mesh.Cluster{{Name: "east", ServiceCIDRs: prefixes("0.0.0.0/0 10.1.2.3/16")}, silent},
			[]mesh.Node{node(t, "west/n1", "127.0.0.0/8 ::ffff:10.0.0.0/104", "169.254.1.1 ::1 fe80::1%eth0 ::ffff:10.0.0.1 10.0.0.1")}, "224.0.0.0/4",
			[]string{"node range 10.0.0.1/32 of west/n1"}},
		{"nodes of a cluster that is not there", []mesh.Cluster{declares},
			[]mesh.Node{node(t, "west/n1", "10.2.1.0/24", "192.168.9.1")}, "",
			[]string{"pod range 10.1.0.0/16 of east", "service range 10.96.0.0/12 of east",
				"service range fd00:e::/108 of east", "node range 192.168.0.0/24 of east"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Claims(tt.clusters, tt.nodes, prefixes(tt.tunnel))
			var text []string
			keys := map[string]bool{}
			for _, c := range got {
				text = append(text, c.String())
				keys[Key(c)] = true
				if c.Order != 0 {
					t.Errorf("%v has order %d", c, c.Order)
				}
			}
			if !slices.Equal(text, tt.want) {
				t.Errorf("got  %q\nwant %q", text, tt.want)
			}
			if len(keys) != len(got) {
				t.Errorf("%d claims have %d keys", len(got), len(keys))
			}
			if !slices.IsSortedFunc(got, mesh.Claim.Compare) {
				t.Errorf("not sorted: %v", got)
			}
		})
	}
}

func TestKey(t *testing.T) {
	c := mesh.Claim{Cluster: "east", Kind: mesh.PodRange, Node: "n1", Prefix: netip.MustParsePrefix("10.1.0.0/24"), Order: 7}
	if got, want := Key(c), "east/pod/10.1.0.0/24"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.Node, c.Order = "n2", 9
	if got, want := Key(c), "east/pod/10.1.0.0/24"; got != want {
		t.Errorf("on another node: got %q, want %q", got, want)
	}
	c = mesh.Claim{Kind: mesh.TunnelRange, Prefix: netip.MustParsePrefix("fd00::/64")}
	if got, want := Key(c), "/tunnel/fd00::/64"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func ExampleFind() {
	clusters := []mesh.Cluster{
		{Name: "east", PodCIDRs: prefixes("10.1.0.0/16"), ServiceCIDRs: prefixes("10.96.0.0/12")},
		{Name: "west", PodCIDRs: prefixes("10.1.128.0/17"), ServiceCIDRs: prefixes("10.96.0.0/12")},
	}
	claims := Claims(clusters, nil, prefixes("198.19.0.0/16"))
	for i := range claims {
		claims[i].Order = uint64(i) + 1
	}
	for _, c := range Find(claims) {
		fmt.Println(c)
	}
	// Output:
	// pod range 10.1.128.0/17 of west overlaps pod range 10.1.0.0/16 of east: the later claim yields, so nodes of west with pods in it have no IPv4 tunnels
	// service range 10.96.0.0/12 of west overlaps service range 10.96.0.0/12 of east: harmless
}
