// Package testmesh makes random meshes, and random changes of them, for tests
// that compare what is computed step by step, or with indices and caches, with
// what is computed plainly.
//
// They are small, so that everything meets: a few clusters, nodes and services,
// of which much contradicts the rest. They are for deciding on, not for serving:
// nothing in them was derived from anything else as a control plane would.
package testmesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Clusters are the names of all clusters that a World may have.
var Clusters = [...]string{"east", "north", "south", "west"}

const (
	nodesEach = 3
	services  = 4
)

// World is a mesh. What it holds is replaced by changes, never modified.
type World struct {
	*rand.Rand
	Topology mesh.Topology
	Services map[mesh.ServiceName]*mesh.Service
	Reach    mesh.Reachability

	clusters map[string]mesh.Cluster
	nodes    map[mesh.NodeID]mesh.Node
	gateways map[string][]mesh.Gateway
	// claims are those beyond what clusters declare.
	claims    []mesh.Claim
	conflicts []mesh.Conflict
}

// New makes a World; equal seeds make equal ones.
func New(seed uint64) *World {
	w := &World{
		Rand: rand.New(rand.NewPCG(seed, 0)), Services: map[mesh.ServiceName]*mesh.Service{}, Reach: mesh.Reachability{},
		clusters: map[string]mesh.Cluster{}, nodes: map[mesh.NodeID]mesh.Node{}, gateways: map[string][]mesh.Gateway{},
	}
	for i, name := range Clusters {
		w.clusters[name] = w.cluster(i)
		w.gateways[name] = w.someGateways(i)
	}
	for _, id := range Nodes() {
		w.nodes[id] = w.node(id)
	}
	w.build()
	for _, n := range ServiceNames() {
		w.put(n, w.service(n))
	}
	for _, id := range Nodes() {
		w.Reach[id] = w.report(id)
	}
	return w
}

// Nodes returns all nodes that a World may have.
func Nodes() (out []mesh.NodeID) {
	for _, c := range Clusters {
		for i := range nodesEach {
			out = append(out, mesh.NodeID{Cluster: c, Name: fmt.Sprintf("n%d", i+1)})
		}
	}
	return out
}

// ServiceNames returns all services that a World may have.
func ServiceNames() (out []mesh.ServiceName) {
	for i := range services {
		out = append(out, mesh.ServiceName{Namespace: "demo", Name: fmt.Sprintf("s%d", i+1)})
	}
	return out
}

// Ports are the numbers of all ports that services may have.
func Ports() []uint16 { return []uint16{53, 80, 81} }

// ChangeTopology changes something of the topology.
func (w *World) ChangeTopology() {
	i := w.IntN(len(Clusters))
	name := Clusters[i]
	id := Nodes()[w.IntN(len(Clusters)*nodesEach)]
	switch w.IntN(10) {
	case 0:
		if _, ok := w.clusters[name]; ok && w.IntN(2) == 0 {
			delete(w.clusters, name)
		} else {
			w.clusters[name] = w.cluster(i)
		}
	case 1, 2:
		w.gateways[name] = w.someGateways(i)
	case 3:
		gs := slices.Clone(w.gateways[name])
		for j := range gs {
			gs[j].Lost = w.IntN(2) == 0
		}
		w.gateways[name] = gs
	case 4:
		w.conflicts = w.someConflicts()
	case 5:
		w.claims = w.someClaims()
	case 6:
		delete(w.nodes, id)
	default:
		w.nodes[id] = w.node(id)
	}
	w.build()
}

// ChangeService changes a service, or adds or removes it, and returns which.
func (w *World) ChangeService() mesh.ServiceName {
	n := ServiceNames()[w.IntN(services)]
	switch old := w.Services[n]; {
	case old == nil || w.IntN(4) == 0:
		w.put(n, w.service(n))
	case w.IntN(8) == 0:
		delete(w.Services, n)
	default:
		w.put(n, w.scaled(old))
	}
	return n
}

