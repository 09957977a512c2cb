package route

import (
	"bytes"
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// elementsOf returns the intervals of the prefixes of a family. Each is two
// elements: its first address, and the first behind it.
func elementsOf(prefixes []netip.Prefix, f mesh.Family) (out []nftables.SetElement) {
	for _, p := range prefixes {
		if mesh.FamilyOf(p.Addr()) == f {
			out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()},
				nftables.SetElement{Key: behind(p).AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// behind returns the first address after a prefix. It exists for all that
// mesh.ValidatePrefix accepts, which does not reach the end of either family.
func behind(p netip.Prefix) netip.Addr {
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	addr, _ := netip.AddrFromSlice(last)
	return addr.Next()
}

// prefixesOf returns the prefixes of which elements are the intervals, sorted;
// false where an interval is no prefix.
func prefixesOf(elements []nftables.SetElement) (out []netip.Prefix, ok bool) {
	// Where one interval ends and the next begins at once, the end comes first.
	ends := func(e nftables.SetElement) int {
		if e.IntervalEnd {
			return 0
		}
		return 1
	}
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		return cmp.Or(bytes.Compare(a.Key, b.Key), cmp.Compare(ends(a), ends(b)))
	})
	for pair := range slices.Chunk(elements, 2) {
		if len(pair) < 2 || pair[0].IntervalEnd || !pair[1].IntervalEnd {
			return nil, false
		}
		p, ok := prefixBetween(pair[0].Key, pair[1].Key)
		if !ok {
			return nil, false
		}
		out = append(out, p)
	}
	return out, true
}

// prefixBetween returns the prefix from one address up to, and without, another.
func prefixBetween(from, to []byte) (netip.Prefix, bool) {
	first, ok := netip.AddrFromSlice(from)
	end, endOK := netip.AddrFromSlice(to)
	if !ok || !endOK {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(first, commonBits(from, end.Prev().AsSlice()))
	return p, p.Masked() == p && behind(p) == end
}

func commonBits(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if d := a[i] ^ b[i]; d != 0 {
			return 8*i + bits.LeadingZeros8(d)
		}
	}
	return 8 * min(len(a), len(b))
}
