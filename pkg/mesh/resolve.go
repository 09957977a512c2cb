package mesh

import (
	"fmt"
	"net/netip"
	"slices"
)

// PathKind is the way by which a client's Node reaches an endpoint.
type PathKind uint8

// The kinds of Path.
const (
	// None: the endpoint is withheld. Never an address that cannot be reached.
	None PathKind = iota
	// ViaGateway: through a gateway of the endpoint's Cluster.
	ViaGateway
	// Direct: the endpoint's own address.
	Direct
)

var pathKinds = [...]string{None: "None", ViaGateway: "Gateway", Direct: "Direct"}

// String returns "None", "Gateway" or "Direct".
func (k PathKind) String() string {
	if int(k) < len(pathKinds) {
		return pathKinds[k]
	}
	return fmt.Sprintf("PathKind(%d)", k)
}

// MarshalText writes the name.
func (k PathKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *PathKind) UnmarshalText(b []byte) error {
	i := slices.Index(pathKinds[:], string(b))
	if i < 0 {
		return fmt.Errorf("path %q: want None, Gateway or Direct", b)
	}
	*k = PathKind(i)
	return nil
}

// Why a Path is as it is, beside the reasons of tunnels and prefixes.
const (
	// ReasonLocal: both are in one Cluster.
	ReasonLocal Reason = "local"
	// ReasonNative: both Clusters are in one Network.
	ReasonNative Reason = "native"
	// ReasonNotExported: the endpoint's Cluster keeps the service to itself.
	ReasonNotExported Reason = "not-exported"
	// ReasonHostNetwork: the endpoint has its node's own address.
	ReasonHostNetwork Reason = "host-network"
	// ReasonNotRouted: the address is none that the node's peer owns: a borrowed
	// block, or a node that the source does not know.
	ReasonNotRouted Reason = "not-routed"
	// ReasonNoReport: the client's agent has no report stream open.
	ReasonNoReport Reason = "no-report"
	// ReasonNoTLS: there is no tunnel, and the service's pods speak no mesh mTLS
	// that a gateway could pass on.
	ReasonNoTLS Reason = "no-tls"
	// ReasonNotTCP: there is no tunnel, and a gateway passes TCP alone.
	ReasonNotTCP Reason = "not-tcp"
	// ReasonNoGateway: there is no tunnel, and the Cluster has no gateway.
	ReasonNoGateway Reason = "no-gateway"
	// ReasonGatewayUnroutable: the gateway's address means something else in the
	// client's Cluster, or is of a family that the client's node does not have.
	ReasonGatewayUnroutable Reason = "gateway-unroutable"
	// ReasonMismatch: the endpoint's Cluster defines the port otherwise than the
	// definition in force for the client, in protocol or TLS.
	ReasonMismatch Reason = "port-mismatch"
)

// Path is how a client's Node reaches an endpoint, and why.
type Path struct {
	Kind   PathKind
	Reason Reason
	// Wanted is why the path is not direct where Kind is None because no gateway
	// can stand in; else it is Reason.
	Wanted Reason
	// Conflict is set where the reason is an overlap.
	Conflict *Conflict
}

// Detail says more for people, where there is more to say.
func (p Path) Detail() string {
	if p.Conflict != nil {
		return p.Conflict.String()
	}
	return ""
}

// Target is an endpoint of a service, and what the service allows.
type Target struct {
	// Node is the endpoint's. Its Name is empty where no node is known, or it
	// names one that the topology does not have.
	Node NodeID
	Addr netip.Addr
	// Exported: clients of other clusters may use the service. TLS: its pods speak
	// mesh mTLS. TCP: it is a TCP port.
	Exported, TLS, TCP bool
}

// Reachability is what agents report of their tunnels on the streams that are
// open: from the reporting node to its peers. A node whose stream is not open is
// not in it.
type Reachability map[NodeID]map[NodeID]TunnelStatus

// Resolver resolves Paths in one Topology. It does not change once made and is
// safe for concurrent use.
type Resolver struct {
	t        *Topology
	b        barriers
	networks map[string]string // of clusters
	nodes    map[NodeID]*Node
	covered  map[coveredKey]bool  // gateways that lie in a cluster's own claims
	gateways map[string][]Gateway // of clusters
	families map[string][]Family  // of clusters' pods
}

// coveredKey is a gateway's address, and a cluster in which it may mean something
// else.
type coveredKey struct {
	cluster string
	addr    netip.Addr
}