func (w *World) put(n mesh.ServiceName, s *mesh.Service) {
	if s == nil {
		delete(w.Services, n)
	} else {
		w.Services[n] = s
	}
}

// ChangeReport changes what a node reports, or ends its reports, and returns
// which.
func (w *World) ChangeReport() mesh.NodeID {
	id := Nodes()[w.IntN(len(Clusters)*nodesEach)]
	old := w.Reach[id]
	switch k := w.IntN(10); {
	case k == 0:
		delete(w.Reach, id)
	case old == nil || k == 1:
		w.Reach[id] = w.report(id)
	default: // one tunnel flips
		to := Nodes()[w.IntN(len(Clusters)*nodesEach)]
		next := maps.Clone(old)
		next[to] = w.tunnel()
		w.Reach[id] = next
	}
	return id
}

func pick[T any](w *World, from ...T) T { return from[w.IntN(len(from))] }

func (w *World) cluster(i int) mesh.Cluster {
	c := mesh.Cluster{Name: Clusters[i], Network: pick(w, Clusters[i], Clusters[i], Clusters[i], "shared")}
	if w.IntN(3) > 0 {
		c.PodCIDRs = []netip.Prefix{pods4(i)}
	}
	return c
}

func pods4(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i + 1)}), 16)
}

// nodePods returns the range of a node's pods: IPv4 and IPv6.
func nodePods(i, j int) (netip.Prefix, netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i + 1), byte(j + 1)}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 1: byte(i + 1), 7: byte(j + 1)}), 64)
}

func place(id mesh.NodeID) (i, j int) {
	i = slices.Index(Clusters[:], id.Cluster)
	return i, int(id.Name[1] - '1')
}

func (w *World) node(id mesh.NodeID) mesh.Node {
	i, j := place(id)
	n := mesh.Node{ID: id, Region: pick(w, "", "r1"), Zone: pick(w, "", "z1", "z2")}
	p4, p6 := nodePods(i, j)
	switch w.IntN(6) {
	case 0:
	case 1, 2:
		n.PodCIDRs = []netip.Prefix{p4, p6}
	case 3:
		n.PodCIDRs = []netip.Prefix{p6}
	default:
		n.PodCIDRs = []netip.Prefix{p4}
	}
	if n.Prefixes = n.PodCIDRs; w.IntN(8) == 0 {
		for _, p := range n.PodCIDRs {
			n.Refused = append(n.Refused, mesh.RefusedPrefix{Prefix: p, Reason: mesh.ReasonOutsideRange})
		}
		n.Prefixes = nil
	}
	a4, a6 := nodeAddrs(i, j)
	n.Addresses = pick(w, []netip.Addr{a4}, []netip.Addr{a4}, []netip.Addr{a4, a6}, []netip.Addr{a6}, nil)
	if w.IntN(8) > 0 {
		n.Key = mesh.PublicKey{byte(i + 1), byte(j + 1)}
		for _, p := range n.PodCIDRs {
			if w.IntN(10) > 0 {
				n.TunnelAddrs = append(n.TunnelAddrs, p.Addr()) // any of the family will do
			}
		}
	}
	return n
}

func nodeAddrs(i, j int) (netip.Addr, netip.Addr) {
	return netip.AddrFrom4([4]byte{192, 168, byte(i), byte(j + 1)}), netip.AddrFrom16([16]byte{0xfd, 2: 0xaa, 14: byte(i), 15: byte(j + 1)})
}

func (w *World) someGateways(i int) (out []mesh.Gateway) {
	for k := range w.IntN(4) {
		g := mesh.Gateway{Cluster: Clusters[i], Name: fmt.Sprintf("flatmesh-system/gw%d", k), Ports: []uint16{15443, 15444}, Lost: w.IntN(4) == 0}
		g.Addr = netip.AddrFrom4([4]byte{203, 0, byte(i), byte(k + 1)})
		if w.IntN(3) == 0 {
			g.Addr = netip.AddrFrom16([16]byte{0xfd, 2: 0xbb, 14: byte(i), 15: byte(k + 1)})
		}
		if w.IntN(3) > 0 {
			g.StandbyPorts = []uint16{15447}
		}
		out = append(out, g)
	}
	return out
}

