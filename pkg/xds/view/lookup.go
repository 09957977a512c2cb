package view

import (
	"fmt"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// Of names the view of the clients of a kind on a node. A gateway's node has no
// Name.
func Of(kind build.Kind, node mesh.NodeID) string { return string(kind) + "|" + node.String() }

// viewsOf returns the views that a node's clients may have.
func viewsOf(node mesh.NodeID) []string {
	return []string{Of(build.GRPC, node), Of(build.Envoy, node)}
}

// parse reads what Of made. It allocates nothing: it runs with every lookup.
func parse(view string) (build.Kind, mesh.NodeID) {
	kind, node, _ := strings.Cut(view, "|")
	cluster, name, _ := strings.Cut(node, "/")
	return build.Kind(kind), mesh.NodeID{Cluster: cluster, Name: name}
}

// Lookup implements xds.Source.
func (c *Catalog) Lookup(view, typeURL, name string) (*discovery.Resource, xds.Answer) {
	kind, client := parse(view)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.begun {
		return nil, xds.Pending
	}
	var r *discovery.Resource
	var answer xds.Answer
	if typeURL == resource.EndpointType {
		r, answer = c.assignment(kind, client, name)
	} else {
		r, answer = c.shared(kind, client.Cluster, typeURL, name)
	}
	if c.opts.Validate && answer == xds.Found {
		if err := build.Validate(r); err != nil {
			c.opts.Log.Error("a resource that was made is not valid and is withheld; this is a fault of flatmesh", "type", typeURL, "name", name, "view", view, "err", err)
			return nil, xds.Pending
		}
	}
	return r, answer
}

// assignment returns an assignment. Must hold c.mu.
func (c *Catalog) assignment(kind build.Kind, client mesh.NodeID, name string) (*discovery.Resource, xds.Answer) {
	service, port, scope, err := c.parseName(kind, name)
	if err != nil {
		return nil, xds.Missing
	}
	k := spreadKey{cluster: client.Cluster, scope: scope, port: port}
	if kind == build.Gateway {
		k.gateway, k.scope = true, mesh.ScopeCluster
	}
	return c.first(service, func(s *served) (*discovery.Resource, xds.Answer) { return c.assigned(s, k, name, client) })
}

// assigned returns the assignment that clients of a view key share. Must hold
// c.mu.
func (c *Catalog) assigned(s *served, k spreadKey, name string, client mesh.NodeID) (*discovery.Resource, xds.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.spreads[k]
	if sp == nil {
		if k.gateway && !admits(s.service, k.cluster, k.port) {
			return nil, xds.Missing
		}
		made := build.NewSpread(c.resolver, name, s.service, k.cluster, k.scope, k.port)
		if made == nil {
			// Not kept: clients may ask for any number.
			return nil, xds.Missing
		}
		sp = &spread{Spread: made, byKey: map[string]*discovery.Resource{}}
		s.spreads[k] = sp
	}
	if !k.gateway && !c.heard(client) {
		// Its agent has not told of its tunnels: what its clients have from before is
		// better than a guess.
		return nil, xds.Pending
	}
	var buf [64]byte
	key := sp.AppendKey(buf[:0], c.reach, client)
	if r := sp.byKey[string(key)]; r != nil {
		return r, xds.Found
	}
	r, err := build.EDS(sp.Assignment(c.reach, client))
	if err != nil {
		c.opts.Log.Error("an assignment could not be made", "name", name, "err", err)
		return nil, xds.Pending
	}
	if len(sp.byKey) >= maxKeys {
		clear(sp.byKey)
	}
	sp.byKey[string(key)] = r
	return r, xds.Found
}

// maxKeys bounds the assignments that are kept of one spread: tunnels that flap
// for days make ever new combinations.
const maxKeys = 4096

// parseName reads the name of a cluster or an assignment as a kind has it.
func (c *Catalog) parseName(kind build.Kind, name string) (mesh.ServiceName, uint16, mesh.Scope, error) {
	if kind != build.Gateway {
		return c.parseClusterName(name)
	}
	port, host, err := build.ParseSNI(name)
	if err != nil {
		return mesh.ServiceName{}, 0, 0, err
	}
	service, scope, err := c.parseHost(host)
	if err == nil && (scope != exportedScope(c.opts.MCS) || build.SNI(port, host) != name) {
		err = fmt.Errorf("%q is not how gateways know %s", name, service)
	}
	return service, port, scope, err
}

func (c *Catalog) parseClusterName(name string) (mesh.ServiceName, uint16, mesh.Scope, error) {
	port, host, err := build.ParseClusterName(name)
	if err != nil {
		return mesh.ServiceName{}, 0, 0, err
	}
	service, scope, err := c.parseHost(host)
	return service, port, scope, err
}

// parseHost reads the host of a resource's name, of which each service has one
// for each scope.
func (c *Catalog) parseHost(host string) (mesh.ServiceName, mesh.Scope, error) {
	service, scope, err := build.ParseHost(host, c.opts.MCS)
	if err == nil && build.Host(service, scope) != host {
		err = fmt.Errorf("host %q is not how resources name %s", host, service)
	}
	return service, scope, err
}

func (c *Catalog) heard(client mesh.NodeID) bool {
	_, ok := c.reach[client]
	return ok || c.unheard[client]
}

// made returns a resource of a service's port, made where it is asked for first.
// Must hold c.mu.
func (c *Catalog) made(s *served, scope mesh.Scope, number uint16, k madeKey, make func(build.ServicePort) (*discovery.Resource, error)) (*discovery.Resource, xds.Answer) {
	if s == nil {
		return nil, xds.Missing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.made[k]; r != nil {
		return r, xds.Found
	}
	p, ok := c.port(s, k.cluster, scope, number)
	if !ok {
		return nil, xds.Missing
	}
	r, err := make(p)
	if err != nil {
		c.opts.Log.Error("a resource could not be made", "type", k.typeURL, "name", k.name, "err", err)
		return nil, xds.Pending
	}
	s.made[k] = r
	return r, xds.Found
}

// port describes a service's port for the clients of a cluster; false where they
// have none such, or none that xDS clients can use.
func (c *Catalog) port(s *served, cluster string, scope mesh.Scope, number uint16) (build.ServicePort, bool) {
	def := usable(s.service, cluster, scope, number)
	if def == nil {
		return build.ServicePort{}, false
	}
	p, _ := def.Port(number)
	out := build.ServicePort{
		Service: s.service.Name, Scope: scope, Port: number, AppProtocol: p.AppProtocol, TLS: p.TLS,
		Protocol: p.Protocol, Retry: def.Retry, TrustDomain: c.opts.TrustDomain,
	}
	for _, account := range s.definition.accounts(cluster, scope, number) {
		out.SANs = append(out.SANs, fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", c.opts.TrustDomain, s.service.Name.Namespace, account))
	}
	if part, ok := s.service.Part(cluster); ok {
		out.ClusterIPs = part.ClusterIPs
	}
	return out, true
}