// NewResolver prepares a Topology for many calls of Path.
func NewResolver(t Topology) *Resolver {
	r := &Resolver{
		t: &t, b: t.barriers(), networks: make(map[string]string, len(t.Clusters)),
		nodes: make(map[NodeID]*Node, len(t.Nodes)), covered: map[coveredKey]bool{}, gateways: map[string][]Gateway{},
		families: map[string][]Family{},
	}
	pods := func(cluster string, prefixes []netip.Prefix) {
		for _, p := range prefixes {
			if f := FamilyOf(p.Addr()); !slices.Contains(r.families[cluster], f) {
				r.families[cluster] = append(r.families[cluster], f)
			}
		}
	}
	for _, c := range t.Clusters {
		r.networks[c.Name] = c.Network
		pods(c.Name, c.PodCIDRs)
	}
	for i := range t.Nodes {
		r.nodes[t.Nodes[i].ID] = &t.Nodes[i]
		pods(t.Nodes[i].ID.Cluster, t.Nodes[i].PodCIDRs)
	}
	for _, c := range t.Claims {
		for _, g := range t.Gateways {
			if c.Prefix.Contains(g.Addr) {
				r.covered[coveredKey{c.Cluster, g.Addr}] = true
			}
		}
	}
	for _, g := range t.Gateways {
		r.gateways[g.Cluster] = append(r.gateways[g.Cluster], g)
	}
	return r
}

// Resolve returns the Path from a node to a target. For many calls on one
// Topology make a Resolver.
func Resolve(t Topology, reach Reachability, from NodeID, to Target) Path {
	return NewResolver(t).Path(reach, from, to)
}

// Node returns a node of the Topology.
func (r *Resolver) Node(id NodeID) (*Node, bool) {
	n, ok := r.nodes[id]
	return n, ok
}

// HasFamily reports whether a cluster has pods of a family.
func (r *Resolver) HasFamily(cluster string, f Family) bool {
	return slices.Contains(r.families[cluster], f)
}

// Path resolves, by the first rule that fits. A client on a host without an
// agent has a from with an empty Name.
func (r *Resolver) Path(reach Reachability, from NodeID, to Target) Path {
	if from.Cluster == to.Node.Cluster {
		return direct(ReasonLocal)
	}
	if !to.Exported {
		return Path{Kind: None, Reason: ReasonNotExported, Wanted: ReasonNotExported}
	}
	family := FamilyOf(to.Addr)
	a, b := r.nodes[from], r.nodes[to.Node]
	if c := r.overlap(a, b, from.Cluster, to, family); c != nil {
		return r.gateway(from, to, ReasonOverlap, c)
	}
	if r.native(from.Cluster, to.Node.Cluster) {
		return direct(ReasonNative)
	}
	if reason := owns(b, to.Addr, family); reason != "" {
		return r.gateway(from, to, reason, nil)
	}
	up, reason, c := r.tunnel(reach, a, b, family)
	if up {
		return direct(ReasonTunnel)
	}
	return r.gateway(from, to, reason, c)
}

func direct(reason Reason) Path { return Path{Kind: Direct, Reason: reason, Wanted: reason} }

func (r *Resolver) native(a, b string) bool {
	return r.networks[a] != "" && r.networks[a] == r.networks[b]
}

// overlap returns the conflict that keeps the two apart in the family: their
// clusters', or a yielded claim that covers pods of one of the two.
func (r *Resolver) overlap(a, b *Node, cluster string, to Target, f Family) *Conflict {
	if len(r.t.Conflicts) == 0 {
		return nil
	}
	if c := r.b.pairs[pairKey(cluster, to.Node.Cluster)][f]; c != nil {
		return c
	}
	if c := r.b.yieldedBy(to.Node.Cluster, HostPrefix(to.Addr)); c != nil {
		return c
	}
	for _, n := range []*Node{a, b} {
		if n == nil {
			continue
		}
		for _, p := range n.PodCIDRs {
			if FamilyOf(p.Addr()) != f {
				continue
			}
			if c := r.b.yieldedBy(n.ID.Cluster, p); c != nil {
				return c
			}
		}
	}
	return nil
}

