package controlplane

import (
	"maps"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// reportWait is how long a node's clients wait for their agent's first report
// before they are answered without: until then they keep what they have.
const reportWait = 5 * time.Second

// publishServices hands the services that may have changed to the catalog.
func (l *loop) publishServices() {
	if len(l.stale) > 0 {
		changed := make(map[mesh.ServiceName]*mesh.Service, len(l.stale))
		for name := range l.stale {
			changed[name] = l.service(name)
		}
		clear(l.stale)
		l.unwritten = true
		l.catalog.SetServices(changed)
	}
	if l.dirty {
		return // the topology is not what it will be
	}
	for id := range l.stalePods {
		l.publishPods(id)
	}
	clear(l.stalePods)
	if !l.begun {
		l.begun = true
		l.catalog.Begin(slices.Collect(maps.Keys(l.leases)))
	}
}

// service joins what the clusters have of a service; nil where none has any.
func (l *loop) service(name mesh.ServiceName) *mesh.Service {
	s := &mesh.Service{Name: name}
	for _, cluster := range slices.Sorted(maps.Keys(l.clusters)) {
		if p, ok := l.clusters[cluster].part(name); ok {
			s.Parts = append(s.Parts, p)
		}
	}
	if len(s.Parts) == 0 {
		return nil
	}
	return s
}

// podSet names the set of what a node's agent is told of its pods.
func podSet(node mesh.NodeID) xds.SetKey {
	return xds.SetKey{TypeURL: xds.PodsType, View: node.String()}
}

// publishPods tells a node's agent of its pods.
func (l *loop) publishPods(id mesh.NodeID) {
	c := l.clusters[id.Cluster]
	if c == nil {
		l.cache.Drop(podSet(id))
		return
	}
	if _, ok := c.nodes[id.Name]; !ok {
		l.cache.Drop(podSet(id))
		return
	}
	if !c.spoken {
		return // an agent that is told of no pods gives up their certificates
	}
	r, err := xds.PodsResource(id, c.index.PodsOn(id.Name))
	if err != nil {
		l.log.Error("publish a node's pods", "node", id, "err", err)
		return
	}
	l.cache.Replace(podSet(id), []*discovery.Resource{r})
}

// awaitReport has a node's clients answered without a report if none comes. It
// is called when its xDS stream begins.
func (l *loop) awaitReport(node mesh.NodeID) {
	if l.awaited[node] != nil || l.catalog.Reported(node) {
		return
	}
	var wait *time.Timer
	wait = time.AfterFunc(reportWait, func() {
		// It fails only with the end of everything.
		_ = l.do(l.life, func(l *loop) error {
			if l.awaited[node] != wait {
				return nil
			}
			delete(l.awaited, node)
			if l.known(node) == nil {
				l.catalog.GiveUp(node)
			}
			return nil
		})
	})
	l.awaited[node] = wait
}

// reported ends the wait for a node's report. Where its stream ends soon after, its
// clients keep what they have.
func (l *loop) reported(node mesh.NodeID) {
	if wait := l.awaited[node]; wait != nil {
		wait.Stop()
		delete(l.awaited, node)
	}
}
