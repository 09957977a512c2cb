package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// NextFree returns the lowest prefix of the given length inside supernet that
// overlaps none of taken. Those may have any length, lie outside the supernet and
// overlap each other; bits set behind their length do not count. Where nothing is
// free the error is ErrExhausted; any other says which argument is wrong.
//
// It jumps from one taken prefix to the next, in O(n log n) for n of them whatever
// the supernet's size. The library's cidrset would take a bit per block and stop
// at 65,536 of them in IPv6, and it cannot take a prefix that is wider than the
// supernet.
func NextFree(supernet netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, error) {
	if err := mesh.ValidatePrefix(supernet); err != nil {
		return netip.Prefix{}, fmt.Errorf("supernet: %w", err)
	}
	if longest := supernet.Addr().BitLen(); bits < supernet.Bits() || bits > longest {
		return netip.Prefix{}, fmt.Errorf("a /%d does not fit into %v: want a length of /%d to /%d", bits, supernet, supernet.Bits(), longest)
	}
	blocking := make([]netip.Prefix, 0, len(taken))
	for i, t := range taken {
		if !t.IsValid() || t.Addr().Is4In6() {
			return netip.Prefix{}, fmt.Errorf("taken[%d]: %v: want an IPv4 or IPv6 range in its own form", i, t)
		}
		if t.Overlaps(supernet) {
			blocking = append(blocking, t.Masked())
		}
	}
	slices.SortFunc(blocking, mesh.ComparePrefix)

	free := netip.PrefixFrom(supernet.Addr(), bits)
	for _, t := range blocking {
		if !t.Overlaps(free) {
			if t.Addr().Less(free.Addr()) {
				continue // passed already, with a wider one
			}
			break // and all others begin later still
		}
		wider := free
		if t.Bits() < bits {
			wider = t
		}
		next := last(wider).Next()
		if !supernet.Contains(next) {
			return netip.Prefix{}, fmt.Errorf("no /%d is free in %v: %w", bits, supernet, ErrExhausted)
		}
		free = netip.PrefixFrom(next, bits)
	}
	return free, nil
}

// last returns the highest address of a canonical prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
