package overlap

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Claims derives what clusters, their nodes and the mesh claim, sorted and with
// Order 0: who numbers them by first registration finds each one's number under
// its Key, which no two of the result share.
//
// A cluster claims its declared ranges. Where it declares no pod ranges, each
// node's PodCIDRs are the claims, and where it declares no node ranges, each
// node's addresses; those claims name their Node. A declaration of one family
// stands for both: what nodes hold of the other family is outside the range.
//
// Where several nodes have the same prefix, the claim names the one that holds it
// (its Prefixes, see AdmitPrefixes), else the first by name. Ranges and addresses
// that package mesh refuses, and nodes of clusters that are not given, are left
// out.
func Claims(clusters []mesh.Cluster, nodes []mesh.Node, tunnel []netip.Prefix) []mesh.Claim {
	var out []mesh.Claim
	holds := map[mesh.Claim]bool{}
	claim := func(cluster string, kind mesh.ClaimKind, node string, prefixes ...netip.Prefix) {
		for _, p := range prefixes {
			if mesh.ValidatePrefix(p) == nil {
				out = append(out, mesh.Claim{Cluster: cluster, Kind: kind, Node: node, Prefix: p})
			}
		}
	}

	claim("", mesh.TunnelRange, "", tunnel...)
	declared := map[string]*mesh.Cluster{}
	for i := range clusters {
		c := &clusters[i]
		declared[c.Name] = c
		claim(c.Name, mesh.PodRange, "", c.PodCIDRs...)
		claim(c.Name, mesh.ServiceRange, "", c.ServiceCIDRs...)
		claim(c.Name, mesh.NodeRange, "", c.NodeCIDRs...)
	}
	for i := range nodes {
		n := &nodes[i]
		c, ok := declared[n.ID.Cluster]
		if !ok {
			continue
		}
		if len(c.PodCIDRs) == 0 {
			claim(c.Name, mesh.PodRange, n.ID.Name, n.PodCIDRs...)
			for _, p := range n.Prefixes {
				holds[mesh.Claim{Cluster: c.Name, Kind: mesh.PodRange, Node: n.ID.Name, Prefix: p}] = true
			}
		}
		if len(c.NodeCIDRs) == 0 {
			for _, a := range n.Addresses {
				if mesh.ValidateAddr(a) == nil {
					claim(c.Name, mesh.NodeRange, n.ID.Name, mesh.HostPrefix(a))
				}
			}
		}
	}

	slices.SortFunc(out, func(a, b mesh.Claim) int {
		x, y := a, b
		x.Node, y.Node = "", ""
		if d := x.Compare(y); d != 0 {
			return d
		}
		if d := index(holds[b]) - index(holds[a]); d != 0 {
			return d
		}
		return a.Compare(b)
	})
	return slices.CompactFunc(out, func(a, b mesh.Claim) bool {
		a.Node, b.Node = "", ""
		return a == b
	})
}

// Key is the claim's name in storage: cluster, kind and prefix, without the node,
// since a cluster keeps its place in the order when a range moves between its
// nodes. It reads "east/pod/10.1.0.0/16", and "/tunnel/198.19.0.0/16" for the mesh.
func Key(c mesh.Claim) string {
	return fmt.Sprintf("%s/%v/%v", c.Cluster, c.Kind, c.Prefix)
}
