package mesh

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func TestSubtract(t *testing.T) {
	for _, tt := range []struct{ p, holes, want string }{
		{"10.2.0.0/16", "", "[10.2.0.0/16]"},
		{"10.2.0.0/16", "10.3.0.0/16", "[10.2.0.0/16]"},
		{"10.2.0.0/16", "10.0.0.0/8", "[]"},
		{"10.2.0.0/16", "10.2.0.0/16", "[]"},
		{"10.2.0.0/16", "10.2.128.0/17", "[10.2.0.0/17]"},
		{"10.2.0.0/30", "10.2.0.1/32", "[10.2.0.0/32 10.2.0.2/31]"},
		{"fd00::/16", "fd00::/17", "[fd00:8000::/17]"},
	} {
		var holes []netip.Prefix
		if tt.holes != "" {
			holes = append(holes, netip.MustParsePrefix(tt.holes))
		}
		got := Subtract(netip.MustParsePrefix(tt.p), holes)
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s less %s: %v, want %s", tt.p, tt.holes, got, tt.want)
		}
	}
}

// Every address of the range is in a piece or in a hole, and in one alone.
func TestSubtractOracle(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	at := func(i uint32) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24|i)))
	}
	for range 500 {
		p := netip.PrefixFrom(at(r.Uint32N(256)), 24+r.IntN(9)).Masked()
		var holes []netip.Prefix
		for range r.IntN(6) {
			holes = append(holes, netip.PrefixFrom(at(r.Uint32N(256)), 22+r.IntN(11)).Masked())
		}
		pieces := Subtract(p, holes)
		if !slices.IsSortedFunc(pieces, ComparePrefix) {
			t.Fatalf("%v is not sorted", pieces)
		}
		for i := range uint32(256) {
			a := at(i)
			n := 0
			for _, q := range pieces {
				if q.Contains(a) {
					n++
				}
			}
			hole := slices.ContainsFunc(holes, func(h netip.Prefix) bool { return h.Contains(a) })
			if want := p.Contains(a) && !hole; n > 1 || (n == 1) != want {
				t.Fatalf("%v less %v is %v: %v is in %d of them", p, holes, pieces, a, n)
			}
		}
	}
}

func TestSubtractIsBounded(t *testing.T) {
	var holes []netip.Prefix
	for i := range 4096 {
		holes = append(holes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 128), byte(i % 128 * 2)}), 32))
	}
	if got := Subtract(netip.MustParsePrefix("10.0.0.0/16"), holes); got != nil {
		t.Errorf("%d pieces", len(got))
	}
}
