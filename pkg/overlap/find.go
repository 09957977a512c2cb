package overlap

import (
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Find returns the conflicts between claims of different clusters, and of a
// cluster and the mesh's tunnel range, sorted by Second and then First as
// mesh.Claim.Compare orders them: by when they were registered. It reads claims
// in any order and changes nothing of them.
//
// What follows from an overlap depends on the two kinds alone:
//
//	pod × pod, pod × tunnel                Yields, the later claim
//	pod × service, pod × node              PairApart
//	service × tunnel, node × tunnel        NoTunnels
//	service × service, node × node,
//	service × node                         Listed
//
// Which overlaps are reported is chosen so that nothing harmful is left unnamed
// and nothing harmless floods the list: for each later claim,
//
//   - of each other cluster and each effect but Listed, the overlap with that
//     cluster's earliest claim;
//   - of the Listed ones a single one, with the earliest claim of all: a hundred
//     clusters with the service range 10.96.0.0/12 make 99 lines, not 4,950.
//
// A claim that yields keeps its place in the order, and what overlaps it later
// yields to it. So a conflict is a function of its two claims and earlier ones:
// nothing that is registered later changes it.
//
// Claims with the same cluster, kind, node and prefix count once, with their
// smallest Order. Left out are claims that the validation in package mesh keeps
// away from here: a prefix that is not canonical, a kind that is not known, a
// tunnel range of a cluster or another range of the mesh.
//
// The time is O(n log n + n·d + c·d) for n claims of which at most d contain
// each other (33 for IPv4, 129 for IPv6, mostly under 4), and c conflicts.
func Find(claims []mesh.Claim) []mesh.Conflict {
	claims = slices.DeleteFunc(slices.Clone(claims), func(c mesh.Claim) bool { return !judged(c) })
	slices.SortFunc(claims, mesh.Claim.Compare)
	prefixes := make([]netip.Prefix, len(claims))
	for i := range claims {
		prefixes[i] = claims[i].Prefix
	}
	forest := plant(prefixes)
	owners, clusters := number(claims)
	// Claims come in the order of registration, so what is marked is earlier.
	pods, others := forest.marks(), forest.marks()

	type identity struct {
		owner, place int32
		kind         mesh.ClaimKind
		node         string
	}
	known := make(map[identity]struct{}, len(claims))
	// named[owner][podlike] is the claim for which that owner was last named.
	named := make([][2]int32, clusters)

	var out []mesh.Conflict
	var earlier []int32
	for i := range claims {
		c, owner, place := &claims[i], owners[i], forest.places[i]
		id := identity{owner, place, c.Kind, c.Node}
		if _, ok := known[id]; ok {
			continue
		}
		known[id] = struct{}{}

		earlier = earlier[:0]
		for list := range pods.overlapping(place) {
			earlier = append(earlier, list...)
		}
		for list := range others.overlapping(place) {
			if !podlike(c.Kind) {
				list = list[:min(len(list), 2)] // Listed: the first of another cluster will do
			}
			earlier = append(earlier, list...)
		}
		slices.Sort(earlier)
		listed := false
		for _, e := range earlier {
			first, by := &claims[e], owners[e]
			if by == owner {
				continue
			}
			effect := effectOf(first.Kind, c.Kind)
			if effect == mesh.Listed {
				if listed {
					continue
				}
				listed = true
			} else {
				last := &named[by][index(podlike(first.Kind))]
				if *last == int32(i)+1 {
					continue
				}
				*last = int32(i) + 1
			}
			out = append(out, mesh.Conflict{Effect: effect, First: *first, Second: *c})
		}

		if podlike(c.Kind) {
			pods.put(place, owner, int32(i))
		} else {
			others.put(place, owner, int32(i))
		}
	}
	return out
}

// judged reports whether a claim has the form that Find judges.
func judged(c mesh.Claim) bool {
	switch c.Kind {
	case mesh.PodRange, mesh.ServiceRange, mesh.NodeRange:
		return c.Cluster != "" && canonical(c.Prefix)
	case mesh.TunnelRange:
		return c.Cluster == "" && canonical(c.Prefix)
	default:
		return false
	}
}

// canonical reports whether equal ranges have equal values of p.
func canonical(p netip.Prefix) bool {
	return p.IsValid() && !p.Addr().Is4In6() && p == p.Masked()
}

// number gives each claim's cluster a small number, and says how many there are.
func number(claims []mesh.Claim) (owners []int32, clusters int) {
	owners = make([]int32, len(claims))
	numbers := map[string]int32{}
	for i := range claims {
		n, ok := numbers[claims[i].Cluster]
		if !ok {
			n = int32(len(numbers))
			numbers[claims[i].Cluster] = n
		}
		owners[i] = n
	}
	return owners, len(numbers)
}

// podlike tells the ranges that are routed into tunnels, pod and tunnel ranges,
// from those that never are. Against either half, a claim has one effect on a
// given cluster.
func podlike(k mesh.ClaimKind) bool { return k == mesh.PodRange || k == mesh.TunnelRange }

func effectOf(a, b mesh.ClaimKind) mesh.Effect {
	switch {
	case podlike(a) && podlike(b):
		return mesh.Yields
	case !podlike(a) && !podlike(b):
		return mesh.Listed
	case a == mesh.TunnelRange || b == mesh.TunnelRange:
		return mesh.NoTunnels
	default:
		return mesh.PairApart
	}
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}
