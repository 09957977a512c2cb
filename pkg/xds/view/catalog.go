package view

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// Options says how services are served.
type Options struct {
	// TrustDomain is the mesh's, for the SPIFFE IDs that clients expect.
	TrustDomain string
	// MCS: cluster.local stands for the own cluster's endpoints alone,
	// clusterset.local for the exported ones (KEP-1645).
	MCS bool
	// Validate checks everything that is served deeply, and withholds what is
	// wrong. It costs a multiple of the serving itself.
	Validate bool
	Log      *slog.Logger
}

// Listener is told what has changed: the xDS server.
type Listener interface {
	// Changed tells of names of a type, in all views.
	Changed(typeURL string, names ...string)
	// ChangedIn tells of names in one view; of all where none is given.
	ChangedIn(typeURL, view string, names ...string)
	// Settled returns once every stream that subscribes to the names has
	// acknowledged what is current of them, or ctx ends.
	Settled(ctx context.Context, typeURL string, names ...string) error
}

// Catalog is what is served. Its Set methods and Begin are for one goroutine;
// Lookup, Names and Explain may be called from any.
type Catalog struct {
	opts Options
	life context.Context
	tell Listener
	// patience is how long clients have to acknowledge that a Listener or a route
	// is gone before what it refers to goes too.
	patience time.Duration

	mu sync.RWMutex
	// begun: everything was told once. Until then nothing is answered: what is
	// missing may only not have come yet.
	begun    bool
	topology mesh.Topology
	resolver *mesh.Resolver
	reach    mesh.Reachability
	// unheard are nodes whose report was waited for in vain.
	unheard  map[mesh.NodeID]bool
	services map[mesh.ServiceName]*served
	// leaving are services as they were before, newest first, while clients may
	// have Listeners and routes that refer to them: see leave.
	leaving map[mesh.ServiceName][]*served
	// byNode and byCluster find the services that depend on a node or a cluster,
	// those that are leaving too.
	byNode    index[mesh.NodeID]
	byCluster index[string]

	// wholes are made of all services together; wholesMu is taken after mu.
	wholesMu sync.Mutex
	wholes   map[wholeKey]*whole
}

// index maps what services depend on to their names.
type index[K comparable] map[K]map[mesh.ServiceName]struct{}

func (x index[K]) add(k K, n mesh.ServiceName) {
	if x[k] == nil {
		x[k] = map[mesh.ServiceName]struct{}{}
	}
	x[k][n] = struct{}{}
}

func (x index[K]) remove(k K, n mesh.ServiceName) {
	delete(x[k], n)
	if len(x[k]) == 0 {
		delete(x, k)
	}
}

// New returns an empty Catalog, which lives as long as ctx.
func New(ctx context.Context, o Options) *Catalog {
	return &Catalog{
		opts: o, life: ctx, patience: 30 * time.Second,
		reach: mesh.Reachability{}, unheard: map[mesh.NodeID]bool{}, resolver: mesh.NewResolver(mesh.Topology{}),
		services: map[mesh.ServiceName]*served{}, leaving: map[mesh.ServiceName][]*served{},
		byNode: index[mesh.NodeID]{}, byCluster: index[string]{}, wholes: map[wholeKey]*whole{},
	}
}

// Attach names the server that is told of changes; before, nobody is.
func (c *Catalog) Attach(l Listener) { c.tell = l }

// Begin says that all that there is has been told once, and answers those that
// wait: the clients of these nodes, and all gateways.
func (c *Catalog) Begin(nodes []mesh.NodeID) {
	c.mu.Lock()
	c.begun = true
	clusters := c.topology.Clusters
	c.mu.Unlock()
	var views []string
	for _, n := range nodes {
		views = append(views, viewsOf(n)...)
	}
	for _, cl := range clusters {
		views = append(views, Of(build.Gateway, mesh.NodeID{Cluster: cl.Name}))
	}
	for _, t := range [...]string{resource.SecretType, resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType} {
		c.changedIn(t, views...)
	}
}

