package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Topology is what flatmesh decides on: clusters, nodes, claims and conflicts.
// It is immutable; a change makes a new one.
type Topology struct {
	// Clusters is sorted by name, Nodes by ID; neither holds a duplicate.
	Clusters []Cluster
	Nodes    []Node
	// TunnelRanges holds at most one range of each family.
	TunnelRanges []netip.Prefix
	// Claims is sorted by Order. Conflicts is what overlap.Find made of it.
	Claims    []Claim
	Conflicts []Conflict
	// Gateways is sorted by Gateway.Compare.
	Gateways []Gateway
}

// Cluster finds a cluster by name.
func (t *Topology) Cluster(name string) (*Cluster, bool) {
	i, ok := slices.BinarySearchFunc(t.Clusters, name, func(c Cluster, n string) int { return strings.Compare(c.Name, n) })
	if !ok {
		return nil, false
	}
	return &t.Clusters[i], true
}

// Node finds a node by its ID.
func (t *Topology) Node(id NodeID) (*Node, bool) {
	i, ok := slices.BinarySearchFunc(t.Nodes, id, func(n Node, id NodeID) int { return n.ID.Compare(id) })
	if !ok {
		return nil, false
	}
	return &t.Nodes[i], true
}

// NodesOf returns the nodes of one cluster, sorted.
func (t *Topology) NodesOf(cluster string) []Node {
	lo, _ := slices.BinarySearchFunc(t.Nodes, cluster, func(n Node, c string) int { return strings.Compare(n.ID.Cluster, c) })
	hi := lo
	for hi < len(t.Nodes) && t.Nodes[hi].ID.Cluster == cluster {
		hi++
	}
	return t.Nodes[lo:hi]
}

// Barrier says why a node, a cluster or a pair of clusters has no tunnels for a
// family.
type Barrier struct {
	Family Family `json:"family"`
	Reason Reason `json:"reason"`
	// Detail is a sentence for people: what overlaps with whose.
	Detail string `json:"detail"`
}

// barriers is the Conflicts of a Topology, indexed by what they bar. It is made
// once per pass over a Topology and never outlives it.
type barriers struct {
	mesh     map[Family]*Conflict               // the tunnel range itself yielded
	clusters map[string]map[Family]*Conflict    // no-tunnels
	pairs    map[[2]string]map[Family]*Conflict // pair-apart, names sorted
	yielded  map[yieldKey]*Conflict             // later claims that yield
}

// yieldKey names a claim: two clusters may both yield the same prefix.
type yieldKey struct {
	cluster string
	prefix  netip.Prefix
}

func (t *Topology) barriers() barriers {
	b := barriers{
		mesh:     map[Family]*Conflict{},
		clusters: map[string]map[Family]*Conflict{},
		pairs:    map[[2]string]map[Family]*Conflict{},
		yielded:  map[yieldKey]*Conflict{},
	}
	first := func(m map[Family]*Conflict, c *Conflict) map[Family]*Conflict {
		if m == nil {
			m = map[Family]*Conflict{}
		}
		if m[c.Family()] == nil {
			m[c.Family()] = c
		}
		return m
	}
	for i := range t.Conflicts {
		c := &t.Conflicts[i]
		switch c.Effect {
		case Yields:
			if c.Second.Kind == TunnelRange {
				first(b.mesh, c)
			} else if k := (yieldKey{c.Second.Cluster, c.Second.Prefix}); b.yielded[k] == nil {
				b.yielded[k] = c
			}
		case PairApart:
			k := pairKey(c.First.Cluster, c.Second.Cluster)
			b.pairs[k] = first(b.pairs[k], c)
		case NoTunnels:
			name := c.First.Cluster + c.Second.Cluster // one of the two is the mesh
			b.clusters[name] = first(b.clusters[name], c)
		case Listed:
		}
	}
	return b
}

func pairKey(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// yieldedBy returns the conflict of the yielded claim that p lies in; of the
// cluster's own claims only, since a claim yields alone. A claim that is itself
// a node's prefix stands for that prefix and for none inside it: another node's
// has a claim, and a place in the order, of its own.
func (b *barriers) yieldedBy(cluster string, p netip.Prefix) *Conflict {
	if len(b.yielded) == 0 {
		return nil
	}
	for bits := p.Bits(); bits >= 0; bits-- {
		c := b.yielded[yieldKey{cluster, netip.PrefixFrom(p.Addr(), bits).Masked()}]
		if c != nil && (c.Second.Node == "" || bits == p.Bits()) {
			return c
		}
	}
	return nil
}

// nodeBarrier says why the node has no tunnels for the family at all, or nil.
func (t *Topology) nodeBarrier(b *barriers, n *Node, f Family) *Barrier {
	bar := func(r Reason, format string, args ...any) *Barrier {
		return &Barrier{Family: f, Reason: r, Detail: fmt.Sprintf(format, args...)}
	}
	if c := b.mesh[f]; c != nil {
		return bar(ReasonOverlap, "%v", c)
	}
	if c := b.clusters[n.ID.Cluster][f]; c != nil {
		return bar(ReasonOverlap, "%v", c)
	}
	for _, p := range n.PodCIDRs {
		if FamilyOf(p.Addr()) != f {
			continue
		}
		if c := b.yieldedBy(n.ID.Cluster, p); c != nil {
			return bar(ReasonOverlap, "%v", c)
		}
	}
	if !slices.ContainsFunc(n.TunnelAddrs, func(a netip.Addr) bool { return FamilyOf(a) == f }) {
		return bar(ReasonNoTunnelAddr, "%v has no %v tunnel address", n.ID, f)
	}
	return nil
}
