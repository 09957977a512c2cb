package controlplane

import (
	"maps"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// logPrefixes tells which nodes' prefixes take no part, and which nodes have
// none, once each.
func (l *loop) logPrefixes(old, now []mesh.Node) {
	was, is := faults(old), faults(now)
	for _, k := range slices.Sorted(maps.Keys(is)) {
		if !was[k] {
			l.log.Warn("not reached from other clusters", "detail", k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if !is[k] {
			l.log.Info("no longer so", "detail", k)
		}
	}
}

// faults says, a sentence each, what is wrong with nodes' prefixes.
func faults(nodes []mesh.Node) map[string]bool {
	out := map[string]bool{}
	for i := range nodes {
		n := &nodes[i]
		for _, r := range n.Refused {
			out["prefix "+r.Prefix.String()+" of "+n.ID.String()+" is refused, "+string(r.Reason)+": "+r.Detail] = true
		}
		if len(n.PodCIDRs) == 0 {
			out["node "+n.ID.String()+" has no podCIDRs"] = true
		}
	}
	return out
}
