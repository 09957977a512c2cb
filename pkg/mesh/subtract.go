package mesh

import "net/netip"

// maxPieces bounds what Subtract makes of one range.
const maxPieces = 1024

// Subtract returns the parts of p that lie in none of the holes, sorted and as
// wide as they can be; none where that would be very many.
func Subtract(p netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	out, ok := subtract(nil, p, holes)
	if !ok {
		return nil
	}
	return out
}

func subtract(out []netip.Prefix, p netip.Prefix, holes []netip.Prefix) (_ []netip.Prefix, ok bool) {
	var inside []netip.Prefix
	for _, h := range holes {
		switch {
		case !h.Overlaps(p):
		case h.Bits() <= p.Bits():
			return out, true
		default:
			inside = append(inside, h)
		}
	}
	if len(inside) == 0 {
		return append(out, p), len(out) < maxPieces
	}
	low, high := halves(p)
	if out, ok = subtract(out, low, inside); !ok {
		return out, false
	}
	return subtract(out, high, inside)
}

// halves splits a prefix that is not a single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits() + 1
	low = netip.PrefixFrom(p.Addr(), bits)
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(b)
	return low, netip.PrefixFrom(a, bits)
}
