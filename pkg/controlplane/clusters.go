package controlplane

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/overlap"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// cluster is what is known of one cluster.
type cluster struct {
	decl   mesh.Cluster
	source string
	// nodes are in force; latest is what the source says now. They differ while
	// a removal is held.
	nodes     map[string]mesh.Node
	latest    map[string]mesh.Node
	gone      bool // the source's folder or registration is no longer there
	heldSince time.Time
	recent    removals
	// objects are all others that the source has, index what they say.
	objects objects
	index   *source.Index
	// spoken: the source has told everything on this run. Until then that a pod is
	// not in the index says nothing.
	spoken bool
	// restored is what an earlier run knew of the cluster's services, while its
	// source has not spoken; restoredSince is when that was found suspicious.
	restored      *clusterDetails
	restoredSince time.Time
	// invalid says why nodes of the source are not taken, by name.
	invalid map[string]error
}

func newCluster(c store.Cluster, services source.Options) *cluster {
	return &cluster{
		decl: c.Cluster, source: c.Source,
		nodes: map[string]mesh.Node{}, latest: map[string]mesh.Node{},
		objects: newObjects(), index: source.NewIndex(c.Cluster, services), invalid: map[string]error{},
	}
}

// takeUpdates takes in what sources say. first marks the batch with which every
// source has told its first state.
func (l *loop) takeUpdates(updates []source.Update, first bool) {
	for _, u := range updates {
		l.takeUpdate(u)
	}
	if first {
		heard := maps.Clone(l.sources)
		for _, c := range l.clusters {
			if _, ok := heard[c.source]; !ok {
				l.noteSource(c.source, errors.New("the folder is no longer there"))
				l.lose(c)
			}
		}
		l.synced, l.dirty = true, true
	}
	l.promote()
}

func (l *loop) takeUpdate(u source.Update) {
	if u.Gone {
		l.takeGone(u)
		return
	}
	if u.Cluster.Name == "" {
		l.noteSource(u.Source, u.Err)
		return
	}
	for _, c := range l.clusters {
		if c.source == u.Source && c.decl.Name != u.Cluster.Name && !c.gone {
			l.lose(c) // renamed while nobody looked
		}
	}
	if err := l.claimName(u.Source, u.Cluster); err != nil {
		l.noteSource(u.Source, errors.Join(err, u.Err))
		l.wait(u)
		return
	}
	delete(l.waiting, u.Source)
	c := l.clusters[u.Cluster.Name]
	if c == nil {
		c = newCluster(store.Cluster{}, l.services)
		l.clusters[u.Cluster.Name] = c
		l.log.Info("cluster added", "cluster", u.Cluster.Name, "source", u.Source)
	}
	c.gone = false
	if !c.decl.Equal(u.Cluster) || c.source != u.Source {
		l.forgetWithdrawn(c.decl, u.Cluster)
		was := c.source
		c.decl, c.source = u.Cluster, u.Source
		l.applied(c, c.index.SetCluster(c.decl))
		l.forgetSource(was)
		record := store.Cluster{Cluster: c.decl, Source: c.source}
		l.pending = append(l.pending, write{put: func(tx *store.Tx) { tx.PutCluster(record) }})
		l.dirty = true
	}
	if u.Full {
		c.latest = map[string]mesh.Node{}
		clear(c.invalid)
	}
	before := len(c.nodes)
	var others []source.Change
	for _, change := range u.Changes {
		if change.Key.Kind == source.KindNode {
			l.takeNode(c, change)
		} else {
			others = append(others, change)
		}
	}
	// Nodes first: a source that has lost them is not believed about the rest.
	l.removeNodes(c, before)
	l.takeObjects(c, others, u.Full, false)
	if u.Full && !c.spoken {
		c.spoken = true
		for name := range c.nodes {
			l.stalePods[mesh.NodeID{Cluster: c.decl.Name, Name: name}] = struct{}{}
		}
	}
	l.heard(c, false)
	errs := []error{u.Err}
	for _, name := range slices.Sorted(maps.Keys(c.invalid)) {
		errs = append(errs, c.invalid[name])
	}
	l.noteSource(u.Source, errors.Join(errs...))
}

// forgetWithdrawn ends the places of claims that a person took off the
// declaration by hand.
func (l *loop) forgetWithdrawn(old, now mesh.Cluster) {
	if old.Name == "" {
		return
	}
	still := map[string]bool{}
	for _, c := range overlap.Claims([]mesh.Cluster{now}, nil, nil) {
		still[overlap.Key(c)] = true
	}
	var gone []string
	for _, c := range overlap.Claims([]mesh.Cluster{old}, nil, nil) {
		if k := overlap.Key(c); !still[k] {
			gone = append(gone, k)
		}
	}
	l.forgetOrders(gone)
}

func (l *loop) forgetOrders(keys []string) {
	keys = slices.DeleteFunc(keys, func(k string) bool { _, ok := l.orders[k]; return !ok })
	if len(keys) == 0 {
		return
	}
	for _, k := range keys {
		delete(l.orders, k)
	}
	l.pending = append(l.pending, write{put: func(tx *store.Tx) { tx.ForgetOrder(keys...) }})
}

func (l *loop) takeNode(c *cluster, change source.Change) {
	name := change.Key.Name
	delete(c.invalid, name)
	if change.Object == nil {
		delete(c.latest, name)
		return
	}
	n, err := source.Node(c.decl, change.Object.(*corev1.Node))
	if err != nil {
		// What was in force of this node stays so.
		c.invalid[name] = fmt.Errorf("node %s: %w", name, err)
		if old, ok := c.nodes[name]; ok {
			c.latest[name] = old
		}
		return
	}
	c.latest[name] = n
	old, ok := c.nodes[name]
	if ok && sameNode(old, n) {
		return
	}
	if !ok {
		l.stalePods[n.ID] = struct{}{} // its agent waits to be told that it has none
	}
	l.forgetHolds(n.ID, old.PodCIDRs, n.PodCIDRs)
	c.nodes[name] = n
	l.dirty = true
	record := store.Node{ID: n.ID, PodCIDRs: n.PodCIDRs, Addresses: n.Addresses, Region: n.Region, Zone: n.Zone}
	l.pending = append(l.pending, write{put: func(tx *store.Tx) { tx.PutNode(record) }})
}

// forgetHolds ends a node's hold on the prefixes that it no longer has: were it to
// come back to one that another node got meanwhile, that one is the first holder.
func (l *loop) forgetHolds(id mesh.NodeID, old, now []netip.Prefix) {
	var gone []string
	for _, p := range old {
		if !slices.Contains(now, p) {
			gone = append(gone, prefixKey(id, p))
		}
	}
	l.forgetOrders(gone)
}

func sameNode(a, b mesh.Node) bool {
	return a.ID == b.ID && slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.Addresses, b.Addresses) &&
		a.Region == b.Region && a.Zone == b.Zone
}
