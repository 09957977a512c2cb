package mesh

import (
	"encoding/binary"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
)

// Peer is a Node as WireGuard sees it from a node of another cluster.
type Peer struct {
	Node NodeID    `json:"node"`
	Key  PublicKey `json:"key"`
	// Endpoints are where its WireGuard may be reached over UDP, best first.
	Endpoints []netip.AddrPort `json:"endpoints"`
	// TunnelAddrs and Prefixes are what it may send from and what is routed to
	// it: at most one tunnel address of each family, and its pod prefixes.
	TunnelAddrs []netip.Addr   `json:"tunnelAddresses"`
	Prefixes    []netip.Prefix `json:"prefixes"`
}

// AllowedIPs returns the peer's tunnel addresses and prefixes, sorted.
func (p Peer) AllowedIPs() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(p.TunnelAddrs)+len(p.Prefixes))
	for _, a := range p.TunnelAddrs {
		out = append(out, HostPrefix(a))
	}
	out = append(out, p.Prefixes...)
	slices.SortFunc(out, ComparePrefix)
	return out
}

// Only returns the peer with what belongs to the given families alone, and
// whether anything is left to tunnel with. It shares with p what it leaves whole.
func (p Peer) Only(families func(Family) bool) (Peer, bool) {
	p.TunnelAddrs = without(p.TunnelAddrs, func(a netip.Addr) bool { return !families(FamilyOf(a)) })
	p.Prefixes = without(p.Prefixes, func(q netip.Prefix) bool { return !families(FamilyOf(q.Addr())) })
	return p, len(p.TunnelAddrs) > 0
}

func without[T any](in []T, drop func(T) bool) []T {
	if !slices.ContainsFunc(in, drop) {
		return in
	}
	return slices.DeleteFunc(slices.Clone(in), drop)
}

// Has reports whether the peer takes part in the family.
func (p Peer) Has(f Family) bool {
	return slices.ContainsFunc(p.TunnelAddrs, func(a netip.Addr) bool { return FamilyOf(a) == f })
}

// Equal reports whether two peers say the same.
func (p Peer) Equal(o Peer) bool {
	return p.Node == o.Node && p.Key == o.Key &&
		slices.Equal(p.Endpoints, o.Endpoints) &&
		slices.Equal(p.TunnelAddrs, o.TunnelAddrs) &&
		slices.Equal(p.Prefixes, o.Prefixes)
}

// Digest identifies what one end holds of the other: its key and the prefixes
// that it may send from. Both ends compute it from their own knowledge, and the
// echo compares the two. FNV-1a over the key and the sorted prefixes; it guards
// against skew, not against an adversary, who has no way past AllowedIPs.
func Digest(key PublicKey, allowed []netip.Prefix) uint64 {
	sorted := slices.Clone(allowed)
	slices.SortFunc(sorted, ComparePrefix)
	h := fnv.New64a()
	h.Write(key[:])
	for _, p := range slices.Compact(sorted) {
		a := p.Addr().As16()
		h.Write(a[:])
		h.Write(binary.BigEndian.AppendUint16(nil, uint16(FamilyOf(p.Addr()))<<8|uint16(p.Bits())))
	}
	return h.Sum64()
}

// Peers returns the peers of a cluster's nodes, sorted by node: one set for all
// of the cluster's agents. A node of another network is in it once its agent
// has registered, with the families that no conflict bars between the two.
//
// Peers is symmetric in what it bars between clusters. What bars a single node
// of the cluster itself is in that node's NodeConfig, and its agent leaves out
// those families.
func Peers(t Topology, cluster string) []Peer {
	own, ok := t.Cluster(cluster)
	if !ok {
		return nil
	}
	b := t.barriers()
	bars := b.clusters[cluster]
	out := make([]Peer, 0, len(t.Nodes))
	for i := range t.Clusters {
		other := &t.Clusters[i]
		if other.Network == own.Network {
			continue
		}
		apart := b.pairs[pairKey(cluster, other.Name)]
		nodes := t.NodesOf(other.Name)
		for j := range nodes {
			n := &nodes[j]
			if !n.Registered() {
				continue
			}
			var open [2]bool
			for i, f := range Families {
				open[i] = apart[f] == nil && bars[f] == nil && t.nodeBarrier(&b, n, f) == nil
			}
			p := Peer{Node: n.ID, Key: n.Key, Endpoints: n.Endpoints, TunnelAddrs: n.TunnelAddrs, Prefixes: n.Prefixes}
			p, ok := p.Only(func(f Family) bool { return open[slices.Index(Families[:], f)] })
			if ok {
				out = append(out, p)
			}
		}
	}
	return out
}

// NodeConfig is what a node's agent is told of its own node.
type NodeConfig struct {
	Node        NodeID         `json:"node"`
	TunnelAddrs []netip.Addr   `json:"tunnelAddresses"`
	Prefixes    []netip.Prefix `json:"prefixes"`
	// Refused are the node's prefixes that take no part, Barriers the families.
	Refused  []RefusedPrefix `json:"refused,omitempty"`
	Barriers []Barrier       `json:"barriers,omitempty"`
}

