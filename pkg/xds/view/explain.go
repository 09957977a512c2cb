package view

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// Explanation says how a node reaches one endpoint, and why.
type Explanation struct {
	// Service and Port are empty for a pod that no service has.
	Service mesh.ServiceName
	Port    uint16
	Addr    netip.AddrPort
	Cluster string
	// Node is the endpoint's; Pod may not be known.
	Node mesh.NodeID
	Pod  string
	Path mesh.Path
	// Gateways are those that clients use where the Path is ViaGateway, or that
	// would stand in where it is Direct.
	Gateways []netip.AddrPort
	// Terminating: it is used only where no other endpoint is ready.
	Terminating bool
}

// Explain says how a node reaches a service, by any of its names, with or
// without a port, or a pod, by its address.
func (c *Catalog) Explain(from mesh.NodeID, target string) ([]Explanation, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if _, ok := c.resolver.Node(from); !ok {
		return nil, fmt.Errorf("there is no node %s in the mesh", from)
	}
	target = strings.TrimPrefix(target, "xds:///")
	if ap, err := netip.ParseAddrPort(target); err == nil {
		target = ap.Addr().String()
	}
	if addr, err := netip.ParseAddr(strings.Trim(target, "[]")); err == nil {
		return c.explainPod(from, addr.Unmap()), nil
	}
	name, port, scope, err := c.named(target)
	if err != nil {
		return nil, err
	}
	s := c.services[name]
	if s == nil {
		return nil, fmt.Errorf("no cluster has a service %s that can be served", name)
	}
	ports := []uint16{port}
	if port == 0 {
		ports = s.numbers()
	}
	var out []Explanation
	for _, p := range ports {
		out = append(out, c.explainPort(from, s.service, scope, p)...)
	}
	if out == nil && port != 0 && !slices.Contains(s.numbers(), port) {
		return nil, fmt.Errorf("service %s has no port %d: it has %v", name, port, s.numbers())
	}
	return out, nil
}

func (c *Catalog) named(target string) (mesh.ServiceName, uint16, mesh.Scope, error) {
	if name, err := mesh.ParseServiceName(target); err == nil {
		return name, 0, mesh.ScopeMesh, nil
	}
	if name, port, scope, err := c.parseClusterName(target); err == nil {
		return name, port, scope, nil
	}
	name, port, scope, err := build.ParseListenerName(target, c.opts.MCS)
	return name, port, scope, err
}

// explainPort explains a service's port. Must hold c.mu.
func (c *Catalog) explainPort(from mesh.NodeID, s *mesh.Service, scope mesh.Scope, number uint16) []Explanation {
	def := s.Definition(from.Cluster, scope, number)
	var out []Explanation
	for i := range s.Parts {
		part := &s.Parts[i]
		p, ok := part.Port(number)
		if !ok || scope == mesh.ScopeCluster && part.Cluster != from.Cluster {
			continue
		}
		second := build.OtherFamily(c.resolver, part, p, from.Cluster)
		for _, b := range p.Backends {
			if second(b) {
				continue // a dual-stack pod is one endpoint
			}
			t := build.TargetOf(part, p, b)
			e := Explanation{
				Service: s.Name, Port: number, Addr: b.Addr, Cluster: part.Cluster, Node: t.Node, Pod: b.Pod,
				Terminating: b.Terminating, Path: c.resolver.Path(c.reach, from, t),
			}
			if !scope.In(from.Cluster, part) {
				e.Path = mesh.Path{Kind: mesh.None, Reason: mesh.ReasonNotExported, Wanted: mesh.ReasonNotExported}
			} else if d, _ := def.Port(number); !p.Agrees(d) {
				e.Path = mesh.Path{Kind: mesh.None, Reason: mesh.ReasonMismatch, Wanted: mesh.ReasonMismatch}
			}
			if e.Path.Kind == mesh.ViaGateway || e.Path.Kind == mesh.Direct && part.Cluster != from.Cluster && t.TLS && t.TCP {
				gateways, _ := c.resolver.Gateways(from, part.Cluster)
				for _, g := range gateways {
					for _, p := range g.Ports {
						e.Gateways = append(e.Gateways, netip.AddrPortFrom(g.Addr, p))
					}
				}
			}
			out = append(out, e)
		}
	}
	return out
}

// explainPod explains a pod's address: as an endpoint of each service that has
// it, or, where none has, as a plain address. Must hold c.mu.
func (c *Catalog) explainPod(from mesh.NodeID, addr netip.Addr) []Explanation {
	var out []Explanation
	for _, s := range c.services {
		for _, number := range s.numbers() {
			for _, e := range c.explainPort(from, s.service, mesh.ScopeMesh, number) {
				if e.Addr.Addr() == addr {
					out = append(out, e)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Explanation) int {
		if n := a.Service.Compare(b.Service); n != 0 {
			return n
		}
		return int(a.Port) - int(b.Port)
	})
	if len(out) > 0 {
		return out
	}
	for i := range c.topology.Nodes {
		n := &c.topology.Nodes[i]
		if !slices.Contains(n.Addresses, addr) && !slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			continue
		}
		// Without a service there is no gateway either: it goes by the SNI.
		t := mesh.Target{Node: n.ID, Addr: addr, Exported: true, TCP: true}
		out = append(out, Explanation{Addr: netip.AddrPortFrom(addr, 0), Cluster: n.ID.Cluster, Node: n.ID, Path: c.resolver.Path(c.reach, from, t)})
	}
	return out
}