func (w *World) someClaims() (out []mesh.Claim) {
	for i, name := range Clusters {
		if w.IntN(3) == 0 { // one that covers another's gateways
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(w.IntN(len(Clusters)))}), 24)
			out = append(out, mesh.Claim{Cluster: name, Kind: mesh.ServiceRange, Prefix: p, Order: uint64(100 + i)})
		}
	}
	return out
}

func (w *World) someConflicts() (out []mesh.Conflict) {
	claim := func(i int, kind mesh.ClaimKind) mesh.Claim {
		c := mesh.Claim{Cluster: Clusters[i], Kind: kind, Prefix: pods4(i), Order: uint64(i + 1)}
		if kind == mesh.PodRange && w.IntN(2) == 0 {
			j := w.IntN(nodesEach)
			p4, p6 := nodePods(i, j)
			c.Prefix, c.Node = pick(w, p4, p6), fmt.Sprintf("n%d", j+1)
		}
		return c
	}
	for range w.IntN(3) {
		a, b := w.IntN(len(Clusters)), w.IntN(len(Clusters))
		if a == b {
			continue
		}
		switch c := (mesh.Conflict{Effect: pick(w, mesh.Listed, mesh.Yields, mesh.PairApart, mesh.NoTunnels), First: claim(a, mesh.PodRange), Second: claim(b, mesh.PodRange)}); c.Effect {
		case mesh.NoTunnels:
			c.First = mesh.Claim{Kind: mesh.TunnelRange, Prefix: netip.MustParsePrefix("198.19.0.0/16"), Order: 1}
			c.Second.Kind = mesh.ServiceRange
			out = append(out, c)
		case mesh.PairApart:
			c.First.Kind = mesh.ServiceRange
			out = append(out, c)
		default:
			out = append(out, c)
		}
	}
	return out
}

// build makes the Topology of its pieces.
func (w *World) build() {
	var t mesh.Topology
	for i, name := range Clusters {
		c, ok := w.clusters[name]
		if !ok {
			continue
		}
		t.Clusters = append(t.Clusters, c)
		t.Claims = append(t.Claims, mesh.Claim{Cluster: name, Kind: mesh.PodRange, Prefix: pods4(i), Order: uint64(i + 1)})
		t.Gateways = append(t.Gateways, w.gateways[name]...)
	}
	for _, id := range Nodes() {
		if n, ok := w.nodes[id]; ok && w.clusters[id.Cluster].Name != "" {
			t.Nodes = append(t.Nodes, n)
		}
	}
	t.Claims = append(t.Claims, w.claims...)
	t.Conflicts = w.conflicts
	slices.SortFunc(t.Claims, mesh.Claim.Compare)
	slices.SortFunc(t.Gateways, mesh.Gateway.Compare)
	w.Topology = t
}

func (w *World) tunnel() mesh.TunnelStatus {
	switch s := pick(w, mesh.Up, mesh.Up, mesh.Down, mesh.Unknown); s {
	case mesh.Up:
		return mesh.TunnelStatus{State: s, Reason: mesh.ReasonTunnel}
	case mesh.Down:
		return mesh.TunnelStatus{State: s, Reason: mesh.ReasonProbeLost}
	default:
		return mesh.TunnelStatus{State: s, Reason: mesh.ReasonProbing}
	}
}

func (w *World) report(from mesh.NodeID) map[mesh.NodeID]mesh.TunnelStatus {
	out := map[mesh.NodeID]mesh.TunnelStatus{}
	for _, to := range Nodes() {
		if to.Cluster != from.Cluster && w.IntN(5) > 0 {
			out[to] = w.tunnel()
		}
	}
	return out
}