// AllowedIPs returns what every peer should hold of this node for the families
// that the two share.
func (c NodeConfig) AllowedIPs(families func(Family) bool) []netip.Prefix {
	p, _ := Peer{TunnelAddrs: c.TunnelAddrs, Prefixes: c.Prefixes}.Only(families)
	return p.AllowedIPs()
}

// Bars reports why the family takes no part on this node, or nil.
func (c NodeConfig) Bars(f Family) *Barrier {
	i := slices.IndexFunc(c.Barriers, func(b Barrier) bool { return b.Family == f })
	if i < 0 {
		return nil
	}
	return &c.Barriers[i]
}

// Takes reports whether the node takes part in the family: nothing bars it and
// the node has a tunnel address of it.
func (c NodeConfig) Takes(f Family) bool {
	return c.Bars(f) == nil && Peer{TunnelAddrs: c.TunnelAddrs}.Has(f)
}

// NodeConfigs returns what the agents of a cluster's nodes are told of their own
// node, sorted by node.
func NodeConfigs(t Topology, cluster string) []NodeConfig {
	b := t.barriers()
	nodes := t.NodesOf(cluster)
	out := make([]NodeConfig, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		c := NodeConfig{Node: n.ID, TunnelAddrs: n.TunnelAddrs, Prefixes: n.Prefixes, Refused: n.Refused}
		for _, f := range Families {
			// A family in which the node has neither pods nor an address is not
			// barred, it is just not there.
			there := Peer{TunnelAddrs: n.TunnelAddrs}.Has(f) ||
				slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return FamilyOf(p.Addr()) == f })
			if bar := t.nodeBarrier(&b, n, f); bar != nil && there {
				c.Barriers = append(c.Barriers, *bar)
			}
		}
		out = append(out, c)
	}
	return out
}

// ClusterConfig is what all agents of a cluster are told alike.
type ClusterConfig struct {
	Cluster string `json:"cluster"`
	Network string `json:"network"`
	// Remote are the ranges that are reached through tunnels alone: each gets an
	// unreachable route below the peers' own, so that nothing leaks in plaintext.
	Remote []netip.Prefix `json:"remote,omitempty"`
	// Protected are the own Cluster's and Network's claims, yielded or not: no
	// route of flatmesh's may overlap one.
	Protected []netip.Prefix `json:"protected,omitempty"`
	// Conflicts are those that concern the cluster, harmless ones included.
	Conflicts []Conflict `json:"conflicts,omitempty"`
}

// ClusterConfigOf returns what the agents of a cluster are told.
func ClusterConfigOf(t Topology, cluster string) (ClusterConfig, bool) {
	own, ok := t.Cluster(cluster)
	if !ok {
		return ClusterConfig{}, false
	}
	c := ClusterConfig{Cluster: own.Name, Network: own.Network}
	b := t.barriers()
	remote := map[netip.Prefix]bool{}
	protected := map[netip.Prefix]bool{}
	pods := map[netip.Prefix]bool{} // of protected
	native := map[string]bool{}
	for _, o := range t.Clusters {
		native[o.Name] = o.Network == own.Network
	}
	for _, claim := range t.Claims {
		f := FamilyOf(claim.Prefix.Addr())
		switch {
		case native[claim.Cluster]:
			protected[claim.Prefix] = true
			if claim.Kind == PodRange {
				pods[claim.Prefix] = true
			}
		case claim.Kind == TunnelRange && b.mesh[f] == nil:
			remote[claim.Prefix] = true
		case claim.Kind == PodRange && b.yieldedBy(claim.Cluster, claim.Prefix) == nil:
			// Also where there are no tunnels to it: what is not reached through one
			// is not reached in plaintext either.
			remote[claim.Prefix] = true
		}
	}
	c.Protected = slices.SortedFunc(maps.Keys(protected), ComparePrefix)
	widest := widestOf(c.Protected)
	ownPods := widestOf(slices.SortedFunc(maps.Keys(pods), ComparePrefix))
	for p := range remote {
		switch {
		case overlapsAny(p, ownPods):
			// The own cluster yields to it, or its network holds a part: what is meant
			// by an address in it is not for flatmesh to say.
		case overlapsAny(p, widest):
			// What is left of it beside own services and nodes is closed all the same.
			c.Remote = append(c.Remote, Subtract(p, widest)...)
		default:
			c.Remote = append(c.Remote, p)
		}
	}
	slices.SortFunc(c.Remote, ComparePrefix)
	c.Remote = slices.Compact(c.Remote)
	for _, x := range t.Conflicts {
		if x.First.Cluster == cluster || x.Second.Cluster == cluster {
			c.Conflicts = append(c.Conflicts, x)
		}
	}
	return c, true
}

// widestOf leaves out of sorted prefixes those that lie in another.
func widestOf(sorted []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// overlapsAny reports whether p overlaps one of a widestOf: only the one at or
// before p can contain it, and only the next can lie in it.
func overlapsAny(p netip.Prefix, widest []netip.Prefix) bool {
	i, found := slices.BinarySearchFunc(widest, p, ComparePrefix)
	return found || i > 0 && widest[i-1].Overlaps(p) || i < len(widest) && widest[i].Overlaps(p)
}
