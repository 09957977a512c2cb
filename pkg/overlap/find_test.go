package overlap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// claims reads one claim a line, in the order of registration:
// "east pod 10.1.0.0/16", with "-" for the mesh and "east/n1" for a node.
func claims(t testing.TB, text string) []mesh.Claim {
	t.Helper()
	var out []mesh.Claim
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		c := mesh.Claim{Order: uint64(len(out) + 1), Prefix: netip.MustParsePrefix(f[2])}
		if f[0] != "-" {
			c.Cluster, c.Node, _ = strings.Cut(f[0], "/")
		}
		if err := c.Kind.UnmarshalText([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// lines writes conflicts as "SECOND EFFECT FIRST", by their numbers.
func lines(conflicts []mesh.Conflict) []string {
	var out []string
	for _, c := range conflicts {
		out = append(out, fmt.Sprintf("%d %v %d", c.Second.Order, c.Effect, c.First.Order))
	}
	return out
}

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name   string
		claims string
		want   []string
	}{
		{"nothing", "", nil},
		{"disjoint", `
			east pod 10.1.0.0/16
			west pod 10.2.0.0/16
			north pod 10.0.0.0/16`, nil},
		{"pod × pod: the later yields", `
			east pod 10.1.0.0/16
			west pod 10.1.0.0/16`, []string{"2 yields 1"}},
		{"the later lies in the earlier", `
			east pod 10.0.0.0/8
			west pod 10.1.0.0/16`, []string{"2 yields 1"}},
		{"the earlier lies in the later", `
			east pod 10.1.0.0/16
			west pod 10.0.0.0/8`, []string{"2 yields 1"}},
		{"an address in a range", `
			east pod 10.1.0.0/16
			west pod 10.1.0.0/32`, []string{"2 yields 1"}},
		{"neighbours", `
			east pod 10.0.0.0/9
			west pod 10.128.0.0/9`, nil},
		{"IPv6", `
			east pod fd00:1::/48
			west pod fd00:1::/56
			north pod fd00::/16
			south pod fd01::/48`, []string{"2 yields 1", "3 yields 1", "3 yields 2"}},
		{"families apart", `
			east pod 0.0.0.0/0
			west pod ::/0
			north pod ::a01:0/112
			south pod 10.1.0.0/16`, []string{"3 yields 2", "4 yields 1"}},
		{"tunnel × pod: the later yields, be it the mesh", `
			east pod 198.19.0.0/24
			- tunnel 198.19.0.0/16
			west pod 198.18.0.0/15`, []string{"2 yields 1", "3 yields 1", "3 yields 2"}},
		{"a yielded claim keeps its place", `
			east pod 10.0.0.0/16
			west pod 10.0.0.0/15
			north pod 10.1.0.0/16`, []string{"2 yields 1", "3 yields 2"}},
		{"pod × service and pod × node part the pair, whoever was first", `
			east pod 10.1.0.0/16
			west service 10.1.0.0/20
			north node 10.0.0.0/8
			south pod 10.1.2.0/24`, []string{
			"2 pair-apart 1", "3 pair-apart 1", "3 listed 2",
			"4 yields 1", "4 pair-apart 2", "4 pair-apart 3"}},
		{"service or node × tunnel", `
			east service 198.18.0.0/15
			- tunnel 198.19.0.0/16
			west node 198.19.255.255/32`, []string{"2 no-tunnels 1", "3 listed 1", "3 no-tunnels 2"}},
		{"harmless: every kubeadm cluster, every VPC", `
			east service 10.96.0.0/12
			east node 10.0.0.0/16
			west service 10.96.0.0/12
			west node 10.0.0.0/16
			north node 10.96.0.0/11`, []string{"3 listed 1", "4 listed 2", "5 listed 1"}},
		{"of one cluster nothing conflicts", `
			east pod 10.0.0.0/8
			east service 10.0.0.0/8
			east node 10.0.0.0/8
			east/n1 node 10.0.0.1/32
			east pod 10.1.0.0/16
			- tunnel fd00::/64
			- tunnel fd00::/48`, nil},
		{"own claims hide nobody else's", `
			east pod 10.0.0.0/8
			west pod 10.0.0.0/12
			west pod 10.1.0.0/16
			west pod 10.1.1.0/24`, []string{"2 yields 1", "3 yields 1", "4 yields 1"}},
		{"of each other cluster the earliest", `
			east/n2 pod 10.1.2.0/24
			east/n1 pod 10.1.1.0/24
			east service 10.1.128.0/17
			east node 10.0.0.0/8
			north/n1 pod 10.1.3.0/24
			west pod 10.1.0.0/16`, []string{"5 pair-apart 4", "6 yields 1", "6 pair-apart 3", "6 yields 5"}},
		{"duplicates count once, the earliest", `
			west pod 10.1.0.0/16
			east pod 10.1.0.0/16
			east pod 10.1.0.0/16
			west pod 10.1.0.0/16`, []string{"2 yields 1"}},
		{"two nodes with one prefix are two claims", `
			west pod 10.1.0.0/16
			east/n1 pod 10.1.0.0/24
			east/n2 pod 10.1.0.0/24
			north pod 10.1.0.0/24`, []string{"2 yields 1", "3 yields 1", "4 yields 1", "4 yields 2"}},
		{"what validation keeps away is left out", `
			east pod 10.1.0.0/16
			west pod 10.1.2.3/16
			west pod ::ffff:10.1.0.0/112
			west tunnel 10.1.0.0/16
			- pod 10.1.0.0/16
			- node 10.1.0.0/16`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := claims(t, tt.claims)
			if got := lines(Find(in)); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if got := lines(naive(in)); !slices.Equal(got, tt.want) {
				t.Errorf("the oracle says %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestFindInvalid(t *testing.T) {
	c := claims(t, "east pod 10.0.0.0/8\nwest pod 10.0.0.0/8")
	c[0].Prefix = netip.Prefix{}
	if got := Find(c); got != nil {
		t.Errorf("no prefix: got %v", got)
	}
	c = claims(t, "east pod 10.0.0.0/8\nwest pod 10.0.0.0/8")
	c[1].Kind = 0
	if got := Find(c); got != nil {
		t.Errorf("no kind: got %v", got)
	}
}

// Harmless overlaps must not flood the list, nor foreign depth the clock.
func TestFindStaysLinear(t *testing.T) {
	const n = 100_000
	at := func(i int, cluster string, kind mesh.ClaimKind, p netip.Prefix) mesh.Claim {
		return mesh.Claim{Cluster: cluster, Kind: kind, Prefix: p, Order: uint64(i)}
	}
	kubeadm := netip.MustParsePrefix("10.96.0.0/12")
	base := netip.MustParseAddr("10.99.0.1")
	for _, tt := range []struct {
		name  string
		claim func(i int) mesh.Claim
		want  int
	}{
		{"one service range in 100,000 clusters", func(i int) mesh.Claim {
			return at(i, fmt.Sprintf("c%d", i), mesh.ServiceRange, kubeadm)
		}, n - 1},
		{"100,000 nodes of one cluster with one prefix", func(i int) mesh.Claim {
			c := at(i, "east", mesh.PodRange, kubeadm)
			c.Node = fmt.Sprintf("n%d", i)
			return c
		}, 0},
		{"all lengths of one cluster, nested, then one of another", func(i int) mesh.Claim {
			if i == n-1 {
				return at(i, "west", mesh.PodRange, netip.PrefixFrom(base, 32))
			}
			c := at(i, "east", mesh.PodRange, netip.PrefixFrom(base, 8+i%25).Masked())
			c.Node = fmt.Sprintf("n%d", i)
			return c
		}, 1},
		{"a range of each of 100 clusters over 99,900 earlier ones of one cluster", func(i int) mesh.Claim {
			if i >= n-100 {
				return at(i, fmt.Sprintf("c%d", i), mesh.PodRange, netip.MustParsePrefix("fd00::/64"))
			}
			a := netip.MustParseAddr("fd00::").As16()
			binary.BigEndian.PutUint32(a[12:], uint32(i))
			return at(i, "east", mesh.PodRange, mesh.HostPrefix(netip.AddrFrom16(a)))
		}, 100 + 100*99/2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := make([]mesh.Claim, n)
			for i := range in {
				in[i] = tt.claim(i)
			}
			if got := len(Find(in)); got != tt.want {
				t.Errorf("%d conflicts, want %d", got, tt.want)
			}
		})
	}
}

// naive is Find by its documented rule, pair by pair.
func naive(in []mesh.Claim) []mesh.Conflict {
	var set []mesh.Claim
	for _, c := range in {
		mine := c.Cluster == ""
		ok := c.Kind >= mesh.PodRange && c.Kind <= mesh.TunnelRange && mine == (c.Kind == mesh.TunnelRange) &&
			c.Prefix.IsValid() && c.Prefix.Masked() == c.Prefix && !c.Prefix.Addr().Is4In6()
		if ok {
			set = append(set, c)
		}
	}
	slices.SortFunc(set, mesh.Claim.Compare)
	effects := map[[2]mesh.ClaimKind]mesh.Effect{
		{mesh.PodRange, mesh.PodRange}:         mesh.Yields,
		{mesh.PodRange, mesh.TunnelRange}:      mesh.Yields,
		{mesh.PodRange, mesh.ServiceRange}:     mesh.PairApart,
		{mesh.PodRange, mesh.NodeRange}:        mesh.PairApart,
		{mesh.ServiceRange, mesh.ServiceRange}: mesh.Listed,
		{mesh.NodeRange, mesh.NodeRange}:       mesh.Listed,
		{mesh.ServiceRange, mesh.NodeRange}:    mesh.Listed,
		{mesh.ServiceRange, mesh.TunnelRange}:  mesh.NoTunnels,
		{mesh.NodeRange, mesh.TunnelRange}:     mesh.NoTunnels,
	}
	type group struct {
		cluster string
		effect  mesh.Effect
	}
	var out []mesh.Conflict
second:
	for i, c := range set {
		named := map[group]bool{}
		from := len(out)
		for _, first := range set[:i] {
			if first.Cluster == c.Cluster {
				if first.Kind == c.Kind && first.Node == c.Node && first.Prefix == c.Prefix {
					out = out[:from]
					continue second
				}
				continue
			}
			if !first.Prefix.Overlaps(c.Prefix) {
				continue
			}
			g := group{first.Cluster, effects[[2]mesh.ClaimKind{min(first.Kind, c.Kind), max(first.Kind, c.Kind)}]}
			if g.effect == mesh.Listed {
				g.cluster = ""
			}
			if !named[g] {
				named[g] = true
				out = append(out, mesh.Conflict{Effect: g.effect, First: first, Second: c})
			}
		}
	}
	return out
}

// crowded makes claims that overlap a lot: few clusters, few distinct bits. An
// Order may occur twice, as in claims that nobody has numbered.
func crowded(data []byte) []mesh.Claim {
	var out []mesh.Claim
	for len(data) >= 6 && len(out) < 400 {
		b := data[:6]
		data = data[6:]
		c := mesh.Claim{
			Cluster: []string{"", "east", "west", "north", "south"}[b[0]%5],
			Kind:    mesh.ClaimKind(b[1] % 6),
			Node:    []string{"", "n1", "n2"}[b[1]>>4%3],
			Order:   uint64(b[5]),
		}
		if c.Cluster == "" && b[1]&8 == 0 {
			c.Kind = mesh.TunnelRange
		}
		if b[2]&1 == 0 {
			c.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, b[3] & 3, b[4] & 0x81, b[4] & 2}), int(b[2]>>1)%34)
		} else {
			c.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, b[3] & 1, 8: b[3] & 2, 15: b[4] & 0x81}), int(b[2]>>1)+int(b[4])%4)
		}
		if b[1]&0x40 == 0 {
			c.Prefix = c.Prefix.Masked()
		}
		out = append(out, c)
	}
	return out
}

