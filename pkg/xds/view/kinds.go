package view

import (
	"slices"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// gatewayPorts are those on which an Envoy that is a gateway listens: first those
// that serve, then those for standby.
var gatewayPorts = []uint16{15443, 15444, 15445, 15446, 15447, 15448, 15449, 15450}

// shared returns a resource that does not depend on the client's node. Must hold
// c.mu.
func (c *Catalog) shared(kind build.Kind, cluster, typeURL, name string) (*discovery.Resource, xds.Answer) {
	switch {
	case typeURL == resource.ClusterType:
		return c.cluster(kind, cluster, name)
	case kind == build.GRPC && typeURL == resource.ListenerType:
		return c.listener(cluster, name)
	case kind == build.GRPC && typeURL == resource.RouteType:
		service, port, scope, err := c.parseClusterName(name)
		if err != nil {
			return nil, xds.Missing
		}
		return c.made(c.services[service], scope, port, madeKey{typeURL, kind, cluster, name}, build.RDS)
	case kind == build.Envoy, kind == build.Gateway:
		return c.whole(kind, cluster).lookup(typeURL, name)
	default:
		return nil, xds.Missing
	}
}

// cluster returns a CDS resource. Must hold c.mu.
func (c *Catalog) cluster(kind build.Kind, cluster, name string) (*discovery.Resource, xds.Answer) {
	k := madeKey{resource.ClusterType, kind, cluster, name}
	service, port, scope, err := c.parseName(kind, name)
	if err != nil {
		return c.whole(kind, cluster).lookup(resource.ClusterType, name)
	}
	of := scope
	if kind == build.Gateway {
		of = mesh.ScopeCluster // it knows its own cluster's part by the name that is exported
	}
	return c.first(service, func(s *served) (*discovery.Resource, xds.Answer) {
		if kind == build.Gateway && !admits(s.service, cluster, port) {
			return nil, xds.Missing
		}
		return c.made(s, of, port, k, func(p build.ServicePort) (*discovery.Resource, error) {
			p.Scope = scope
			return build.CDS(kind, p)
		})
	})
}

// listener returns the listener that a gRPC client asks for. Of a service's
// names only those are known that a change of it is told by. Must hold c.mu.
func (c *Catalog) listener(cluster, name string) (*discovery.Resource, xds.Answer) {
	service, port, scope, err := build.ParseListenerName(name, c.opts.MCS)
	if err != nil {
		return nil, xds.Missing
	}
	s := c.services[service]
	if s == nil || !slices.Contains(s.listeners(scope), name) {
		return nil, xds.Missing
	}
	if port == 0 {
		var only []uint16
		for _, n := range s.numbers() {
			if usable(s.service, cluster, scope, n) != nil {
				only = append(only, n)
			}
		}
		if len(only) != 1 {
			return nil, xds.Missing
		}
		port = only[0]
	}
	return c.made(s, scope, port, madeKey{resource.ListenerType, build.GRPC, cluster, name}, func(p build.ServicePort) (*discovery.Resource, error) {
		return build.LDS(name, p)
	})
}

// listeners returns the names of a service's gRPC listeners in a scope. Those
// without a port are there for the clients who can use only one.
func (s *served) listeners(scope mesh.Scope) []string {
	out := build.Aliases(s.service.Name, scope)
	for _, port := range s.numbers() {
		out = append(out, build.ListenerNames(s.service.Name, port, scope)...)
	}
	return out
}

// namesOf returns all names of a type by which some kind of client may know the
// service.
func (s *served) namesOf(typeURL string, mcs bool) []string {
	switch typeURL {
	case resource.ClusterType, resource.EndpointType:
		return s.allEndpointNames(mcs)
	case resource.ListenerType:
		out := []string{"virtualOutbound", "virtualOutbound-v6"}
		for _, scope := range scopes(mcs) {
			out = append(out, s.listeners(scope)...)
		}
		for _, port := range s.numbers() {
			suffix := "_" + strconv.Itoa(int(port))
			out = append(out, "0.0.0.0"+suffix, "::"+suffix)
			for _, p := range s.service.Parts {
				for _, ip := range p.ClusterIPs {
					out = append(out, ip.String()+suffix)
				}
			}
		}
		return out
	case resource.RouteType:
		out := s.endpointNames(mcs)
		for _, port := range s.numbers() {
			out = append(out, strconv.Itoa(int(port)))
		}
		return out
	default:
		return nil
	}
}

// whole returns what clients of a kind in a cluster get that is made of all
// services together: an Envoy's listeners and routes. It is made anew after each
// change of a definition, where such clients ask. Must hold c.mu.
func (c *Catalog) whole(kind build.Kind, cluster string) *whole {
	k := wholeKey{kind, cluster}
	c.wholesMu.Lock()
	defer c.wholesMu.Unlock()
	if w := c.wholes[k]; w != nil {
		return w
	}
	w, err := c.makeWhole(kind, cluster)
	if err != nil {
		c.opts.Log.Error("the listeners of a cluster's Envoys could not be made", "cluster", cluster, "kind", kind, "err", err)
		w = &whole{}
	}
	c.wholes[k] = w
	return w
}

type wholeKey struct {
	kind    build.Kind
	cluster string
}

// whole is resources by type and name; of its clusters only those that belong to
// no service. Nil where they could not be made.
type whole struct {
	byType map[string]map[string]*discovery.Resource
	// clusters are the names of all clusters, services' too.
	clusters []string
}

func (w *whole) lookup(typeURL, name string) (*discovery.Resource, xds.Answer) {
	if w.byType == nil {
		return nil, xds.Pending
	}
	if r := w.byType[typeURL][name]; r != nil {
		return r, xds.Found
	}
	return nil, xds.Missing
}

func (w *whole) names(typeURL string) ([]string, bool) {
	if typeURL == resource.ClusterType {
		return w.clusters, w.byType != nil
	}
	out := make([]string, 0, len(w.byType[typeURL]))
	for name := range w.byType[typeURL] {
		out = append(out, name)
	}
	return out, w.byType != nil
}

func (c *Catalog) makeWhole(kind build.Kind, cluster string) (*whole, error) {
	w := &whole{byType: map[string]map[string]*discovery.Resource{}}
	put := func(typeURL string, rs ...*discovery.Resource) {
		if w.byType[typeURL] == nil {
			w.byType[typeURL] = map[string]*discovery.Resource{}
		}
		for _, r := range rs {
			w.byType[typeURL][r.GetName()] = r
		}
	}
	ports := c.allPorts(kind, cluster)
	fixed, err := build.FixedClusters(kind)
	if err != nil {
		return nil, err
	}
	put(resource.ClusterType, fixed...)
	for _, r := range fixed {
		w.clusters = append(w.clusters, r.GetName())
	}
	for _, p := range ports {
		w.clusters = append(w.clusters, p.Name(kind))
	}
	if kind == build.Gateway {
		listeners, err := build.GatewayLDS(gatewayPorts, false)
		put(resource.ListenerType, listeners...)
		return w, err
	}
	listeners, err := build.EnvoyLDS(ports)
	if err != nil {
		return nil, err
	}
	put(resource.ListenerType, listeners...)
	byNumber := map[uint16][]build.ServicePort{}
	for _, p := range ports {
		byNumber[p.Port] = append(byNumber[p.Port], p)
	}
	for number, of := range byNumber {
		r, err := build.EnvoyRDS(number, of)
		if err != nil {
			return nil, err
		}
		put(resource.RouteType, r)
	}
	secrets, err := build.Secrets()
	put(resource.SecretType, secrets...)
	return w, err
}

// allPorts returns the ports of all services that clients of a kind in a cluster
// see. Must hold c.mu.
func (c *Catalog) allPorts(kind build.Kind, cluster string) []build.ServicePort {
	var out []build.ServicePort
	for _, s := range c.services {
		for _, number := range s.numbers() {
			if kind == build.Gateway {
				if p, ok := c.port(s, cluster, mesh.ScopeCluster, number); ok && admits(s.service, cluster, number) {
					p.Scope = exportedScope(c.opts.MCS)
					out = append(out, p)
				}
				continue
			}
			for _, scope := range scopes(c.opts.MCS) {
				if p, ok := c.port(s, cluster, scope, number); ok {
					out = append(out, p)
				}
			}
		}
	}
	return out
}

// Names implements xds.Source. Assignments and gRPC's resources are asked for by
// name.
func (c *Catalog) Names(view, typeURL string) ([]string, bool) {
	kind, client := parse(view)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.begun || kind == build.GRPC {
		return nil, c.begun
	}
	return c.whole(kind, client.Cluster).names(typeURL)
}

// scopes are those that hosts of the mesh have.
func scopes(mcs bool) []mesh.Scope {
	if mcs {
		return []mesh.Scope{mesh.ScopeCluster, mesh.ScopeSet}
	}
	return []mesh.Scope{mesh.ScopeMesh}
}

// exportedScope is that of the host by which clients of other clusters reach a
// service.
func exportedScope(mcs bool) mesh.Scope {
	if mcs {
		return mesh.ScopeSet
	}
	return mesh.ScopeMesh
}