// owns says why an address is none that the node's peer owns, or "".
func owns(b *Node, addr netip.Addr, f Family) Reason {
	if b == nil {
		return ReasonNotRouted
	}
	if slices.Contains(b.Addresses, addr) {
		return ReasonHostNetwork
	}
	if slices.ContainsFunc(b.Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return ""
	}
	for _, refused := range b.Refused {
		if refused.Prefix.Contains(addr) {
			return refused.Reason
		}
	}
	if !slices.ContainsFunc(b.PodCIDRs, func(p netip.Prefix) bool { return FamilyOf(p.Addr()) == f }) {
		return ReasonNoPrefix
	}
	return ReasonNotRouted
}

// tunnel reports whether the tunnel from a to b carries packets of the family,
// or why it does not.
func (r *Resolver) tunnel(reach Reachability, a, b *Node, f Family) (up bool, reason Reason, c *Conflict) {
	if a == nil || !a.Registered() || !b.Registered() {
		return false, ReasonNoAgent, nil
	}
	// What the topology bars is not there, whatever an older report says: the
	// gateway is served before a peer goes.
	if c := r.b.mesh[f]; c != nil {
		return false, ReasonOverlap, c
	}
	for _, n := range []*Node{a, b} {
		if c := r.b.clusters[n.ID.Cluster][f]; c != nil {
			return false, ReasonOverlap, c
		}
		if !(Peer{TunnelAddrs: n.TunnelAddrs}).Has(f) {
			return false, ReasonNoTunnelAddr, nil
		}
	}
	report, open := reach[a.ID]
	if !open {
		return false, ReasonNoReport, nil
	}
	s, ok := report[b.ID]
	switch {
	case !ok:
		return false, ReasonProbing, nil
	case s.State != Up:
		return false, s.Reason, nil
	}
	if back, ok := reach[b.ID][a.ID]; ok && back.State == Down {
		return false, back.Reason, nil
	}
	return true, ReasonTunnel, nil
}

// gateway returns the Path through a gateway, or why there is none.
func (r *Resolver) gateway(from NodeID, to Target, wanted Reason, c *Conflict) Path {
	p := Path{Kind: None, Wanted: wanted, Conflict: c}
	switch {
	case !to.TCP:
		p.Reason = ReasonNotTCP
	case !to.TLS:
		p.Reason = ReasonNoTLS
	default:
		if _, p.Reason = r.Gateways(from, to.Node.Cluster); p.Reason == "" {
			p.Kind, p.Reason = ViaGateway, wanted
		}
	}
	return p
}

// Gateways returns the gateways of a cluster that a client on a node can use, or
// why there are none.
func (r *Resolver) Gateways(from NodeID, cluster string) ([]Gateway, Reason) {
	all := r.gateways[cluster]
	if len(all) == 0 {
		return nil, ReasonNoGateway
	}
	node := r.nodes[from]
	usable := func(g Gateway) bool {
		if node != nil && len(node.Addresses) > 0 && !slices.ContainsFunc(node.Addresses, func(a netip.Addr) bool { return FamilyOf(a) == FamilyOf(g.Addr) }) {
			return false
		}
		// In one Network an address means the same to both.
		return r.native(from.Cluster, cluster) ||
			!r.covered[coveredKey{from.Cluster, g.Addr}]
	}
	out := make([]Gateway, 0, len(all))
	live := false
	for _, g := range all {
		if usable(g) {
			out = append(out, g)
			live = live || !g.Lost
		}
	}
	if len(out) == 0 {
		return nil, ReasonGatewayUnroutable
	}
	if live {
		// Never the last: that all of them are silent says more about the control
		// plane than about them.
		out = slices.DeleteFunc(out, func(g Gateway) bool { return g.Lost })
	}
	return out, ""
}

// Class is what decides, of an endpoint, the Paths to it: for one service port
// all endpoints of a Class have the same Path from any node. It is comparable.
type Class struct {
	Node   NodeID
	Family Family
	// unowned says why the address is none of the node's peer; yielded is the
	// conflict of the claim that covers it.
	unowned Reason
	yielded *Conflict
}

// Class returns an endpoint's Class. It does not look at what the service allows.
func (r *Resolver) Class(to Target) Class {
	c := Class{Node: to.Node, Family: FamilyOf(to.Addr)}
	c.unowned = owns(r.nodes[to.Node], to.Addr, c.Family)
	if len(r.t.Conflicts) > 0 {
		c.yielded = r.b.yieldedBy(to.Node.Cluster, HostPrefix(to.Addr))
	}
	return c
}
