package overlap

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// fleet makes n claims of 50 clusters, shuffled and in random order of
// registration: half of them declare their ranges and let each node's address
// stand, the rest have each node's prefix as a claim too. All have the default
// service range and sit in a VPC of 10.0.0.0/8; one in a hundred nodes of the
// latter took its prefix from a range that is not its cluster's.
func fleet(n int) []mesh.Claim {
	const clusters = 50
	r := rand.New(rand.NewPCG(7, uint64(n)))
	out := []mesh.Claim{{Kind: mesh.TunnelRange, Prefix: netip.MustParsePrefix("198.19.0.0/16")}}
	for i := range clusters {
		name := fmt.Sprintf("c%d", i)
		out = append(out, mesh.Claim{Cluster: name, Kind: mesh.ServiceRange, Prefix: netip.MustParsePrefix("10.96.0.0/12")})
		if i%2 == 0 {
			out = append(out, mesh.Claim{Cluster: name, Kind: mesh.PodRange, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(64 + i), 0, 0}), 16)})
		}
	}
	for i := 0; len(out) < n; i++ {
		c := i % clusters
		name, node := fmt.Sprintf("c%d", c), fmt.Sprintf("n%d", i/clusters)
		address := netip.AddrFrom4([4]byte{10, byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
		out = append(out, mesh.Claim{Cluster: name, Node: node, Kind: mesh.NodeRange, Prefix: mesh.HostPrefix(address)})
		if c%2 == 1 && len(out) < n {
			if r.IntN(100) == 0 {
				c = r.IntN(clusters)
			}
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(c), byte(i / clusters >> 3), byte(i / clusters << 5)}), 27)
			out = append(out, mesh.Claim{Cluster: name, Node: node, Kind: mesh.PodRange, Prefix: p})
		}
	}
	for i, o := range r.Perm(len(out)) {
		out[i].Order = uint64(o)
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func bench(b *testing.B, n int, find func([]mesh.Claim) []mesh.Conflict) {
	b.Run(fmt.Sprintf("claims=%d", n), func(b *testing.B) {
		in := fleet(n)
		b.ReportAllocs()
		conflicts := 0
		for b.Loop() {
			conflicts = len(find(in))
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/claim")
		b.ReportMetric(float64(conflicts), "conflicts")
	})
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		bench(b, n, Find)
	}
}

func BenchmarkNaive(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		bench(b, n, naive)
	}
}
