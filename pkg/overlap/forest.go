package overlap

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// forest is a set of canonical prefixes of both families, each below the
// narrowest other one that contains it. Two prefixes either nest or are
// disjoint, so what overlaps a place is on its way to the root or below it.
type forest struct {
	// places holds each input's place; equal prefixes share one.
	places []int32
	// parents holds each place's parent, -1 for a root.
	parents []int32
}

// plant builds the forest of the prefixes in O(n log n).
func plant(prefixes []netip.Prefix) *forest {
	order := make([]int32, len(prefixes))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return mesh.ComparePrefix(prefixes[a], prefixes[b]) })

	f := &forest{places: make([]int32, len(prefixes))}
	type open struct {
		prefix netip.Prefix
		place  int32
	}
	var stack []open // the place last seen and all that contain it, widest first
	for _, i := range order {
		p := prefixes[i]
		for len(stack) > 0 && !stack[len(stack)-1].prefix.Contains(p.Addr()) {
			stack = stack[:len(stack)-1]
		}
		parent := int32(-1)
		if len(stack) > 0 {
			top := stack[len(stack)-1]
			if top.prefix == p {
				f.places[i] = top.place
				continue
			}
			parent = top.place
		}
		place := int32(len(f.parents))
		f.parents = append(f.parents, parent)
		f.places[i] = place
		stack = append(stack, open{p, place})
	}
	return f
}

// marks remembers what was put on a forest's places, in the order in which it
// was put: of each owner only the first mark on a place, and the first below it.
// So a list holds an owner once, and to find another owner's mark is to look at
// no more than two.
type marks struct {
	parents   []int32
	at, below [][]int32
	seen      map[uint64]struct{}
}

func (f *forest) marks() *marks {
	return &marks{
		parents: f.parents,
		at:      make([][]int32, len(f.parents)),
		below:   make([][]int32, len(f.parents)),
		seen:    make(map[uint64]struct{}, len(f.parents)),
	}
}

// put adds mark id of an owner. Its cost is the place's depth at most, which the
// length of an address bounds.
func (m *marks) put(place, owner, id int32) {
	if !m.first(place, owner, 0) {
		return // then it is below every ancestor too
	}
	m.at[place] = append(m.at[place], id)
	for up := m.parents[place]; up >= 0; up = m.parents[up] {
		if !m.first(up, owner, 1) {
			return // and so it is below every ancestor of this one
		}
		m.below[up] = append(m.below[up], id)
	}
}

func (m *marks) first(place, owner int32, below uint64) bool {
	key := uint64(place)<<33 | uint64(owner)<<1 | below
	if _, ok := m.seen[key]; ok {
		return false
	}
	m.seen[key] = struct{}{}
	return true
}

// overlapping yields the lists of marks on what overlaps the place.
func (m *marks) overlapping(place int32) iter.Seq[[]int32] {
	return func(yield func([]int32) bool) {
		if !yield(m.below[place]) {
			return
		}
		for up := place; up >= 0; up = m.parents[up] {
			if !yield(m.at[up]) {
				return
			}
		}
	}
}
