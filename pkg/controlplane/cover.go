package controlplane

import (
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// cover finds the claim that an address lies in. Node ranges are left out: that
// is where WireGuard's own packets go.
type cover struct {
	claims map[netip.Prefix]*mesh.Claim
	// lengths holds those of the claims of each family, longest first.
	lengths map[mesh.Family][]int
}

// coverOf indexes claims, of which the first of a prefix is named.
func coverOf(claims []mesh.Claim) cover {
	c := cover{claims: make(map[netip.Prefix]*mesh.Claim, len(claims)), lengths: map[mesh.Family][]int{}}
	for i := range claims {
		p := claims[i].Prefix
		if claims[i].Kind == mesh.NodeRange || c.claims[p] != nil {
			continue
		}
		c.claims[p] = &claims[i]
		if f := mesh.FamilyOf(p.Addr()); !slices.Contains(c.lengths[f], p.Bits()) {
			c.lengths[f] = append(c.lengths[f], p.Bits())
		}
	}
	for _, l := range c.lengths {
		slices.Sort(l)
		slices.Reverse(l)
	}
	return c
}

// over returns the narrowest claim that a lies in, or nil.
func (c cover) over(a netip.Addr) *mesh.Claim {
	for _, bits := range c.lengths[mesh.FamilyOf(a)] {
		if claim := c.claims[netip.PrefixFrom(a, bits).Masked()]; claim != nil {
			return claim
		}
	}
	return nil
}

// admits reports whether an endpoint candidate of a node may be used, or which
// claim it lies in. One inside a range of the mesh would send a tunnel's packets
// through a tunnel, or let an agent point others at an address that is not its
// own; what Kubernetes says is the node's own address may lie anywhere.
func (c cover) admits(a netip.Addr, own []netip.Addr) (*mesh.Claim, bool) {
	if slices.Contains(own, a) {
		return nil, true
	}
	claim := c.over(a)
	return claim, claim == nil
}
