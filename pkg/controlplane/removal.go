package controlplane

import (
	"fmt"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// held lists the nodes that the source no longer has and that are still in
// force, sorted.
func (c *cluster) held() []string {
	var out []string
	for name := range c.nodes {
		if _, ok := c.latest[name]; !ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// lose notes that a cluster's source no longer has it. Its nodes and its name
// stay its own until that is confirmed, or its nodes until they were held for
// long enough.
func (l *loop) lose(c *cluster) {
	c.gone, c.latest = true, map[string]mesh.Node{}
	l.removeNodes(c, len(c.nodes))
}

// removeNodes removes the nodes that the source no longer has, or holds them
// where that looks like a source that lost its data. before is how many nodes
// there were before what is new: that does not make up for what is missing.
func (l *loop) removeNodes(c *cluster, before int) {
	gone := c.held()
	if len(gone) == 0 {
		if !c.heldSince.IsZero() {
			l.log.Info("held nodes are back", "cluster", c.decl.Name)
		}
		c.heldSince = time.Time{}
		return
	}
	now := l.now()
	recent := c.recent.recent(now)
	switch {
	case c.heldSince.IsZero() && tooMany(before+recent, recent, len(gone)):
		c.heldSince = now
		l.log.Warn("removal held: the source no longer has these nodes", "cluster", c.decl.Name, "nodes", gone, "of", len(c.nodes), "for", l.hold,
			"confirm", "controlplane confirm "+c.decl.Name)
		return
	case !c.heldSince.IsZero() && now.Sub(c.heldSince) < l.hold:
		// Also where few are missing by now: the others are coming back one by one.
		return
	}
	l.dropNodes(c, gone)
	c.recent.add(len(gone), now)
}

// releaseHeld removes what has been held for long enough. A cluster that was given
// another name ends with its nodes, since that is a person's doing; one whose
// source vanished keeps its name and its claims until it is confirmed.
func (l *loop) releaseHeld() {
	ended := false
	for _, c := range l.clusters {
		if !c.heldSince.IsZero() && l.now().Sub(c.heldSince) >= l.hold {
			l.removeNodes(c, len(c.nodes))
		}
		if !c.objects.since.IsZero() && l.now().Sub(c.objects.since) >= l.hold {
			l.takeObjects(c, nil, false, true)
		}
		if !c.restoredSince.IsZero() {
			l.heard(c, false)
		}
		if c.gone && len(c.nodes) == 0 && l.renamed(c) {
			l.removeCluster(c)
			ended = true
		}
	}
	if ended {
		l.promote()
	}
}

// dropNodes ends the nodes' place in the mesh: their registrations, tunnel
// addresses and streams.
func (l *loop) dropNodes(c *cluster, names []string) {
	c.heldSince = time.Time{}
	for _, name := range names {
		id := mesh.NodeID{Cluster: c.decl.Name, Name: name}
		l.forgetHolds(id, c.nodes[name].PodCIDRs, nil)
		delete(c.nodes, name)
		delete(l.lastSeen, id)
		l.catalog.Forget(id)
		l.stalePods[id] = struct{}{}
		if r, ok := l.registrations[id]; ok {
			for _, a := range r.TunnelAddrs {
				l.pool.Release(a)
			}
			delete(l.registrations, id)
		}
		l.revoke(id, fmt.Errorf("node %s is no longer in the source of cluster %s", id, id.Cluster))
		l.pending = append(l.pending, write{put: func(tx *store.Tx) {
			tx.DeleteNode(id)
			tx.DeleteRegistration(id)
		}})
		l.log.Info("node removed", "node", id)
	}
	l.dirty = true
}

// confirm applies a cluster's held removals at once; a cluster whose source is
// gone ends with them, and so do its claims.
func (l *loop) confirm(name string) ([]string, error) {
	c := l.clusters[name]
	if c == nil {
		return nil, fmt.Errorf("there is no cluster %q; see: controlplane status", name)
	}
	gone := c.held()
	l.dropNodes(c, gone)
	l.takeObjects(c, nil, false, true)
	l.heard(c, true)
	if c.gone {
		l.removeCluster(c)
		l.promote()
	}
	return gone, nil
}

// removeCluster ends a cluster that has no nodes left, and its claims.
func (l *loop) removeCluster(c *cluster) {
	name := c.decl.Name
	l.dropObjects(c)
	delete(l.clusters, name)
	l.forgetSource(c.source)
	var keys []string
	for k := range l.orders {
		if ownedBy(k, name) {
			keys = append(keys, k)
		}
	}
	l.forgetOrders(keys)
	l.pending = append(l.pending, write{put: func(tx *store.Tx) { tx.DeleteCluster(name) }})
	l.dirty = true
	l.log.Info("cluster removed", "cluster", name)
}
