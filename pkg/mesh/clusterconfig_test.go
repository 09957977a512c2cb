package mesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestClusterConfigOf(t *testing.T) {
	for _, c := range []struct {
		name, cluster, claims, conflicts string
		remote, protected                string
		concerned                        int // conflicts that it is told of
	}{
		{
			name: "other networks' pods and the tunnel range are remote, the own network's claims protected", cluster: "west",
			claims: "1 mesh tunnel 198.19.0.0/16\n2 west pod 10.2.0.0/16\n3 west service 10.96.0.0/12\n4 west node 192.168.2.0/24\n" +
				"5 south pod 10.4.0.0/16\n6 east pod 10.1.0.0/16\n7 east service 172.20.0.0/16\n8 north pod fd00:3::/32",
			remote:    "10.1.0.0/16 198.19.0.0/16 fd00:3::/32",
			protected: "10.2.0.0/16 10.4.0.0/16 10.96.0.0/12 192.168.2.0/24",
		},
		{
			name: "a yielded range is nobody's remote range, and its owner's all the same", cluster: "east",
			claims:    "1 north pod 10.2.0.0/24\n2 west pod 10.2.0.0/16\n3 west pod fd00:2::/32",
			conflicts: "yields 1 2",
			remote:    "10.2.0.0/24 fd00:2::/32",
		},
		{
			name: "seen by the one that yields", cluster: "west",
			claims:    "1 north pod 10.2.0.0/24\n2 west pod 10.2.0.0/16\n3 east pod 10.1.0.0/16",
			conflicts: "yields 1 2",
			// North's range overlaps what may be local here.
			remote: "10.1.0.0/16", protected: "10.2.0.0/16", concerned: 1,
		},
		{
			name: "of two that yield the same prefix", cluster: "south",
			claims:    "1 north pod 10.0.0.0/8\n2 east pod 10.1.0.0/16\n3 west pod 10.1.0.0/16",
			conflicts: "yields 1 2\nyields 1 3\nyields 2 3",
			protected: "10.1.0.0/16", // west's, of the own network: so north's is not routed here
		},
		{
			name: "what a pair is apart for is not remote to it", cluster: "east",
			claims:    "1 east service 10.2.0.0/16\n2 west pod 10.2.0.0/17\n3 west pod fd00:2::/32\n4 north pod 10.3.0.0/16",
			conflicts: "pair-apart 1 2",
			remote:    "10.3.0.0/16 fd00:2::/32", protected: "10.2.0.0/16", concerned: 1,
		},
		{
			name: "and is to the others", cluster: "north",
			claims:    "1 east service 10.2.0.0/16\n2 west pod 10.2.0.0/17\n3 west pod fd00:2::/32\n4 north pod 10.3.0.0/16",
			conflicts: "pair-apart 1 2",
			remote:    "10.2.0.0/17 fd00:2::/32", protected: "10.3.0.0/16",
		},
		{
			name: "own services and nodes are cut out of a remote range, own pods make it no route", cluster: "east",
			claims: "1 east node 10.2.7.0/24\n2 east service 10.0.0.0/15\n3 west pod 10.2.0.0/16\n4 north pod 10.1.0.0/16\n5 south pod 10.4.0.0/16\n6 east pod 10.8.1.0/24\n7 far pod 10.8.0.0/16",
			remote: "10.2.0.0/22 10.2.4.0/23 10.2.6.0/24 10.2.8.0/21 10.2.16.0/20 10.2.32.0/19 10.2.64.0/18 10.2.128.0/17 10.4.0.0/16", protected: "10.0.0.0/15 10.2.7.0/24 10.8.1.0/24",
		},
		{
			name: "a tunnel range that yields is not remote", cluster: "east",
			claims:    "1 west pod 198.19.0.0/24\n2 mesh tunnel 198.19.0.0/16\n3 mesh tunnel fd19::/64",
			conflicts: "yields 1 2",
			remote:    "198.19.0.0/24 fd19::/64",
		},
		{
			name: "without tunnels of its own: unreachable rather than in plaintext", cluster: "west",
			claims:    "1 mesh tunnel 198.19.0.0/16\n2 west service 198.18.0.0/15\n3 east pod 10.1.0.0/16",
			conflicts: "no-tunnels 1 2",
			remote:    "10.1.0.0/16", protected: "198.18.0.0/15", concerned: 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := ClusterConfigOf(world(t, c.claims, c.conflicts), c.cluster)
			if !ok || got.Cluster != c.cluster {
				t.Fatalf("got %+v, %t", got, ok)
			}
			if s := show(got.Remote); s != c.remote {
				t.Errorf("remote:    got %q, want %q", s, c.remote)
			}
			if s := show(got.Protected); s != c.protected {
				t.Errorf("protected: got %q, want %q", s, c.protected)
			}
			if len(got.Conflicts) != c.concerned {
				t.Errorf("conflicts: got %v, want %d", got.Conflicts, c.concerned)
			}
		})
	}
}

func show(list []netip.Prefix) string { return strings.Trim(fmt.Sprint(list), "[]") }

func TestOverlapsAny(t *testing.T) {
	random := func() netip.Prefix {
		a := netip.AddrFrom4([4]byte{10, byte(rand.N(4)), byte(rand.N(4) * 64), 0})
		if rand.N(4) == 0 {
			a = netip.AddrFrom16([16]byte{0xfd, byte(rand.N(4)), byte(rand.N(4) * 64)})
		}
		return netip.PrefixFrom(a, 6+rand.N(20)).Masked()
	}
	for range 20_000 {
		var set []netip.Prefix
		for range rand.N(6) {
			set = append(set, random())
		}
		slices.SortFunc(set, ComparePrefix)
		p := random()
		want := slices.ContainsFunc(set, p.Overlaps)
		if got := overlapsAny(p, widestOf(set)); got != want {
			t.Fatalf("%v in %v: got %t", p, set, got)
		}
	}
}
