package view

import (
	"context"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// patience is how long clients have to acknowledge that a Listener or a route is
// gone before what it refers to goes too.
const patience = 30 * time.Second

// leaving holds services that are gone: their Listeners and routes are no longer
// served, their clusters and assignments are until no client refers to them, so
// that nothing breaks before what makes use of it is gone (Envoy's order of
// removal).
type leaving struct {
	catalog *Catalog
	gone    map[mesh.ServiceName]*served // guarded by the Catalog's mutex
}

func newLeaving(c *Catalog) *leaving {
	return &leaving{catalog: c, gone: map[mesh.ServiceName]*served{}}
}

// begin turns a service into one that is leaving. Must hold the Catalog's mutex.
func (l *leaving) begin(name mesh.ServiceName, s *served) {
	delete(l.catalog.services, name)
	l.gone[name] = s
}

// end: a service of the name is there again. Must hold the Catalog's mutex.
func (l *leaving) end(name mesh.ServiceName) { delete(l.gone, name) }

// tell tells of services that are leaving, and in the end that they have left.
func (l *leaving) tell(names []mesh.ServiceName) {
	c := l.catalog
	for _, name := range names {
		c.mu.RLock()
		s := l.gone[name]
		c.mu.RUnlock()
		if s == nil {
			continue
		}
		mcs := c.opts.MCS
		listeners, routes := s.namesOf(resource.ListenerType, mcs), s.namesOf(resource.RouteType, mcs)
		c.changed(resource.ListenerType, listeners)
		c.changed(resource.RouteType, routes)
		go func() {
			ctx, cancel := context.WithTimeout(c.life, patience)
			defer cancel()
			if c.tell != nil {
				// It fails when a client takes too long: then it goes all the same.
				_ = c.tell.Settled(ctx, resource.ListenerType, listeners...)
				_ = c.tell.Settled(ctx, resource.RouteType, routes...)
			}
			c.mu.Lock()
			last := l.gone[name] == s
			if last {
				delete(l.gone, name)
			}
			c.mu.Unlock()
			if !last {
				return // there is one of the name again
			}
			c.changed(resource.EndpointType, s.allEndpointNames(mcs))
			c.changed(resource.ClusterType, s.namesOf(resource.ClusterType, mcs))
		}()
	}
}
