package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Spread is one service port as the clients of one Cluster see it: its
// endpoints, gathered into groups that have one Path from any node. It is made
// once for each change of the service or the topology, and does not change.
type Spread struct {
	name     string
	resolver *mesh.Resolver
	cluster  string
	prefer   mesh.Preference
	groups   []group
	// ready and ending are the families of the gateways for the groups that are not
	// terminating, and for those that are.
	ready, ending familySet
}

// group is the endpoints of one Class in one locality.
type group struct {
	target       mesh.Target // that of the first; all resolve alike
	region, zone string
	terminating  bool
	addrs        []netip.AddrPort
}

// NewSpread gathers a service port's endpoints for the clients of a cluster. It
// returns nil where the service has no such port for them.
func NewSpread(r *mesh.Resolver, name string, s *mesh.Service, cluster string, scope mesh.Scope, number uint16) *Spread {
	def := s.Definition(cluster, scope, number)
	if def == nil {
		return nil
	}
	port, _ := def.Port(number)
	sp := &Spread{name: name, resolver: r, cluster: cluster, prefer: def.Prefer}
	type key struct {
		class        mesh.Class
		region, zone string
		terminating  bool
	}
	at := map[key]int{}
	for i := range s.Parts {
		part := &s.Parts[i]
		if !scope.In(cluster, part) {
			continue
		}
		p, ok := part.Port(number)
		if !ok || !p.Agrees(port) {
			continue
		}
		skip := OtherFamily(r, part, p, cluster)
		for _, b := range p.Backends {
			if skip(b) {
				continue
			}
			t := TargetOf(part, p, b)
			region, zone := "", b.Zone
			if n, ok := r.Node(t.Node); ok {
				region, zone = n.Region, cmp.Or(n.Zone, b.Zone)
			}
			k := key{r.Class(t), region, zone, b.Terminating}
			j, ok := at[k]
			if !ok {
				j = len(sp.groups)
				at[k] = j
				sp.groups = append(sp.groups, group{target: t, region: region, zone: zone, terminating: b.Terminating})
			}
			sp.groups[j].addrs = append(sp.groups[j].addrs, b.Addr)
		}
	}
	sp.ready, sp.ending = sp.gatewayFamilies(false), sp.gatewayFamilies(true)
	return sp
}

// familySet has a bit for each mesh.Families.
type familySet byte

func (s *familySet) add(f mesh.Family) { *s |= 1 << slices.Index(mesh.Families[:], f) }

// gatewayFamilies returns the families of all gateways that stand in, or stand
// by, for some group: which of them a client can use depends on its node's.
func (s *Spread) gatewayFamilies(terminating bool) (out familySet) {
	seen := map[string]bool{}
	for i := range s.groups {
		t := &s.groups[i].target
		if s.groups[i].terminating != terminating || t.Node.Cluster == s.cluster || !t.TCP || !t.TLS || seen[t.Node.Cluster] {
			continue
		}
		seen[t.Node.Cluster] = true
		gateways, _ := s.resolver.Gateways(mesh.NodeID{Cluster: s.cluster}, t.Node.Cluster)
		for _, g := range gateways {
			out.add(mesh.FamilyOf(g.Addr))
		}
	}
	return out
}

// OtherFamily returns what says of a backend that it is the second address of a dual-stack
// pod, which would count twice: the one of the Service's second family, or of
// the one that the clients' cluster does not have.
func OtherFamily(r *mesh.Resolver, part *mesh.ServicePart, p *mesh.ServicePort, cluster string) func(mesh.Backend) bool {
	primary, other := mesh.IPv4, mesh.IPv6
	if len(part.ClusterIPs) > 0 && mesh.FamilyOf(part.ClusterIPs[0]) == mesh.IPv6 {
		primary, other = other, primary
	}
	if !r.HasFamily(cluster, primary) && r.HasFamily(cluster, other) {
		primary = other
	}
	var both map[string]bool // pods that have an address of the family that is taken
	for _, b := range p.Backends {
		if mesh.FamilyOf(b.Addr.Addr()) != mesh.FamilyOf(p.Backends[0].Addr.Addr()) {
			both = map[string]bool{}
			break
		}
	}
	if both == nil {
		return func(mesh.Backend) bool { return false }
	}
	for _, b := range p.Backends {
		if b.Pod != "" && mesh.FamilyOf(b.Addr.Addr()) == primary {
			both[b.Pod] = true
		}
	}
	return func(b mesh.Backend) bool { return mesh.FamilyOf(b.Addr.Addr()) != primary && both[b.Pod] }
}

// TargetOf returns what a Path to a backend is resolved for.
func TargetOf(part *mesh.ServicePart, port *mesh.ServicePort, b mesh.Backend) mesh.Target {
	return mesh.Target{
		Node: mesh.NodeID{Cluster: part.Cluster, Name: b.Node}, Addr: b.Addr.Addr(),
		Exported: part.Exported, TLS: port.TLS, TCP: port.Protocol == mesh.TCP,
	}
}

