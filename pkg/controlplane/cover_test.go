package controlplane

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// The naive answer: the longest of all that contain the address.
func TestCoverAgainstAllClaims(t *testing.T) {
	addr := func() netip.Addr {
		if rand.N(3) == 0 {
			return netip.AddrFrom16([16]byte{0xfd, byte(rand.N(2)), byte(rand.N(4) * 64), 15: byte(rand.N(4))})
		}
		return netip.AddrFrom4([4]byte{10, byte(rand.N(4)), byte(rand.N(4) * 64), byte(rand.N(4))})
	}
	for range 5_000 {
		var claims []mesh.Claim
		for i := range rand.N(8) {
			a := addr()
			claims = append(claims, mesh.Claim{
				Cluster: "c", Kind: mesh.ClaimKind(1 + rand.N(4)), Order: uint64(i + 1),
				Prefix: netip.PrefixFrom(a, 8+rand.N(a.BitLen()-7)).Masked(),
			})
		}
		c, a := coverOf(claims), addr()
		var want *mesh.Claim
		for i, k := range claims {
			if k.Kind != mesh.NodeRange && k.Prefix.Contains(a) && (want == nil || k.Prefix.Bits() > want.Prefix.Bits()) {
				want = &claims[i]
			}
		}
		if got := c.over(a); got != want {
			t.Fatalf("%v in %v: got %v, want %v", a, claims, got, want)
		}
		if _, ok := c.admits(a, nil); ok != (want == nil) {
			t.Fatalf("%v in %v: admitted: %t", a, claims, ok)
		}
		if _, ok := c.admits(a, []netip.Addr{a}); !ok {
			t.Fatal("the node's own address is refused")
		}
	}
}
