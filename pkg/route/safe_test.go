package route

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func prefixes(list string) (out []netip.Prefix) {
	for s := range strings.FieldsSeq(list) {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list string) (out []netip.Addr) {
	for s := range strings.FieldsSeq(list) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestSafe(t *testing.T) {
	l := Local{
		Addrs:     addrs("192.168.7.2 2001:db8:7::2"),
		Connected: prefixes("10.1.0.0/24 172.17.0.0/16 192.168.7.0/24 2001:db8:7::/64"),
		Routed:    prefixes("10.40.0.0/16 10.64.0.0/10 fd64::/16"),
		Protected: prefixes("10.1.0.0/16 10.101.0.0/16 fd01::/48"),
		Hosts: []Host{
			{netip.MustParseAddr("10.9.0.5"), "the endpoint of west/n1"},
			{netip.MustParseAddr("10.9.1.5"), "the control plane"},
			{netip.MustParseAddr("10.9.2.5"), "the gateway of west"},
			{netip.MustParseAddr("::ffff:10.9.3.5"), "the endpoint of west/n3"},
			{netip.MustParseAddr("fd09::5"), "the endpoint of west/n1"},
			{netip.MustParseAddr("10.9.0.5"), "the endpoint of north/n1"},
		},
	}
	for _, c := range []struct{ name, prefix, detail string }{
		{"free", "10.2.0.0/16", ""},
		{"free, IPv6", "fd02::/48", ""},
		{"beside the control plane", "10.9.1.0/30", ""},
		{"local pods", "10.1.0.0/24", "10.1.0.0/24 lies in 10.1.0.0/16, a range of the own cluster or network"},
		{"own pod range", "10.1.0.0/16", "10.1.0.0/16 is 10.1.0.0/16, a range of the own cluster or network"},
		{"around the own service range", "10.100.0.0/14", "10.100.0.0/14 covers 10.101.0.0/16, a range of the own cluster or network"},
		{"own pod range, IPv6", "fd01:0:0:5::/64", "fd01:0:0:5::/64 lies in fd01::/48, a range of the own cluster or network"},
		{"a peer's endpoint", "10.9.0.0/24", "10.9.0.0/24 covers 10.9.0.5, the endpoint of north/n1"},
		{"a peer's endpoint alone", "10.9.0.5/32", "10.9.0.5/32 is 10.9.0.5, the endpoint of north/n1"},
		{"a peer's endpoint, mapped", "10.9.3.0/24", "10.9.3.0/24 covers 10.9.3.5, the endpoint of west/n3"},
		{"a peer's endpoint, IPv6", "fd09::/64", "fd09::/64 covers fd09::5, the endpoint of west/n1"},
		{"the control plane", "10.9.1.0/24", "10.9.1.0/24 covers 10.9.1.5, the control plane"},
		{"a gateway", "10.9.2.4/30", "10.9.2.4/30 covers 10.9.2.5, the gateway of west"},
		{"an address of the node", "192.168.0.0/16", "192.168.0.0/16 covers 192.168.7.2, an address of this node"},
		{"an address of the node, IPv6", "2001:db8::/32", "2001:db8::/32 covers 2001:db8:7::2, an address of this node"},
		{"a connected subnet", "192.168.7.128/25", "192.168.7.128/25 lies in 192.168.7.0/24, which this node is connected to"},
		{"docker", "172.16.0.0/12", "172.16.0.0/12 covers 172.17.0.0/16, which this node is connected to"},
		{"docker, itself", "172.17.0.0/16", "172.17.0.0/16 is 172.17.0.0/16, which this node is connected to"},
		{"around a routed prefix", "10.32.0.0/11", "10.32.0.0/11 covers 10.40.0.0/16, which this node routes elsewhere"},
		{"a routed prefix itself", "10.40.0.0/16", "10.40.0.0/16 is 10.40.0.0/16, which this node routes elsewhere"},
		{"inside a routed prefix, as inside the default route", "10.66.0.0/16", ""},
		{"inside a routed prefix, IPv6", "fd64:1::/32", ""},
		{"the default route", "0.0.0.0/0", "0.0.0.0/0 covers 0.0.0.0/8, which cannot be routed between clusters"},
		{"bits behind the length", "10.2.0.1/16", "10.2.0.1/16 has bits set behind its length; did you mean 10.2.0.0/16?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := netip.MustParsePrefix(c.prefix)
			ok, refused := Safe([]netip.Prefix{p}, l)
			if c.detail == "" {
				if len(refused) != 0 || !slices.Equal(ok, []netip.Prefix{p}) {
					t.Fatalf("refused: %v", refused)
				}
				return
			}
			want := []Refusal{{p, mesh.ReasonUnsafeRange, c.detail}}
			if d := cmp.Diff(want, refused, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || len(ok) != 0 {
				t.Errorf("ok %v, refused (-want +got):\n%s", ok, d)
			}
		})
	}
}

// naiveOverlap is Safe's rule written down without an index.
func naiveOverlap(p netip.Prefix, l Local) string {
	if err := mesh.ValidatePrefix(p); err != nil {
		return err.Error()
	}
	things := l.index()
	for _, kind := range things {
		var first *thing
		for _, x := range kind.sorted {
			if !p.Overlaps(x.prefix) || kind.insideOnly && x.prefix.Bits() < p.Bits() {
				continue
			}
			if first == nil || x.compare(*first) < 0 {
				first = &x
			}
		}
		if first != nil {
			return describe(p, *first)
		}
	}
	return ""
}

func FuzzSafe(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := Local{Connected: randomPrefixes(r), Routed: randomPrefixes(r), Protected: randomPrefixes(r)}
		for _, p := range randomPrefixes(r) {
			l.Addrs = append(l.Addrs, p.Addr())
		}
		for i, p := range randomPrefixes(r) {
			l.Hosts = append(l.Hosts, Host{p.Addr(), fmt.Sprintf("host %d", i%3)})
		}
		in := randomPrefixes(r)
		ok, refused := Safe(in, l)
		for _, p := range in {
			if detail := naiveOverlap(p, l); detail == "" {
				if len(ok) == 0 || ok[0] != p {
					t.Fatalf("%v is safe in %+v, got %v", p, l, ok)
				}
				ok = ok[1:]
			} else {
				if len(refused) == 0 || refused[0] != (Refusal{p, mesh.ReasonUnsafeRange, detail}) {
					t.Fatalf("%v in %+v: want %q, got %v", p, l, detail, refused)
				}
				refused = refused[1:]
			}
		}
		if len(ok)+len(refused) != 0 {
			t.Fatalf("left over: %v, %v", ok, refused)
		}
	})
}