// AppendKey appends the view key of a client: clients have equal keys where they
// have the same Assignment.
func (s *Spread) AppendKey(key []byte, reach mesh.Reachability, client mesh.NodeID) []byte {
	n, _ := s.resolver.Node(client)
	own := s.ready | s.ending
	if n != nil && len(n.Addresses) > 0 {
		own = 0
		for _, a := range n.Addresses {
			own.add(mesh.FamilyOf(a))
		}
	}
	key, usable := s.appendPaths(key, reach, client, n, false)
	if usable { // see Assignment
		return append(key, byte(s.ready&own))
	}
	key, _ = s.appendPaths(key, reach, client, n, true)
	return append(key, byte(s.ending&own))
}

// appendPaths appends how a client on a node, which may be nil, reaches each of
// the groups that are terminating or not, and reports whether it reaches any.
func (s *Spread) appendPaths(key []byte, reach mesh.Reachability, client mesh.NodeID, n *mesh.Node, terminating bool) (_ []byte, usable bool) {
	for i := range s.groups {
		g := &s.groups[i]
		if g.terminating != terminating {
			continue
		}
		kind := s.resolver.Path(reach, client, g.target).Kind
		usable = usable || kind != mesh.None
		b := byte(kind) << 1
		if kind == mesh.Direct {
			b |= s.priority(n, g)
		}
		key = append(key, b)
	}
	return key, usable
}

// Assignment returns what a client gets.
func (s *Spread) Assignment(reach mesh.Reachability, client mesh.NodeID) Assignment {
	a := Assignment{Name: s.name}
	if s.prefer != mesh.PreferNone {
		a.GatewayPriority = 1
	}
	n, _ := s.resolver.Node(client)
	// Terminating endpoints serve where nothing else does.
	for _, terminating := range []bool{false, true} {
		usable := false
		remotes := map[string]*Remote{}
		for i := range s.groups {
			g := &s.groups[i]
			if g.terminating != terminating {
				continue
			}
			p := s.resolver.Path(reach, client, g.target)
			usable = usable || p.Kind != mesh.None
			if p.Kind == mesh.Direct {
				for _, addr := range g.addrs {
					a.Direct = append(a.Direct, Direct{Addr: addr, Node: g.target.Node, Region: g.region, Zone: g.zone, Reason: p.Reason, Priority: s.priority(n, g)})
				}
			}
			if g.target.Node.Cluster == s.cluster {
				continue
			}
			m := s.remote(remotes, client, g)
			switch p.Kind {
			case mesh.Direct:
				m.Standby = true
			case mesh.ViaGateway:
				m.Pods += len(g.addrs)
			case mesh.None:
				// Withheld: m says why.
			}
		}
		if usable || terminating {
			for _, m := range remotes {
				a.Remote = append(a.Remote, *m)
			}
			break
		}
	}
	slices.SortFunc(a.Remote, func(x, y Remote) int { return strings.Compare(x.Cluster, y.Cluster) })
	return a
}

// remote returns what a group's cluster offers by its gateways, made where it is
// missing.
func (s *Spread) remote(remotes map[string]*Remote, client mesh.NodeID, g *group) *Remote {
	cluster := g.target.Node.Cluster
	if m := remotes[cluster]; m != nil {
		return m
	}
	m := &Remote{Cluster: cluster}
	remotes[cluster] = m
	switch {
	case !g.target.TCP:
		m.Reason = mesh.ReasonNotTCP
	case !g.target.TLS:
		m.Reason = mesh.ReasonNoTLS
	default:
		var gateways []mesh.Gateway
		gateways, m.Reason = s.resolver.Gateways(client, cluster)
		for _, gw := range gateways {
			for _, p := range gw.Ports {
				m.Serving = append(m.Serving, netip.AddrPortFrom(gw.Addr, p))
			}
			for _, p := range gw.StandbyPorts {
				m.StandbyAddrs = append(m.StandbyAddrs, netip.AddrPortFrom(gw.Addr, p))
			}
		}
	}
	return m
}

// priority is 0 for what the service prefers for clients on a node, which may be
// nil, and for everything where it prefers nothing; else 1.
func (s *Spread) priority(n *mesh.Node, g *group) uint8 {
	preferred := true
	switch s.prefer {
	case mesh.PreferCluster:
		preferred = g.target.Node.Cluster == s.cluster
	case mesh.PreferZone:
		preferred = n != nil && n.Zone != "" && n.Zone == g.zone && n.Region == g.region
	case mesh.PreferNone:
	}
	if preferred {
		return 0
	}
	return 1
}
