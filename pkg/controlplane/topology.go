package controlplane

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/overlap"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// facts is everything that a Topology is computed from.
type facts struct {
	clusters      []mesh.Cluster
	nodes         []mesh.Node // Kubernetes' part alone
	registrations map[mesh.NodeID]store.Registration
	tunnelRanges  []netip.Prefix
	gateways      []mesh.Gateway
}

// prefixKey names a node's hold on a prefix in the order of first registration.
// No cluster's name begins with "@", so it is no claim's key.
func prefixKey(node mesh.NodeID, p netip.Prefix) string {
	return "@prefix/" + node.String() + "/" + p.String()
}

// ownedBy reports whether an order's key is a cluster's claim or that of one of
// its nodes.
func ownedBy(key, cluster string) bool {
	return strings.HasPrefix(strings.TrimPrefix(key, "@prefix/"), cluster+"/")
}

// buildTopology computes the Topology. order gives the sequence of first registration
// for each of the keys, assigning it where there is none.
func buildTopology(f facts, order func(keys []string) (map[string]uint64, error)) (mesh.Topology, error) {
	t := mesh.Topology{Clusters: slices.Clone(f.clusters), Nodes: slices.Clone(f.nodes), TunnelRanges: f.tunnelRanges, Gateways: f.gateways}
	slices.SortFunc(t.Clusters, mesh.Cluster.Compare)
	slices.SortFunc(t.Nodes, func(a, b mesh.Node) int { return a.ID.Compare(b.ID) })

	// Who holds a node's prefix is settled first: claims name the holder.
	var keys []string
	for i := range t.Nodes {
		for _, p := range t.Nodes[i].PodCIDRs {
			keys = append(keys, prefixKey(t.Nodes[i].ID, p))
		}
	}
	holds, err := order(keys)
	if err != nil {
		return mesh.Topology{}, err
	}
	for _, c := range t.Clusters {
		overlap.AdmitPrefixes(c, t.NodesOf(c.Name), func(n mesh.NodeID, p netip.Prefix) uint64 {
			return holds[prefixKey(n, p)]
		})
	}

	// The mesh's own range sorts first, so that it is numbered before any
	// cluster's.
	t.Claims = overlap.Claims(t.Clusters, t.Nodes, f.tunnelRanges)
	keys = keys[:0]
	for _, c := range t.Claims {
		keys = append(keys, overlap.Key(c))
	}
	orders, err := order(keys)
	if err != nil {
		return mesh.Topology{}, err
	}
	for i := range t.Claims {
		t.Claims[i].Order = orders[overlap.Key(t.Claims[i])]
	}
	slices.SortFunc(t.Claims, mesh.Claim.Compare)
	t.Conflicts = overlap.Find(t.Claims)

	covered := coverOf(t.Claims)
	for i := range t.Nodes {
		n := &t.Nodes[i]
		r, ok := f.registrations[n.ID]
		if !ok {
			continue
		}
		c, _ := t.Cluster(n.ID.Cluster)
		n.Key, n.TunnelAddrs = r.Key, tunnelAddrs(r, n, c)
		n.Endpoints = candidates(r, n.Addresses, covered)
	}
	return t, nil
}

// tunnelAddrs returns the registration's addresses of the families in which the
// node has pods: a tunnel of another family would carry nothing. A node that has
// no prefix, whose own processes may still reach remote pods, goes by its
// cluster's declaration.
func tunnelAddrs(r store.Registration, n *mesh.Node, c *mesh.Cluster) []netip.Addr {
	pods := n.PodCIDRs
	if len(pods) == 0 {
		pods = c.PodCIDRs
	}
	if len(pods) == 0 {
		return r.TunnelAddrs
	}
	return slices.DeleteFunc(slices.Clone(r.TunnelAddrs), func(a netip.Addr) bool {
		return !slices.ContainsFunc(pods, func(p netip.Prefix) bool { return mesh.FamilyOf(p.Addr()) == mesh.FamilyOf(a) })
	})
}

// candidates lists where a node's WireGuard may be reached: what its agent says
// first, then the addresses that its cluster knows. What the agent said is judged
// anew each time: a claim may have come after it.
func candidates(r store.Registration, addrs []netip.Addr, covered cover) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(r.Endpoints)+len(addrs))
	for _, e := range r.Endpoints {
		if _, ok := covered.admits(e.Addr(), addrs); ok {
			out = append(out, e)
		}
	}
	for _, a := range addrs {
		if ap := netip.AddrPortFrom(a, r.ListenPort); !slices.Contains(out, ap) {
			out = append(out, ap)
		}
	}
	return out
}

// expected counts the tunnels that there should be: directed pairs of
// registered nodes that hold each other in at least one family.
func expected(t mesh.Topology) int {
	total := 0
	for _, c := range t.Clusters {
		var peers [4]int // by families: 1 is IPv4, 2 is IPv6, 3 both
		for _, p := range mesh.Peers(t, c.Name) {
			peers[familyMask(p.Has)]++
		}
		for _, n := range mesh.NodeConfigs(t, c.Name) {
			if node, ok := t.Node(n.Node); !ok || !node.Registered() {
				continue
			}
			own := familyMask(n.Takes)
			for mask, count := range peers {
				if mask&own != 0 {
					total += count
				}
			}
		}
	}
	return total
}

func familyMask(has func(mesh.Family) bool) int {
	mask := 0
	for i, f := range mesh.Families {
		if has(f) {
			mask |= 1 << i
		}
	}
	return mask
}
