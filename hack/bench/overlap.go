package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/overlap"
)

// overlap times the overlap check against one that compares every claim with
// each earlier one.
func (b *bench) overlap(ctx context.Context) (*table, error) {
	t := newTable("Overlap check", "claims", "pairwise ÷ Find", "Find, ms", "Find, µs/claim", "growth", "pairwise, ms", "claims that conflict with an earlier one")
	var before, beforePairs float64
	for _, c := range []struct {
		claims, runs int
		naive        bool
	}{{1_000, 200, true}, {10_000, 30, true}, {100_000, 5, !b.quick}} {
		claims := fleet(c.claims)
		var found series
		var late int
		for range c.runs {
			began := time.Now()
			conflicts := overlap.Find(claims)
			found = append(found, ms(time.Since(began)))
			late = laterClaims(conflicts)
		}
		growth := "-"
		if before > 0 {
			growth = fmt.Sprintf("n^%.2f", math.Log10(found.median()/before))
		}
		before = found.median()
		t.sample(fmt.Sprintf("find ms, %d claims", c.claims), found)

		pairs, label := 100*beforePairs, " (extrapolated)"
		if c.naive {
			progress("overlap: %d claims pair by pair", c.claims)
			began := time.Now()
			n, err := pairwise(ctx, claims)
			if err != nil {
				return nil, err
			}
			pairs, label = ms(time.Since(began)), ""
			if n != late {
				return nil, fmt.Errorf("of %d claims Find says that %d conflict with an earlier one, the pairwise check %d", c.claims, late, n)
			}
			t.sample(fmt.Sprintf("pairwise ms, %d claims", c.claims), series{pairs})
		}
		beforePairs = pairs
		t.row(fmt.Sprint(c.claims), fmt.Sprintf("%.0f", pairs/found.median())+label, found.spread("%.2f"),
			fmt.Sprintf("%.2f", found.median()*1e3/float64(c.claims)), growth, fmt.Sprintf("%.0f%s", pairs, label), fmt.Sprint(late))
	}
	t.note("Medians (smallest–largest) of 200, 30 and 5 runs; the pairwise check runs once. Growth is the exponent from one row to the next.")
	t.note("Half of the claims are nodes' pod prefixes, half nodes' addresses, of 50 clusters that each also claim 10.96.0.0/12; one node in a hundred has a prefix from another cluster's range. The claims come shuffled.")
	t.note("Both find the same claims in conflict, or the benchmark fails.")
	return t, nil
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// fleet makes about n claims, in random order of registration.
func fleet(n int) []mesh.Claim {
	const clusters = 50
	r := rand.New(rand.NewPCG(3, uint64(n)))
	var out []mesh.Claim
	for c := range clusters {
		out = append(out, mesh.Claim{Cluster: fmt.Sprintf("c%d", c), Kind: mesh.ServiceRange, Prefix: netip.MustParsePrefix("10.96.0.0/12")})
	}
	for i := 0; len(out)+1 < n; i++ {
		c := i % clusters
		cluster, node := fmt.Sprintf("c%d", c), fmt.Sprintf("n%d", i/clusters)
		from := c
		if r.IntN(100) == 0 {
			from = r.IntN(clusters)
		}
		// A /16 of each cluster has room for 2,048 nodes.
		place := i / clusters << 5
		pods := netip.AddrFrom4([4]byte{10, byte(from), byte(place >> 8), byte(place)})
		address := netip.AddrFrom4([4]byte{172, 16 + byte(r.IntN(16)), byte(r.Uint32()), byte(r.Uint32())})
		out = append(out,
			mesh.Claim{Cluster: cluster, Node: node, Kind: mesh.PodRange, Prefix: netip.PrefixFrom(pods, 27)},
			mesh.Claim{Cluster: cluster, Node: node, Kind: mesh.NodeRange, Prefix: mesh.HostPrefix(address)})
	}
	for i, o := range r.Perm(len(out)) {
		out[i].Order = uint64(o)
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// laterClaims counts the claims that conflict with an earlier one.
func laterClaims(conflicts []mesh.Conflict) int {
	seen := map[uint64]bool{}
	for _, c := range conflicts {
		seen[c.Second.Order] = true
	}
	return len(seen)
}

// pairwise counts the claims that overlap an earlier one of another cluster, by
// looking at every pair.
func pairwise(ctx context.Context, claims []mesh.Claim) (int, error) {
	sorted := slices.SortedFunc(slices.Values(claims), mesh.Claim.Compare)
	late := 0
	for i := range sorted {
		if i%1024 == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		conflicts := 0
		for j := range i {
			if sorted[i].Prefix.Overlaps(sorted[j].Prefix) && sorted[i].Cluster != sorted[j].Cluster {
				conflicts++
			}
		}
		if conflicts > 0 {
			late++
		}
	}
	return late, nil
}