// SetTopology takes a new Topology in and tells whom it concerns.
func (c *Catalog) SetTopology(t mesh.Topology) {
	resolver := mesh.NewResolver(t)
	c.mu.Lock()
	touched := c.touched(c.topology, t, resolver)
	if !slices.EqualFunc(c.topology.Clusters, t.Clusters, func(a, b mesh.Cluster) bool { return a.Name == b.Name }) {
		c.forgetClusters(&t)
	}
	c.topology, c.resolver = t, resolver
	for name := range c.services {
		c.services[name].judgeAnew()
	}
	for _, all := range c.leaving {
		for _, s := range all {
			s.judgeAnew()
		}
	}
	var services []*served
	for name := range touched.services {
		services = c.appendForms(services, name)
	}
	c.mu.Unlock()
	for _, n := range touched.nodes {
		c.changedIn(resource.EndpointType, viewsOf(n)...)
	}
	c.tellOf(resource.EndpointType, services)
}

// forgetClusters lets go of what was made for clients of clusters that are gone.
// Must hold c.mu.
func (c *Catalog) forgetClusters(t *mesh.Topology) {
	gone := func(cluster string) bool { _, ok := t.Cluster(cluster); return !ok }
	for _, s := range c.services {
		maps.DeleteFunc(s.made, func(k madeKey, _ *discovery.Resource) bool { return gone(k.cluster) })
	}
	c.wholesMu.Lock()
	maps.DeleteFunc(c.wholes, func(k wholeKey, _ *whole) bool { return gone(k.cluster) })
	c.wholesMu.Unlock()
}

// SetServices takes services in; nil stands for one that is gone.
func (c *Catalog) SetServices(changed map[mesh.ServiceName]*mesh.Service) {
	var endpoints, definitions, left []*served
	c.mu.Lock()
	for name, s := range changed {
		old := c.services[name]
		if s == nil {
			if old != nil {
				delete(c.services, name)
				left = append(left, old)
			}
			continue
		}
		next := newServed(s)
		c.services[name] = next
		c.link(next)
		switch {
		case old == nil:
			definitions = append(definitions, next)
		case old.definition.equal(next.definition):
			next.inherit(old)
			endpoints = append(endpoints, next)
			c.unlink(old)
		case narrows(old.service, next.service, c.opts.MCS):
			definitions = append(definitions, next)
			left = append(left, old)
		default:
			definitions = append(definitions, next, old) // it may have had other names
			c.unlink(old)
		}
	}
	for _, s := range left {
		name := s.service.Name
		c.leaving[name] = slices.Insert(c.leaving[name], 0, s)
	}
	if len(definitions)+len(left) > 0 {
		c.wholesMu.Lock()
		clear(c.wholes)
		c.wholesMu.Unlock()
	}
	c.mu.Unlock()
	// Make before break: a client that learns of a Listener finds what it refers
	// to.
	c.tellOf(resource.ClusterType, definitions)
	c.tellOf(resource.EndpointType, slices.Concat(definitions, endpoints))
	unreferred := slices.Concat(definitions, left)
	c.tellOf(resource.ListenerType, unreferred)
	c.tellOf(resource.RouteType, unreferred)
	if len(left) > 0 {
		go c.leave(left)
	}
}

// link enters a service into the indices. Must hold c.mu.
func (c *Catalog) link(s *served) {
	name := s.service.Name
	for n := range s.nodes {
		c.byNode.add(n, name)
	}
	for _, p := range s.service.Parts {
		c.byCluster.add(p.Cluster, name)
	}
}

// unlink takes off the indices what a service that is no longer served depended
// on, and none of its other forms does. Must hold c.mu.
func (c *Catalog) unlink(s *served) {
	name := s.service.Name
	rest := c.appendForms(nil, name)
	for n := range s.nodes {
		if !slices.ContainsFunc(rest, func(o *served) bool { return o.nodes[n] }) {
			c.byNode.remove(n, name)
		}
	}
	for _, p := range s.service.Parts {
		if !slices.ContainsFunc(rest, func(o *served) bool { _, ok := o.service.Part(p.Cluster); return ok }) {
			c.byCluster.remove(p.Cluster, name)
		}
	}
}

