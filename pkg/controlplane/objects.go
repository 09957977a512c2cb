package controlplane

import (
	"maps"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// objects is what a cluster's source has besides nodes, as it is in force.
type objects struct {
	inForce map[source.Key]runtime.Object
	// endpoints counts those in the slices that are in force.
	endpoints int
	// withheld are changes that are not in force yet, because together they look
	// like a source that lost its data; since is when the first came.
	withheld map[source.Key]runtime.Object
	since    time.Time
}

func newObjects() objects {
	return objects{inForce: map[source.Key]runtime.Object{}, withheld: map[source.Key]runtime.Object{}}
}

// manyEndpoints is how many endpoints a cluster must have for the loss of all at
// once to be suspicious: the only service of a small cluster may well be scaled
// down.
const manyEndpoints = 3

func endpointsIn(o runtime.Object) int {
	if s, ok := o.(*discoveryv1.EndpointSlice); ok {
		return len(s.Endpoints)
	}
	return 0
}

// takes away reports whether a change only takes away: an object that is gone or
// a slice that is empty.
func takesAway(o runtime.Object) bool {
	if o == nil {
		return true
	}
	s, ok := o.(*discoveryv1.EndpointSlice)
	return ok && len(s.Endpoints) == 0
}

// losesAll reports whether the withheld changes would take all services, all
// endpoints or all pods of the cluster at once.
func (o *objects) losesAll() bool {
	have, gone := map[source.Kind]int{}, map[source.Kind]int{}
	for k := range o.inForce {
		have[k.Kind]++
	}
	endpoints := 0
	for k, next := range o.withheld {
		if next == nil && o.inForce[k] != nil {
			gone[k.Kind]++
		}
		endpoints += endpointsIn(o.inForce[k]) - endpointsIn(next)
	}
	all := func(k source.Kind, more int) bool { return have[k] > more && gone[k] == have[k] }
	return all(source.KindService, 1) || all(source.KindPod, manyEndpoints) || o.endpoints > manyEndpoints && endpoints == o.endpoints
}

// take brings changes into force and returns them, with what was withheld where
// that is over. full says that the changes are everything there is; release that
// nothing is to be withheld; doubt that the source has lost something else.
func (o *objects) take(changes []source.Change, full, release, doubt bool, now time.Time, hold time.Duration) []source.Change {
	told := make(map[source.Key]bool, len(changes))
	out := make([]source.Change, 0, len(changes))
	for _, c := range changes {
		told[c.Key] = true
		delete(o.withheld, c.Key)
		if takesAway(c.Object) && o.inForce[c.Key] != nil {
			o.withheld[c.Key] = c.Object
		} else if c.Object != nil {
			out = append(out, c)
		}
	}
	if full {
		for k := range o.inForce {
			if !told[k] {
				o.withheld[k] = nil
			}
		}
	}
	held := !o.since.IsZero() && now.Sub(o.since) < hold
	switch {
	case len(o.withheld) == 0:
		o.since = time.Time{}
	case held && !release:
		// Also where few are missing by now: the others are coming back one by one.
	case release || !o.since.IsZero() || !doubt && !o.losesAll():
		for _, k := range slices.SortedFunc(maps.Keys(o.withheld), source.Key.Compare) {
			out = append(out, source.Change{Key: k, Object: o.withheld[k]})
		}
		clear(o.withheld)
		o.since = time.Time{}
	default:
		o.since = now
	}
	for _, c := range out {
		o.endpoints += endpointsIn(c.Object) - endpointsIn(o.inForce[c.Key])
		if c.Object == nil {
			delete(o.inForce, c.Key)
		} else {
			o.inForce[c.Key] = c.Object
		}
	}
	return out
}

// takeObjects takes in what a source says of everything but nodes.
func (l *loop) takeObjects(c *cluster, changes []source.Change, full, release bool) {
	was := c.objects.since
	in := c.objects.take(changes, full, release, !c.heldSince.IsZero(), l.now(), l.hold)
	if now := c.objects.since; was.IsZero() && !now.IsZero() {
		l.log.Warn("removal held: the source has lost services, endpoints or pods, all at once or together with nodes", "cluster", c.decl.Name, "objects", len(c.objects.withheld), "for", l.hold,
			"confirm", "controlplane confirm "+c.decl.Name)
	}
	if len(in) == 0 {
		return
	}
	l.applied(c, c.index.Apply(in))
}

// applied notes what a change of a cluster's index concerns.
func (l *loop) applied(c *cluster, dirty source.Dirty) {
	for _, s := range dirty.Services {
		l.stale[s] = struct{}{}
	}
	for _, n := range dirty.Nodes {
		l.stalePods[mesh.NodeID{Cluster: c.decl.Name, Name: n}] = struct{}{}
	}
	l.dirty = l.dirty || dirty.Gateways
	l.unwritten = l.unwritten || dirty.Gateways
}

// dropObjects ends a cluster's services.
func (l *loop) dropObjects(c *cluster) {
	for s := range c.details().Services {
		l.stale[s] = struct{}{}
	}
}
