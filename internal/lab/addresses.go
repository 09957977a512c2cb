package lab

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// The gateways of routers, nodes and pods. All are link-local, so that no subnet
// is needed between a host and its router: every host has a single address. They
// differ because a gateway must not be an address of the host itself.
var (
	coreGateway = netip.MustParseAddr("169.254.2.1")
	nodeGateway = netip.MustParseAddr("169.254.0.1")
	podGateway  = netip.MustParseAddr("169.254.1.1")
	gateway6    = netip.MustParseAddr("fe80::1")
	// router6 is the router's end of its link to the core, whose end is gateway6.
	router6 = netip.MustParseAddr("fe80::2")
)

// controlPlaneAddrs are the same in every lab.
var controlPlaneAddrs = []netip.Addr{
	netip.MustParseAddr("100.127.0.1"),
	netip.MustParseAddr("fd00:100:ffff::1"),
}

// routerAddrs are what router number r, from 1, sends from and masquerades to.
func routerAddrs(r int) []netip.Addr {
	return []netip.Addr{
		shift(netip.MustParseAddr("100.127.1.0"), uint64(r), 0),
		shift(netip.MustParseAddr("fd00:100:ffff:1::"), uint64(r), 0),
	}
}

// nodeRanges are the ranges from which the nodes of the cluster with that index,
// from 1, have their addresses: 100.65.0.0/16 and fd00:100:1::/48 for the first.
func nodeRanges(index int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(shift(underlay[0].Addr(), uint64(index), 16), 16),
		netip.PrefixFrom(shift(underlay[1].Addr(), uint64(index), 80), 48),
	}
}

// nodeBits picks the length of the prefixes into which a pod range is cut: /24
// and /64 where the range has room for them and more, else as long as the nodes
// need, with room for as many nodes again if possible.
func nodeBits(pods netip.Prefix, nodes, podsPerNode int) (int, error) {
	usual := 24
	if pods.Addr().Is6() {
		usual = 64
	}
	need := pods.Bits() + bits.Len(uint(nodes-1))
	// A node's first two addresses stay free, as a CNI leaves network and gateway.
	longest := pods.Addr().BitLen() - bits.Len(uint(podsPerNode+1))
	switch {
	case need < usual:
		return usual, nil
	case need+1 <= longest:
		return need + 1, nil
	case need <= longest:
		return need, nil
	}
	return 0, fmt.Errorf("%v is too small for %d nodes with %d pods each", pods, nodes, podsPerNode)
}

// cut returns the part with that number, from 1, of a range cut into prefixes of
// the given length.
func cut(p netip.Prefix, length, number int) (netip.Prefix, error) {
	if free := length - p.Bits(); free < 31 && number > 1<<free {
		return netip.Prefix{}, fmt.Errorf("%v has room for %d nodes of /%d; there is none for n%d", p, 1<<free, length, number)
	}
	a := p.Addr()
	return netip.PrefixFrom(shift(a, uint64(number-1), a.BitLen()-length), length), nil
}

// shift returns a + n<<by, within the family of a.
func shift(a netip.Addr, n uint64, by int) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n<<by))
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if by >= 64 {
		hi += n << (by - 64)
	} else {
		var carry uint64
		lo, carry = bits.Add64(lo, n<<by, 0)
		hi += n>>(64-by) + carry
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}