// SetReport takes in what a node's agent reports of its tunnels, all of them;
// nil where its stream has ended. The map must not be changed afterwards.
func (c *Catalog) SetReport(node mesh.NodeID, tunnels map[mesh.NodeID]mesh.TunnelStatus) {
	c.mu.Lock()
	old, had := c.reach[node]
	if tunnels == nil {
		delete(c.reach, node)
	} else {
		c.reach[node] = tunnels
		delete(c.unheard, node)
	}
	// A node's own Paths hang on Up, those of others to it on Down.
	var mine []mesh.NodeID
	theirs := map[mesh.NodeID]bool{}
	compare := func(to mesh.NodeID) {
		was, is := old[to].State, tunnels[to].State
		if (was == mesh.Up) != (is == mesh.Up) {
			mine = append(mine, to)
		}
		if (was == mesh.Down) != (is == mesh.Down) {
			theirs[to] = true
		}
	}
	for to := range tunnels {
		compare(to)
	}
	for to := range old {
		if _, ok := tunnels[to]; !ok {
			compare(to)
		}
	}
	c.mu.Unlock()
	switch {
	case tunnels == nil:
		// Its own clients keep what they have: that it is silent says nothing of its
		// tunnels.
	case !had:
		c.changedIn(resource.EndpointType, viewsOf(node)...)
	default:
		c.nodeNames(node, mine)
	}
	for to := range theirs {
		c.nodeNames(to, []mesh.NodeID{node})
	}
}

// nodeNames tells a client node of the services that have endpoints on others.
func (c *Catalog) nodeNames(client mesh.NodeID, on []mesh.NodeID) {
	var services []*served
	c.mu.RLock()
	seen := map[mesh.ServiceName]struct{}{}
	for _, n := range on {
		for name := range c.byNode[n] {
			if _, ok := seen[name]; !ok {
				seen[name] = struct{}{}
				services = c.appendForms(services, name)
			}
		}
	}
	c.mu.RUnlock()
	var names []string
	for _, s := range services {
		names = append(names, s.endpointNames(c.opts.MCS)...)
	}
	if names = sorted(names); c.tell == nil || len(names) == 0 {
		return
	}
	for _, v := range viewsOf(client) {
		c.tell.ChangedIn(resource.EndpointType, v, names...)
	}
}

// Reported reports whether a node's report is known: its agent's stream is open.
func (c *Catalog) Reported(node mesh.NodeID) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	_, ok := c.reach[node]
	return ok
}

// GiveUp answers a node's clients though its agent has not reported.
func (c *Catalog) GiveUp(node mesh.NodeID) {
	c.mu.Lock()
	_, reported := c.reach[node]
	if !reported {
		c.unheard[node] = true
	}
	c.mu.Unlock()
	if !reported {
		c.changedIn(resource.EndpointType, viewsOf(node)...)
	}
}

// Forget ends what is kept of a node that is gone.
func (c *Catalog) Forget(node mesh.NodeID) {
	c.mu.Lock()
	delete(c.unheard, node)
	c.mu.Unlock()
}

func (c *Catalog) changedIn(typeURL string, views ...string) {
	if c.tell == nil {
		return
	}
	for _, v := range views {
		c.tell.ChangedIn(typeURL, v)
	}
}

// namesOf returns all names of a type that services have.
func (c *Catalog) namesOf(typeURL string, services []*served) []string {
	var names []string
	for _, s := range services {
		names = append(names, s.namesOf(typeURL, c.opts.MCS)...)
	}
	return sorted(names)
}

// tellOf tells of all names of a type that services have.
func (c *Catalog) tellOf(typeURL string, services []*served) {
	if names := c.namesOf(typeURL, services); c.tell != nil && len(names) > 0 {
		c.tell.Changed(typeURL, names...)
	}
}

// sorted returns the names sorted and each once.
func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
