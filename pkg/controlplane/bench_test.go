package controlplane

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/overlap"
	"github.com/flatmesh/flatmesh/pkg/store"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// counted numbers keys in the order of their first appearance, as the store does.
func counted() func([]string) (map[string]uint64, error) {
	orders := map[string]uint64{}
	return func(keys []string) (map[string]uint64, error) {
		for _, k := range keys {
			if _, ok := orders[k]; !ok {
				orders[k] = uint64(len(orders) + 1)
			}
		}
		return orders, nil
	}
}

// manyNodes is a dual-stack mesh of registered nodes. Where ranges are not
// declared, each node's prefixes and addresses are claims.
func manyNodes(clusters, nodes int, declared bool) facts {
	f := facts{
		registrations: map[mesh.NodeID]store.Registration{},
		tunnelRanges:  []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("fd19::/64")},
	}
	for i := range clusters {
		name := fmt.Sprintf("c%03d", i)
		c := mesh.Cluster{Name: name, Network: name, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("172.20.0.0/16")}}
		if declared {
			c.PodCIDRs = []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/32", i+1))}
			c.NodeCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
		}
		f.clusters = append(f.clusters, c)
		for j := range nodes {
			n := i*nodes + j
			id := mesh.NodeID{Cluster: name, Name: fmt.Sprintf("n%04d", j)}
			addr := netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)})
			f.nodes = append(f.nodes, mesh.Node{
				ID: id, Addresses: []netip.Addr{addr},
				PodCIDRs: []netip.Prefix{
					netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i, j)), netip.MustParsePrefix(fmt.Sprintf("fd00:%x:%x::/64", i+1, j))},
			})
			f.registrations[id] = store.Registration{
				Node: id, Key: mesh.PublicKey{1, byte(n >> 8), byte(n)}, ListenPort: 51830,
				Endpoints: []netip.AddrPort{netip.AddrPortFrom(addr, 51830)},
				TunnelAddrs: []netip.Addr{
					netip.AddrFrom4([4]byte{198, 19, byte(n >> 8), byte(n + 1)}), netip.MustParseAddr(fmt.Sprintf("fd19::%x", n+1))},
			}
		}
	}
	return f
}

func BenchmarkRecompute(b *testing.B) {
	for _, declared := range []bool{true, false} {
		name := map[bool]string{true: "declared", false: "undeclared"}[declared]
		f := manyNodes(50, 100, declared)
		order := counted()
		full, err := buildTopology(f, order)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/build", func(b *testing.B) {
			for b.Loop() {
				if _, err := buildTopology(f, order); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/find", func(b *testing.B) {
			for b.Loop() {
				overlap.Find(full.Claims)
			}
		})
		b.Run(name+"/publish", func(b *testing.B) {
			cache, p := xds.NewCache(), published{}
			for b.Loop() {
				if _, err := p.publish(cache, full); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/expected", func(b *testing.B) {
			for b.Loop() {
				expected(full)
			}
		})
		b.Run(name+"/peers", func(b *testing.B) {
			for b.Loop() {
				for _, c := range full.Clusters {
					mesh.Peers(full, c.Name)
				}
			}
		})
		b.Run(name+"/configs", func(b *testing.B) {
			for b.Loop() {
				for _, c := range full.Clusters {
					mesh.ClusterConfigOf(full, c.Name)
				}
			}
		})
	}
}
