package view

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

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
	opts  Options
	life  context.Context
	tell  Listener
	leave *leaving

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

	// wholes are made of all services together; wholesMu is taken after mu.
	wholesMu sync.Mutex
	wholes   map[wholeKey]*whole

	// The rest belongs to the goroutine of the Set methods.
	byNode    index[mesh.NodeID]
	byCluster index[string]
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
	c := &Catalog{
		opts: o, life: ctx, reach: mesh.Reachability{}, unheard: map[mesh.NodeID]bool{}, resolver: mesh.NewResolver(mesh.Topology{}),
		services: map[mesh.ServiceName]*served{}, wholes: map[wholeKey]*whole{}, byNode: index[mesh.NodeID]{}, byCluster: index[string]{},
	}
	c.leave = newLeaving(c)
	return c
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
	for _, t := range order {
		c.changedIn(t, views...)
	}
}

// SetTopology takes a new Topology in and tells whom it concerns.
func (c *Catalog) SetTopology(t mesh.Topology) {
	resolver := mesh.NewResolver(t)
	c.mu.Lock()
	old := c.topology
	c.topology, c.resolver = t, resolver
	touched := c.touched(old, t)
	var services []*served
	for name := range c.services {
		// Each refers to the resolver that it was made with.
		c.services[name] = c.services[name].renewed()
		if _, ok := touched.services[name]; ok {
			services = append(services, c.services[name])
		}
	}
	c.mu.Unlock()
	for _, n := range touched.nodes {
		c.changedIn(resource.EndpointType, viewsOf(n)...)
	}
	c.tellOf(resource.EndpointType, services)
}

// touched is what a change of the topology may change for clients.
type touched struct {
	// services have endpoints or gateways that are judged differently; nodes are
	// clients for which everything may be.
	services map[mesh.ServiceName]struct{}
	nodes    []mesh.NodeID
}

// touched compares two topologies. Must hold c.mu.
func (c *Catalog) touched(old, now mesh.Topology) touched {
	out := touched{services: map[mesh.ServiceName]struct{}{}}
	if !slices.Equal(old.Claims, now.Claims) || !slices.Equal(old.Conflicts, now.Conflicts) ||
		!slices.EqualFunc(old.Clusters, now.Clusters, mesh.Cluster.Equal) {
		for name := range c.services {
			out.services[name] = struct{}{}
		}
		return out
	}
	before := make(map[mesh.NodeID]*mesh.Node, len(old.Nodes))
	for i := range old.Nodes {
		before[old.Nodes[i].ID] = &old.Nodes[i]
	}
	node := func(id mesh.NodeID) {
		out.nodes = append(out.nodes, id)
		maps.Copy(out.services, c.byNode[id])
	}
	for i := range now.Nodes {
		n := &now.Nodes[i]
		if was := before[n.ID]; was == nil || !alike(was, n) {
			node(n.ID)
		}
		delete(before, n.ID)
	}
	for id := range before {
		node(id)
	}
	gateways := func(t mesh.Topology) map[string][]mesh.Gateway {
		m := map[string][]mesh.Gateway{}
		for _, g := range t.Gateways {
			m[g.Cluster] = append(m[g.Cluster], g)
		}
		return m
	}
	was, are := gateways(old), gateways(now)
	for _, cl := range now.Clusters {
		if !slices.EqualFunc(was[cl.Name], are[cl.Name], mesh.Gateway.Equal) {
			maps.Copy(out.services, c.byCluster[cl.Name])
		}
	}
	return out
}

// alike reports whether a node's part in the decision of Paths is the same.
func alike(a, b *mesh.Node) bool {
	return a.Region == b.Region && a.Zone == b.Zone && a.Registered() == b.Registered() &&
		slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.Refused, b.Refused) && slices.Equal(a.TunnelAddrs, b.TunnelAddrs)
}

// SetServices takes services in; nil stands for one that is gone.
func (c *Catalog) SetServices(changed map[mesh.ServiceName]*mesh.Service) {
	var endpoints, definitions []*served
	var gone []mesh.ServiceName
	c.mu.Lock()
	for name, s := range changed {
		old := c.services[name]
		if s == nil {
			if old != nil {
				c.unlink(old, nil)
				c.leave.begin(name, old)
				gone = append(gone, name)
			}
			continue
		}
		next := newServed(s)
		c.services[name] = next
		if old != nil {
			c.unlink(old, next)
		}
		c.link(next)
		if old != nil && old.definition.equal(next.definition) {
			next.inherit(old)
			endpoints = append(endpoints, next)
			continue
		}
		c.leave.end(name)
		definitions = append(definitions, next)
		if old != nil {
			definitions = append(definitions, old) // it may have had other names
		}
	}
	if len(definitions)+len(gone) > 0 {
		c.wholesMu.Lock()
		clear(c.wholes)
		c.wholesMu.Unlock()
	}
	c.mu.Unlock()
	// Make before break: a client that learns of a Listener finds what it refers
	// to.
	for _, t := range order {
		c.tellOf(t, definitions)
	}
	c.tellOf(resource.EndpointType, endpoints)
	c.leave.tell(gone)
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

// unlink takes off what old depends on and next, which may be nil, does not. Must
// hold c.mu.
func (c *Catalog) unlink(old, next *served) {
	name := old.service.Name
	for n := range old.nodes {
		if next == nil || !next.nodes[n] {
			c.byNode.remove(n, name)
		}
	}
	for _, p := range old.service.Parts {
		still := false
		if next != nil {
			_, still = next.service.Part(p.Cluster)
		}
		if !still {
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
	services := map[mesh.ServiceName]struct{}{}
	for _, n := range on {
		maps.Copy(services, c.byNode[n])
	}
	if len(services) == 0 {
		return
	}
	names := make([]string, 0, len(services))
	c.mu.RLock()
	for s := range services {
		if sv := c.services[s]; sv != nil {
			names = append(names, sv.endpointNames(c.opts.MCS)...)
		}
	}
	c.mu.RUnlock()
	if c.tell == nil {
		return
	}
	for _, v := range viewsOf(client) {
		c.tell.ChangedIn(resource.EndpointType, v, names...)
	}
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

func (c *Catalog) changed(typeURL string, names []string) {
	if c.tell != nil && len(names) > 0 {
		c.tell.Changed(typeURL, names...)
	}
}

// tellOf tells of all names of a type that services have.
func (c *Catalog) tellOf(typeURL string, services []*served) {
	var names []string
	for _, s := range services {
		names = append(names, s.namesOf(typeURL, c.opts.MCS)...)
	}
	c.changed(typeURL, names)
}

// order is the order in which types are told: each may refer to those before it.
var order = [...]string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType}
