package view

import (
	"maps"
	"slices"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// served is one service with the resources that were made of it. It is replaced
// when the service changes.
type served struct {
	service *mesh.Service
	// nodes are those that have endpoints; a part's name stands in it where the
	// endpoint's node is not known, so that a topology that learns of it concerns
	// the service.
	nodes      map[mesh.NodeID]bool
	definition definition

	mu sync.Mutex
	// spreads and made are filled as they are asked for.
	spreads map[spreadKey]*spread
	made    map[madeKey]*discovery.Resource
}

// spreadKey names a spread: what the clients of one cluster see of one port.
type spreadKey struct {
	cluster string
	scope   mesh.Scope
	port    uint16
	gateway bool
}

// spread is a build.Spread with the assignments that were made of it, by view
// key.
type spread struct {
	*build.Spread
	byKey map[string]*discovery.Resource
}

// madeKey names a resource that all clients of a kind in a cluster share.
type madeKey struct {
	typeURL string
	kind    build.Kind
	cluster string
	name    string
}

func newServed(s *mesh.Service) *served {
	out := &served{
		service: s, nodes: map[mesh.NodeID]bool{}, definition: definitionOf(s),
		spreads: map[spreadKey]*spread{}, made: map[madeKey]*discovery.Resource{},
	}
	for _, p := range s.Parts {
		for _, port := range p.Ports {
			for _, b := range port.Backends {
				out.nodes[mesh.NodeID{Cluster: p.Cluster, Name: b.Node}] = true
			}
		}
	}
	return out
}

// judgeAnew drops what was made of the topology. Must hold the Catalog's mutex
// for writing.
func (s *served) judgeAnew() {
	if len(s.spreads) > 0 {
		s.spreads = map[spreadKey]*spread{}
	}
}

// inherit takes over what was made of the same definition.
func (s *served) inherit(old *served) {
	old.mu.Lock()
	defer old.mu.Unlock()
	s.made = maps.Clone(old.made)
}

// definition is what of a service is not its endpoints: what clients see in
// listeners, routes and clusters.
type definition []partDefinition

type partDefinition struct {
	part  mesh.ServicePart // without ports
	ports []portDefinition
}

type portDefinition struct {
	port mesh.ServicePort // without backends
	// accounts are the service accounts of its pods, sorted; unknown says that
	// some pod's is not known.
	accounts []string
	unknown  bool
}

func definitionOf(s *mesh.Service) definition {
	out := make(definition, 0, len(s.Parts))
	for _, p := range s.Parts {
		d := partDefinition{part: p}
		d.part.Ports = nil
		for _, port := range p.Ports {
			q := portDefinition{port: port}
			q.port.Backends = nil
			for _, b := range port.Backends {
				if b.ServiceAccount == "" {
					q.unknown = true
				} else if i, found := slices.BinarySearch(q.accounts, b.ServiceAccount); !found {
					q.accounts = slices.Insert(q.accounts, i, b.ServiceAccount)
				}
			}
			d.ports = append(d.ports, q)
		}
		out = append(out, d)
	}
	return out
}

func (d definition) equal(o definition) bool {
	return slices.EqualFunc(d, o, func(a, b partDefinition) bool {
		return a.part.Cluster == b.part.Cluster && a.part.Created == b.part.Created && a.part.Exported == b.part.Exported &&
			a.part.Prefer == b.part.Prefer && a.part.Retry == b.part.Retry && slices.Equal(a.part.ClusterIPs, b.part.ClusterIPs) &&
			slices.EqualFunc(a.ports, b.ports, portDefinition.equal)
	})
}

func (p portDefinition) equal(o portDefinition) bool {
	a, b := p.port, o.port
	return a.Number == b.Number && a.Name == b.Name && a.Protocol == b.Protocol && a.AppProtocol == b.AppProtocol && a.TLS == b.TLS &&
		p.unknown == o.unknown && slices.Equal(p.accounts, o.accounts)
}

// accounts returns the service accounts that a port's pods may have, over the
// parts that a cluster's clients see; none where some pod's is not known.
func (d definition) accounts(cluster string, scope mesh.Scope, number uint16) []string {
	var out []string
	for _, p := range d {
		if !scope.In(cluster, &p.part) {
			continue
		}
		for _, q := range p.ports {
			if q.port.Number != number {
				continue
			}
			if q.unknown {
				return nil
			}
			out = append(out, q.accounts...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// numbers returns the numbers of the service's ports, of all clusters, sorted.
func numbers(s *mesh.Service) []uint16 {
	var out []uint16
	for _, p := range s.Parts {
		for _, q := range p.Ports {
			if !slices.Contains(out, q.Number) {
				out = append(out, q.Number)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (s *served) numbers() []uint16 { return numbers(s.service) }

// usable returns the part that defines a port for the clients of a cluster; nil
// where they have none such, or none that xDS clients can use.
func usable(s *mesh.Service, cluster string, scope mesh.Scope, number uint16) *mesh.ServicePart {
	def := s.Definition(cluster, scope, number)
	if def == nil {
		return nil
	}
	if p, _ := def.Port(number); p.Protocol != mesh.TCP {
		return nil
	}
	return def
}

// admits reports whether a cluster's gateways admit traffic to a port: where the
// cluster exports the service and its pods speak mesh mTLS.
func admits(s *mesh.Service, cluster string, number uint16) bool {
	part, ok := s.Part(cluster)
	if !ok || !part.Exported {
		return false
	}
	port, ok := part.Port(number)
	return ok && port.TLS && port.Protocol == mesh.TCP
}

// hosts returns the hosts that resources of the service are named for.
func hosts(n mesh.ServiceName, mcs bool) []string {
	if mcs {
		return []string{build.Host(n, mesh.ScopeCluster), build.Host(n, mesh.ScopeSet)}
	}
	return []string{build.Host(n, mesh.ScopeMesh)}
}

// endpointNames returns the names of the service's assignments for clients.
func (s *served) endpointNames(mcs bool) []string {
	var out []string
	for _, port := range s.numbers() {
		for _, h := range hosts(s.service.Name, mcs) {
			out = append(out, build.ClusterName(port, h))
		}
	}
	return out
}

// allEndpointNames adds those for gateways.
func (s *served) allEndpointNames(mcs bool) []string {
	return append(s.endpointNames(mcs), s.gatewayNames(mcs)...)
}

// gatewayNames returns the names by which gateways know the service: those in
// the SNI of clients of other clusters.
func (s *served) gatewayNames(mcs bool) []string {
	var out []string
	for _, port := range s.numbers() {
		out = append(out, build.SNI(port, exportedHost(s.service.Name, mcs)))
	}
	return out
}

// exportedHost is the host by which clients of other clusters reach a service.
func exportedHost(n mesh.ServiceName, mcs bool) string {
	if mcs {
		return build.Host(n, mesh.ScopeSet)
	}
	return build.Host(n, mesh.ScopeMesh)
}
