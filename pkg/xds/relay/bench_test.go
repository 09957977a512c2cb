package relay

import (
	"fmt"
	"net/netip"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// assignments makes count EDS resources with ten pods each, five behind tunnels to
// as many nodes of a hundred.
func assignments(b *testing.B, count int) []*discovery.Resource {
	b.Helper()
	var out []*discovery.Resource
	for i := range count {
		a := build.Assignment{
			Name:   build.ClusterName(80, fmt.Sprintf("s%d.demo.svc.cluster.local", i)),
			Remote: []build.Remote{{Cluster: "west", Standby: true, Serving: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:15443")}, StandbyAddrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:15447")}}},
		}
		for j := range 10 {
			d := build.Direct{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), 80), Node: self, Reason: mesh.ReasonLocal, Zone: "z1"}
			if j%2 == 0 {
				d.Node, d.Reason = mesh.NodeID{Cluster: "west", Name: fmt.Sprintf("w%d", (i+j)%100)}, mesh.ReasonTunnel
			}
			a.Direct = append(a.Direct, d)
		}
		r, err := build.EDS(a)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func benchCache(b *testing.B, count int) (*cache, []*discovery.Resource) {
	b.Helper()
	c, who := newTestCache(Options{Node: self}), &asker{unknown: map[*entry]int{}}
	if _, err := c.subscribe(who, grpcEDS, wildcard); err != nil {
		b.Fatal(err)
	}
	list := assignments(b, count)
	if _, err := c.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: list}); err != nil {
		b.Fatal(err)
	}
	return c, list
}

// A tunnel goes down and comes up, and every assignment that it concerns is made
// anew: of 5,000 names a twentieth.
func BenchmarkTunnelFlip(b *testing.B) {
	c, _ := benchCache(b, 5000)
	down := map[mesh.NodeID]bool{{Cluster: "west", Name: "w7"}: true}
	b.ReportAllocs()
	for b.Loop() {
		for _, d := range []map[mesh.NodeID]bool{down, nil} {
			for _, n := range c.setDown(d)[build.GRPC] {
				if _, a := c.Lookup(string(build.GRPC), grpcEDS.typeURL, n); a != xds.Found {
					b.Fatal(a)
				}
			}
		}
	}
}

// A whole cluster goes: all 5,000 names.
func BenchmarkClusterDown(b *testing.B) {
	c, list := benchCache(b, 5000)
	down := map[mesh.NodeID]bool{}
	for i := range 100 {
		down[mesh.NodeID{Cluster: "west", Name: fmt.Sprintf("w%d", i)}] = true
	}
	b.ReportAllocs()
	for b.Loop() {
		c.setDown(down)
		for _, r := range list {
			c.Lookup(string(build.GRPC), grpcEDS.typeURL, r.GetName())
		}
		c.setDown(nil)
	}
}

// What the control plane answers is read once.
func BenchmarkApply(b *testing.B) {
	c, list := benchCache(b, 1000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		next := make([]*discovery.Resource, len(list))
		for j, r := range list {
			next[j] = &discovery.Resource{Name: r.GetName(), Version: fmt.Sprint(i), Resource: r.GetResource()}
		}
		if _, err := c.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: next}); err != nil {
			b.Fatal(err)
		}
	}
}
