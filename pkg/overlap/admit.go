package overlap

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// AdmitPrefixes sets Prefixes and Refused of the nodes of one cluster from their
// PodCIDRs. Both come out sorted.
//
// A prefix is refused as outside-range where package mesh refuses it or where the
// cluster declares pod ranges and it lies in none of them; and as a duplicate
// where it overlaps what another node holds. Prefixes are admitted in ascending
// order of what order returns for them, then by node and prefix, so the first
// holder keeps; a refused prefix holds nothing. Of a node's own prefixes, one
// that lies in another goes without mention. So the Prefixes of all nodes together
// are pairwise disjoint.
func AdmitPrefixes(c mesh.Cluster, nodes []mesh.Node, order func(node mesh.NodeID, p netip.Prefix) uint64) {
	type wish struct {
		node   int32
		prefix netip.Prefix
		order  uint64
	}
	var wishes []wish
	refuse := func(node int32, p netip.Prefix, reason mesh.Reason, detail string) {
		n := &nodes[node]
		n.Refused = append(n.Refused, mesh.RefusedPrefix{Prefix: p, Reason: reason, Detail: detail})
	}
	for i := range nodes {
		n := &nodes[i]
		n.Prefixes, n.Refused = nil, nil
		for _, p := range n.PodCIDRs {
			if why := outside(c, p); why != "" {
				refuse(int32(i), p, mesh.ReasonOutsideRange, why)
				continue
			}
			wishes = append(wishes, wish{int32(i), p, order(n.ID, p)})
		}
	}
	slices.SortFunc(wishes, func(a, b wish) int {
		return cmp.Or(
			cmp.Compare(a.order, b.order),
			nodes[a.node].ID.Compare(nodes[b.node].ID),
			mesh.ComparePrefix(a.prefix, b.prefix),
		)
	})

	prefixes := make([]netip.Prefix, len(wishes))
	for i, w := range wishes {
		prefixes[i] = w.prefix
	}
	forest := plant(prefixes)
	held := forest.marks()
	for i, w := range wishes {
		place := forest.places[i]
		holder := int32(-1)
		for list := range held.overlapping(place) {
			for _, h := range list[:min(len(list), 2)] {
				if wishes[h].node != w.node && (holder < 0 || h < holder) {
					holder = h
				}
			}
		}
		if holder < 0 {
			held.put(place, w.node, int32(i))
			nodes[w.node].Prefixes = append(nodes[w.node].Prefixes, w.prefix)
			continue
		}
		by, p := nodes[wishes[holder].node].ID, wishes[holder].prefix
		detail := fmt.Sprintf("overlaps %v, which %v holds", p, by)
		if p == w.prefix {
			detail = fmt.Sprintf("%v holds %v", by, p)
		}
		refuse(w.node, w.prefix, mesh.ReasonDuplicate, detail)
	}
	for i := range nodes {
		nodes[i].Prefixes = widest(nodes[i].Prefixes)
		slices.SortFunc(nodes[i].Refused, func(a, b mesh.RefusedPrefix) int { return mesh.ComparePrefix(a.Prefix, b.Prefix) })
		nodes[i].Refused = slices.Compact(nodes[i].Refused)
	}
}

// outside says why the cluster's nodes may not hold p whoever else does, or "".
func outside(c mesh.Cluster, p netip.Prefix) string {
	if err := mesh.ValidatePrefix(p); err != nil {
		return err.Error()
	}
	if len(c.PodCIDRs) == 0 {
		return ""
	}
	var ranges []string
	for _, r := range c.PodCIDRs {
		if r.Bits() <= p.Bits() && r.Contains(p.Addr()) {
			return ""
		}
		ranges = append(ranges, r.String())
	}
	return fmt.Sprintf("lies in none of the pod ranges that %s declares: %s", c.Name, strings.Join(ranges, ", "))
}

// widest sorts prefixes in place and drops those that lie in another.
func widest(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, mesh.ComparePrefix)
	kept := prefixes[:0]
	for _, p := range prefixes {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}
