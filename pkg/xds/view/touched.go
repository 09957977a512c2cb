package view

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// touched is what a change of the topology may change for clients.
type touched struct {
	// services have endpoints or gateways that are judged differently; nodes are
	// clients for which everything may be.
	services map[mesh.ServiceName]struct{}
	nodes    []mesh.NodeID
}

// touched compares two topologies; resolver is the new one's. Must hold c.mu, and
// c.resolver must be the old one's.
func (c *Catalog) touched(old, now mesh.Topology, resolver *mesh.Resolver) touched {
	out := touched{services: map[mesh.ServiceName]struct{}{}}
	if c.everything(old, now, resolver) {
		for _, of := range c.byCluster {
			maps.Copy(out.services, of)
		}
		return out
	}
	before := make(map[mesh.NodeID]*mesh.Node, len(old.Nodes))
	for i := range old.Nodes {
		before[old.Nodes[i].ID] = &old.Nodes[i]
	}
	node := func(id mesh.NodeID) {
		out.nodes = append(out.nodes, id)
		maps.Copy(out.services, c.byNode[id])
	}
	for i := range now.Nodes {
		n := &now.Nodes[i]
		if was := before[n.ID]; was == nil || !alike(was, n) {
			node(n.ID)
		}
		delete(before, n.ID)
	}
	for id := range before {
		node(id)
	}
	for _, cluster := range changedGateways(old, now) {
		maps.Copy(out.services, c.byCluster[cluster])
	}
	return out
}

// everything reports whether a change may concern any client and any service: one
// of what clusters declare, of the conflicts that keep some apart, or of the
// families that a cluster's clients have. Must hold c.mu.
func (c *Catalog) everything(old, now mesh.Topology, resolver *mesh.Resolver) bool {
	if !slices.EqualFunc(old.Clusters, now.Clusters, mesh.Cluster.Equal) || !slices.Equal(barring(old), barring(now)) {
		return true
	}
	for _, cl := range now.Clusters {
		for _, f := range mesh.Families {
			if c.resolver.HasFamily(cl.Name, f) != resolver.HasFamily(cl.Name, f) {
				return true
			}
		}
	}
	return false
}

// barring returns the conflicts from which something follows: nodes that join may
// well bring others.
func barring(t mesh.Topology) []mesh.Conflict {
	out := make([]mesh.Conflict, 0, len(t.Conflicts))
	for _, c := range t.Conflicts {
		if c.Effect != mesh.Listed {
			out = append(out, c)
		}
	}
	return out
}

// alike reports whether a node's part in the decision of Paths is the same.
func alike(a, b *mesh.Node) bool {
	return a.Region == b.Region && a.Zone == b.Zone && a.Registered() == b.Registered() &&
		slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.Refused, b.Refused) && slices.Equal(a.TunnelAddrs, b.TunnelAddrs)
}

// changedGateways returns the clusters whose gateways are not the same for all
// clients: because they are others, or because a claim that came or went covers
// the address of one.
func changedGateways(old, now mesh.Topology) []string {
	var out []string
	add := func(t mesh.Topology, differs func(mesh.Gateway) bool) {
		for _, g := range t.Gateways {
			if !slices.Contains(out, g.Cluster) && differs(g) {
				out = append(out, g.Cluster)
			}
		}
	}
	for _, pair := range [][2]mesh.Topology{{old, now}, {now, old}} {
		add(pair[0], func(g mesh.Gateway) bool { return !slices.ContainsFunc(pair[1].Gateways, g.Equal) })
	}
	if slices.Equal(old.Claims, now.Claims) {
		return out
	}
	type claim struct {
		cluster string
		prefix  netip.Prefix
	}
	had := map[claim]bool{}
	for _, c := range old.Claims {
		had[claim{c.Cluster, c.Prefix}] = true
	}
	covers := func(c mesh.Claim) {
		add(now, func(g mesh.Gateway) bool { return c.Prefix.Contains(g.Addr) })
	}
	has := map[claim]bool{}
	for _, c := range now.Claims {
		k := claim{c.Cluster, c.Prefix}
		if has[k] = true; !had[k] {
			covers(c)
		}
	}
	for _, c := range old.Claims {
		if !has[claim{c.Cluster, c.Prefix}] {
			covers(c)
		}
	}
	return out
}