// randomPrefixes crowds a small space, so that overlaps of all kinds occur.
func randomPrefixes(r *rand.Rand) (out []netip.Prefix) {
	for range r.IntN(8) {
		base := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4) << 6), byte(r.IntN(4) << 6)})
		bits := 8 + r.IntN(25)
		if r.IntN(3) == 0 {
			b := [16]byte{0: 0xfd, 1: byte(r.IntN(4)), 2: byte(r.IntN(4) << 6), 15: byte(r.IntN(4))}
			base, bits = netip.AddrFrom16(b), []int{8, 15, 16, 17, 18, 24, 64, 126, 127, 128}[r.IntN(10)]
		}
		out = append(out, netip.PrefixFrom(base, bits).Masked())
	}
	return out
}

func BenchmarkSafe(b *testing.B) {
	for _, n := range []int{500, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var in []netip.Prefix
			var l Local
			for i := range n {
				in = append(in, netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 4: byte(i >> 8), 5: byte(i)}), 64))
				l.Hosts = append(l.Hosts, Host{netip.AddrFrom16([16]byte{0: 0xfc, 4: byte(i >> 8), 5: byte(i)}), "a peer"})
			}
			for b.Loop() {
				if ok, _ := Safe(in, l); len(ok) != n {
					b.Fatal(len(ok))
				}
			}
		})
	}
}