func FuzzFind(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 40 {
		data := make([]byte, 6*n*n/4)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := crowded(data)
		before := slices.Clone(in)
		got := Find(in)
		if !slices.Equal(in, before) {
			t.Fatal("the input changed")
		}
		if want := naive(in); !slices.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
		sorted := slices.IsSortedFunc(got, func(a, b mesh.Conflict) int {
			return cmp.Or(a.Second.Compare(b.Second), a.First.Compare(b.First))
		})
		if !sorted {
			t.Fatalf("not sorted: %v", got)
		}
		if len(in) == 0 {
			return
		}

		r := rand.New(rand.NewPCG(uint64(len(data)), uint64(data[0])))
		shuffled := slices.Clone(in)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := Find(shuffled); !slices.Equal(got, again) {
			t.Fatalf("shuffled: got %v\nwant %v", again, got)
		}

		// What was registered earlier is judged as if the rest had never come.
		early := slices.Clone(in)
		slices.SortFunc(early, mesh.Claim.Compare)
		early = early[:r.IntN(len(early)+1)]
		latest := func(c mesh.Conflict) bool { return len(early) == 0 || c.Second.Compare(early[len(early)-1]) > 0 }
		if want := slices.DeleteFunc(slices.Clone(got), latest); !slices.Equal(Find(early), want) {
			t.Fatalf("later claims changed earlier conflicts: alone %v\nwith later ones %v", Find(early), want)
		}
	})
}
