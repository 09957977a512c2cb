package mesh

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestDigestIgnoresOrder(t *testing.T) {
	key := PublicKey{1, 2, 3}
	allowed := prefixes("10.1.0.0/24", "198.19.0.2/32", "fd00:1::/64", "10.1.1.0/24")
	want := Digest(key, allowed)
	for range 50 {
		rand.Shuffle(len(allowed), func(i, j int) { allowed[i], allowed[j] = allowed[j], allowed[i] })
		if got := Digest(key, allowed); got != want {
			t.Fatalf("%v: %x, want %x", allowed, got, want)
		}
	}
	if got := Digest(key, append(allowed, allowed[0])); got != want {
		t.Error("a prefix that is named twice counts twice")
	}
}

func TestDigestTellsEveryChange(t *testing.T) {
	key := PublicKey{1, 2, 3}
	allowed := prefixes("10.1.0.0/24", "198.19.0.2/32", "fd00:1::/64")
	seen := map[uint64]string{Digest(key, allowed): "the original"}
	add := func(what string, key PublicKey, allowed []netip.Prefix) {
		d := Digest(key, allowed)
		if as, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", what, as)
		}
		seen[d] = what
	}
	for i := range key {
		for bit := range 8 {
			k := key
			k[i] ^= 1 << bit
			add("another key", k, allowed)
		}
	}
	for i, p := range allowed {
		change := func(q netip.Prefix) []netip.Prefix {
			out := append([]netip.Prefix{}, allowed...)
			out[i] = q
			return out
		}
		add("without "+p.String(), key, append(append([]netip.Prefix{}, allowed[:i]...), allowed[i+1:]...))
		for bits := range p.Addr().BitLen() + 1 {
			if q := netip.PrefixFrom(p.Addr(), bits); q != p {
				add(q.String(), key, change(q))
			}
		}
		add("the next address", key, change(netip.PrefixFrom(p.Addr().Next(), p.Bits())))
	}
	// The same bytes in the other family.
	a := netip.MustParseAddr("10.9.0.0")
	add("IPv4", key, []netip.Prefix{netip.PrefixFrom(a, 16)})
	add("IPv6", key, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16(a.As16()), 16)})
	add("nothing", key, nil)
}
