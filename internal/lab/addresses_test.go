package lab

import (
	"math/big"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestNodeBits(t *testing.T) {
	for _, c := range []struct {
		pods        string
		nodes, each int
		want        int // 0: too small
	}{
		{"10.1.0.0/16", 1, 1, 24},
		{"10.1.0.0/16", 128, 1, 24},
		{"10.1.0.0/24", 1, 1, 25},
		{"10.1.0.0/16", 257, 1, 26}, // twice the room
		{"10.1.0.0/24", 2, 1, 26},
		{"10.1.0.0/24", 64, 1, 31 - 1},
		{"10.1.0.0/24", 65, 1, 0},
		{"10.1.0.0/30", 1, 1, 30},
		{"10.1.0.0/30", 1, 2, 30},
		{"10.1.0.0/30", 1, 3, 0},
		{"10.1.0.0/25", 1, 100, 25},
		{"fd00:1::/48", 1000, 1, 64},
		{"fd00:1::/64", 1, 1, 65},
		{"fd00:1::/64", 2, 1, 66},
		{"fd00:1::/126", 2, 1, 0},
	} {
		got, err := nodeBits(netip.MustParsePrefix(c.pods), c.nodes, c.each)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s, %d nodes with %d pods: %d, %v; want %d", c.pods, c.nodes, c.each, got, err, c.want)
		}
	}
}

// The parts of a range lie in it, are disjoint, and hold their pods.
func TestPartsOfRange(t *testing.T) {
	for range 200 {
		base, free := "10.0.0.0", 32
		if rand.IntN(2) == 0 {
			base, free = "fd00:5::", 128
		}
		pods := netip.PrefixFrom(netip.MustParseAddr(base), 16+rand.IntN(free-16)).Masked()
		c := Cluster{Name: "c", PodCIDRs: []netip.Prefix{pods}, Nodes: 1 + rand.IntN(20), PodsPerNode: rand.IntN(5)}
		s := state{Name: "l"}
		if err := s.add(c); err != nil {
			continue // too small
		}
		seen := map[netip.Addr]bool{}
		var former netip.Prefix
		for _, n := range s.Clusters[0].nodes() {
			p := n.prefixes()[0]
			if !pods.Contains(p.Addr()) || p.Bits() < pods.Bits() || p != p.Masked() || former.IsValid() && former.Overlaps(p) {
				t.Fatalf("%v of %v after %v", p, pods, former)
			}
			former = p
			for _, pod := range n.pods() {
				a := pod.addrs()[0]
				if !p.Contains(a) || seen[a] {
					t.Fatalf("pod %s at %v, node has %v", pod.name(), a, p)
				}
				seen[a] = true
			}
		}
	}
}

func TestCutBeyondRange(t *testing.T) {
	p := netip.MustParsePrefix("10.1.0.0/23")
	if got, err := cut(p, 24, 2); err != nil || got.String() != "10.1.1.0/24" {
		t.Error(got, err)
	}
	if got, err := cut(p, 24, 3); err == nil {
		t.Error(got)
	}
}

func TestShift(t *testing.T) {
	for range 1000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		n, by := uint64(rand.Uint32()), rand.IntN(96)
		want := new(big.Int).SetBytes(b[:])
		want.Add(want, new(big.Int).Lsh(new(big.Int).SetUint64(n), uint(by)))
		want.And(want, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(1)))
		var w [16]byte
		want.FillBytes(w[:])
		if got := shift(netip.AddrFrom16(b), n, by); got != netip.AddrFrom16(w) {
			t.Fatalf("%v + %d<<%d = %v, want %v", netip.AddrFrom16(b), n, by, got, netip.AddrFrom16(w))
		}
	}
}
