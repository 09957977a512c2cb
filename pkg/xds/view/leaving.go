package view

import (
	"context"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// leave ends services that were told to be gone, or to have ports that some
// clients can no longer use. Their Listeners and routes are not served any more;
// their clusters and assignments are until no client refers to them, so that
// nothing breaks before what makes use of it is gone (Envoy's order of removal).
func (c *Catalog) leave(left []*served) {
	if c.tell != nil {
		ctx, cancel := context.WithTimeout(c.life, c.patience)
		for _, t := range [...]string{resource.ListenerType, resource.RouteType} {
			// It fails when a client takes too long: then they go all the same.
			_ = c.tell.Settled(ctx, t, c.namesOf(t, left)...)
		}
		cancel()
	}
	if c.life.Err() != nil {
		return // what ends is the control plane
	}
	c.mu.Lock()
	for _, s := range left {
		name := s.service.Name
		rest := slices.DeleteFunc(c.leaving[name], func(o *served) bool { return o == s })
		if c.leaving[name] = rest; len(rest) == 0 {
			delete(c.leaving, name)
		}
		c.unlink(s)
	}
	c.mu.Unlock()
	c.tellOf(resource.EndpointType, left)
	c.tellOf(resource.ClusterType, left)
}

// appendForms appends a service as it is, and as it was where that is still
// served. Must hold c.mu.
func (c *Catalog) appendForms(list []*served, name mesh.ServiceName) []*served {
	if s := c.services[name]; s != nil {
		list = append(list, s)
	}
	return append(list, c.leaving[name]...)
}

// first asks a service as it is, and then as it was, until one does not answer
// Missing. Must hold c.mu.
func (c *Catalog) first(name mesh.ServiceName, ask func(*served) (*discovery.Resource, xds.Answer)) (*discovery.Resource, xds.Answer) {
	if s := c.services[name]; s != nil {
		if r, answer := ask(s); answer != xds.Missing {
			return r, answer
		}
	}
	for _, s := range c.leaving[name] {
		if r, answer := ask(s); answer != xds.Missing {
			return r, answer
		}
	}
	return nil, xds.Missing
}

// narrows reports whether a change takes a port from some clients or gateways.
func narrows(old, next *mesh.Service, mcs bool) bool {
	clusters := []string{""} // one that has no part
	for _, s := range []*mesh.Service{old, next} {
		for _, p := range s.Parts {
			clusters = append(clusters, p.Cluster)
		}
	}
	for _, number := range numbers(old) {
		for _, cluster := range clusters {
			for _, scope := range scopes(mcs) {
				if usable(old, cluster, scope, number) != nil && usable(next, cluster, scope, number) == nil {
					return true
				}
			}
			if admits(old, cluster, number) && !admits(next, cluster, number) {
				return true
			}
		}
	}
	return false
}
