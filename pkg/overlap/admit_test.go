package overlap

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestAdmitPrefixes(t *testing.T) {
	const outsideBoth = "lies in none of the pod ranges that east declares: 10.1.0.0/16, fd00:1::/48"
	declares := mesh.Cluster{Name: "east", PodCIDRs: prefixes("10.1.0.0/16 fd00:1::/48")}
	silent := mesh.Cluster{Name: "east"}
	for _, tt := range []struct {
		name    string
		cluster mesh.Cluster
		pods    []string // of n0, n1, …
		orders  map[string]uint64
		want    []string // "n0 PREFIX" or "n0 PREFIX REASON: DETAIL"
	}{
		{"inside and disjoint", declares, []string{"10.1.0.0/24 fd00:1::/64", "10.1.1.0/24"}, nil,
			[]string{"n0 10.1.0.0/24", "n0 fd00:1::/64", "n1 10.1.1.0/24"}},
		{"all of the range", declares, []string{"10.1.0.0/16"}, nil, []string{"n0 10.1.0.0/16"}},
		{"outside, or wider than the range", declares, []string{"10.2.0.0/24", "10.0.0.0/8"}, nil,
			[]string{"n0 10.2.0.0/24 outside-range: " + outsideBoth, "n1 10.0.0.0/8 outside-range: " + outsideBoth}},
		{"a family that is not declared", mesh.Cluster{Name: "east", PodCIDRs: prefixes("10.1.0.0/16")}, []string{"fd00:1::/64"}, nil,
			[]string{"n0 fd00:1::/64 outside-range: lies in none of the pod ranges that east declares: 10.1.0.0/16"}},
		{"nothing declared: anything that can be routed", silent, []string{"10.9.0.0/24 fd00::/64", "127.0.0.0/24", "10.9.1.1/24"}, nil,
			[]string{"n0 10.9.0.0/24", "n0 fd00::/64",
				"n1 127.0.0.0/24 outside-range: 127.0.0.0/24 covers 127.0.0.0/8, which cannot be routed between clusters",
				"n2 10.9.1.1/24 outside-range: 10.9.1.1/24 has bits set behind its length; did you mean 10.9.1.0/24?"}},
		{"the first holder keeps", declares, []string{"10.1.0.0/24", "10.1.0.0/24", "10.1.0.0/24"}, map[string]uint64{"n0": 3, "n1": 1, "n2": 2},
			[]string{"n0 10.1.0.0/24 duplicate: east/n1 holds 10.1.0.0/24", "n1 10.1.0.0/24", "n2 10.1.0.0/24 duplicate: east/n1 holds 10.1.0.0/24"}},
		{"of the same age, the first by name", declares, []string{"10.1.0.0/24", "10.1.0.0/24"}, nil,
			[]string{"n0 10.1.0.0/24", "n1 10.1.0.0/24 duplicate: east/n0 holds 10.1.0.0/24"}},
		{"overlap both ways", declares, []string{"10.1.0.0/24", "10.1.0.0/20", "10.1.0.128/25"}, nil,
			[]string{"n0 10.1.0.0/24", "n1 10.1.0.0/20 duplicate: overlaps 10.1.0.0/24, which east/n0 holds",
				"n2 10.1.0.128/25 duplicate: overlaps 10.1.0.0/24, which east/n0 holds"}},
		{"what is refused holds nothing", declares, []string{"10.1.0.0/24", "10.1.0.0/20", "10.1.1.0/24"}, nil,
			[]string{"n0 10.1.0.0/24", "n1 10.1.0.0/20 duplicate: overlaps 10.1.0.0/24, which east/n0 holds", "n2 10.1.1.0/24"}},
		{"one refused, the other kept", declares, []string{"10.1.0.0/24", "fd00:1::/64 10.1.0.0/24"}, nil,
			[]string{"n0 10.1.0.0/24", "n1 fd00:1::/64", "n1 10.1.0.0/24 duplicate: east/n0 holds 10.1.0.0/24"}},
		{"a node's own", declares, []string{"10.1.1.0/24 10.1.0.0/20 10.1.1.0/24", "10.1.1.0/28"}, nil,
			[]string{"n0 10.1.0.0/20", "n1 10.1.1.0/28 duplicate: overlaps 10.1.0.0/20, which east/n0 holds"}},
		{"own ones below do not hide another's", silent, []string{"10.1.0.0/24 10.1.0.0/16", "10.1.9.0/24"}, map[string]uint64{"n0 10.1.0.0/16": 9, "n1": 1},
			[]string{"n0 10.1.0.0/24", "n0 10.1.0.0/16 duplicate: overlaps 10.1.9.0/24, which east/n1 holds", "n1 10.1.9.0/24"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var nodes []mesh.Node
			for i, pods := range tt.pods {
				n := node(t, fmt.Sprintf("east/n%d", i), pods, "")
				n.Prefixes = prefixes("192.0.2.0/24") // left from before
				n.Refused = []mesh.RefusedPrefix{{Prefix: n.Prefixes[0]}}
				nodes = append(nodes, n)
			}
			AdmitPrefixes(tt.cluster, nodes, func(id mesh.NodeID, p netip.Prefix) uint64 {
				if o, ok := tt.orders[id.Name+" "+p.String()]; ok {
					return o
				}
				return tt.orders[id.Name]
			})
			var got []string
			for _, n := range nodes {
				for _, p := range n.Prefixes {
					got = append(got, fmt.Sprintf("%s %v", n.ID.Name, p))
				}
				for _, r := range n.Refused {
					got = append(got, fmt.Sprintf("%s %v %s: %s", n.ID.Name, r.Prefix, r.Reason, r.Detail))
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestAdmitPrefixesOfManyNodes(t *testing.T) {
	cluster := mesh.Cluster{Name: "east", PodCIDRs: prefixes("10.0.0.0/8")}
	nodes := make([]mesh.Node, 5000)
	for i := range nodes {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		nodes[i] = mesh.Node{ID: mesh.NodeID{Cluster: "east", Name: fmt.Sprintf("n%d", i)}, PodCIDRs: []netip.Prefix{p, netip.MustParsePrefix("10.0.0.0/9")}}
	}
	AdmitPrefixes(cluster, nodes, func(mesh.NodeID, netip.Prefix) uint64 { return 0 })
	for i := range nodes {
		if n := &nodes[i]; i > 0 && (len(n.Prefixes) != 0 || len(n.Refused) != 2) {
			t.Fatalf("%v holds %v beside the first node's 10.0.0.0/9", n.ID, n.Prefixes)
		}
	}
	if got, want := nodes[0].Prefixes, prefixes("10.0.0.0/9"); !slices.Equal(got, want) {
		t.Errorf("the first node holds %v, want %v", got, want)
	}
}

// The oracle admits one prefix after the other, comparing with all that are held.
func FuzzAdmitPrefixes(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 30 {
		data := make([]byte, n*n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		type wish struct {
			id     mesh.NodeID
			prefix netip.Prefix
		}
		cluster := mesh.Cluster{Name: "east"}
		if len(data)%2 == 1 {
			cluster.PodCIDRs = prefixes("10.0.0.0/14 fd00::/17")
		}
		nodes := make([]mesh.Node, 6)
		for i := range nodes {
			nodes[i].ID = mesh.NodeID{Cluster: "east", Name: fmt.Sprintf("n%d", i)}
		}
		orders := map[wish]uint64{}
		for ; len(data) >= 4; data = data[4:] {
			n := &nodes[int(data[0])%len(nodes)]
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, data[1] & 7, data[2] & 0xc1}), 12+int(data[2]>>1)%21)
			if data[1]&0x80 != 0 {
				p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, data[1] & 3, 15: data[2] & 3}), 16+int(data[2]>>1)%113)
			}
			if data[1]&0x40 == 0 {
				p = p.Masked()
			}
			n.PodCIDRs = append(n.PodCIDRs, p)
			orders[wish{n.ID, p}] = uint64(data[3])
		}

		AdmitPrefixes(cluster, nodes, func(id mesh.NodeID, p netip.Prefix) uint64 {
			o, ok := orders[wish{id, p}]
			if !ok {
				t.Fatalf("asked for the order of %v of %v, which it does not have", p, id)
			}
			return o
		})

		var all []wish
		for i := range nodes {
			for _, p := range nodes[i].PodCIDRs {
				inside := len(cluster.PodCIDRs) == 0
				for _, r := range cluster.PodCIDRs {
					inside = inside || r.Overlaps(p) && r.Bits() <= p.Bits()
				}
				if inside && mesh.ValidatePrefix(p) == nil {
					all = append(all, wish{nodes[i].ID, p})
				}
			}
		}
		slices.SortFunc(all, func(a, b wish) int {
			return cmp.Or(cmp.Compare(orders[a], orders[b]), a.id.Compare(b.id), mesh.ComparePrefix(a.prefix, b.prefix))
		})
		held := map[mesh.NodeID][]netip.Prefix{}
		for _, w := range all {
			free := true
			for id, ps := range held {
				for _, p := range ps {
					free = free && (id == w.id || !p.Overlaps(w.prefix))
				}
			}
			if free {
				held[w.id] = append(held[w.id], w.prefix)
			}
		}

		var admitted []netip.Prefix
		for _, n := range nodes {
			for _, p := range n.PodCIDRs {
				holds := slices.Contains(held[n.ID], p)
				refused := slices.ContainsFunc(n.Refused, func(r mesh.RefusedPrefix) bool { return r.Prefix == p })
				admitted := slices.ContainsFunc(n.Prefixes, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Overlaps(p) })
				if refused == holds || holds && !admitted {
					t.Fatalf("%v of %v: should be held %v; admitted %v, refused %v", p, n.ID, holds, n.Prefixes, n.Refused)
				}
			}
			for _, p := range n.Prefixes {
				if !slices.Contains(held[n.ID], p) {
					t.Fatalf("%v holds %v, which the oracle does not admit", n.ID, p)
				}
			}
			admitted = append(admitted, n.Prefixes...)
		}
		for i, p := range admitted {
			for _, q := range admitted[:i] {
				if p.Overlaps(q) {
					t.Fatalf("admitted %v and %v", p, q)
				}
			}
		}
	})
}
