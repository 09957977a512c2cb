package mesh

import (
	"fmt"
	"net/netip"
)

// Family is an address family. Everything in flatmesh judges the two apart.
type Family uint8

// The address families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both, for loops.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf returns the family of a. An IPv4-mapped IPv6 address is IPv6; inputs
// are unmapped or refused where they enter.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// Bits returns the length of the family's addresses, 32 or 128.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// MarshalText writes the name.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Family) UnmarshalText(b []byte) error {
	for _, k := range Families {
		if k.String() == string(b) {
			*f = k
			return nil
		}
	}
	return fmt.Errorf("address family %q: want IPv4 or IPv6", b)
}

// HostPrefix returns the prefix that holds a alone.
func HostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
