package relay

import (
	"maps"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// tunnels is to which nodes none can be used, and which entries hang on those that
// there are. It is guarded by the cache's mutex.
type tunnels struct {
	downs  map[mesh.NodeID]bool
	byNode map[mesh.NodeID]map[*entry]struct{}
}

func newTunnels() tunnels { return tunnels{byNode: map[mesh.NodeID]map[*entry]struct{}{}} }

func (t *tunnels) down(n mesh.NodeID) bool { return t.downs[n] }

// add enters an entry under the nodes to whose pods it leads by tunnels.
func (t *tunnels) add(e *entry) {
	for n := range e.nodes() {
		if t.byNode[n] == nil {
			t.byNode[n] = map[*entry]struct{}{}
		}
		t.byNode[n][e] = struct{}{}
	}
}

func (t *tunnels) remove(e *entry) {
	for n := range e.nodes() {
		delete(t.byNode[n], e)
		if len(t.byNode[n]) == 0 {
			delete(t.byNode, n)
		}
	}
}

// nodes yields the nodes that e's assignment reaches by tunnels, some several
// times.
func (e *entry) nodes() func(yield func(mesh.NodeID) bool) {
	return func(yield func(mesh.NodeID) bool) {
		if e.assignment == nil {
			return
		}
		for i := range e.assignment.Direct {
			if d := &e.assignment.Direct[i]; d.Reason == mesh.ReasonTunnel && !yield(d.Node) {
				return
			}
		}
	}
}

// demoted reports whether a tunnel of e's is down.
func (t *tunnels) demoted(e *entry) bool {
	for n := range e.nodes() {
		if t.down(n) {
			return true
		}
	}
	return false
}

// serve sees to it that e, which is Found, has the resource that clients get of
// it. Must hold c.mu.
func (c *cache) serve(e *entry) error {
	if e.served != nil {
		return nil
	}
	if !c.tunnels.demoted(e) {
		e.served = e.resource
		return nil
	}
	r, err := build.EDS(e.assignment.Demote(c.tunnels.down))
	if err != nil {
		return err
	}
	e.served = r
	return nil
}

// setDown takes in to which nodes no tunnel can be used, and returns the names of
// the assignments that are served otherwise by it.
func (c *cache) setDown(down map[mesh.NodeID]bool) map[build.Kind][]string {
	down = maps.Clone(down)
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.tunnels
	c.tunnels.downs = down
	touched := map[*entry]struct{}{}
	for n, entries := range c.tunnels.byNode {
		if old.down(n) != c.tunnels.down(n) {
			maps.Copy(touched, entries)
		}
	}
	out := map[build.Kind][]string{}
	for e := range touched {
		e.served = nil
		out[e.kind] = append(out[e.kind], e.name)
	}
	return out
}

// demotedNames returns the names of all assignments of which a part is demoted,
// those of several kinds once.
func (c *cache) demotedNames() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[string]struct{}{}
	for n, entries := range c.tunnels.byNode {
		if c.tunnels.down(n) {
			for e := range entries {
				names[e.name] = struct{}{}
			}
		}
	}
	return slices.Collect(maps.Keys(names))
}

// demotedNodes returns the nodes that assignments reach by tunnels, and to which
// none can be used.
func (c *cache) demotedNodes() []mesh.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []mesh.NodeID{}
	for n := range c.tunnels.byNode {
		if c.tunnels.down(n) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, mesh.NodeID.Compare)
	return out
}
