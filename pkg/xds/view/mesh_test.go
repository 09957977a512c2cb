package view

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// The mesh of most tests: east and west, each with the nodes n1 and n2 and one
// gateway. Pods of a node lie in 10.C.N.0/24.
var clusters = []string{"east", "west"}

func node(s string) mesh.NodeID {
	cluster, name, _ := strings.Cut(s, "/")
	return mesh.NodeID{Cluster: cluster, Name: name}
}

func twoClusters() mesh.Topology {
	var t mesh.Topology
	for i, c := range clusters {
		pods := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i + 1)}), 16)
		t.Clusters = append(t.Clusters, mesh.Cluster{Name: c, Network: c, PodCIDRs: []netip.Prefix{pods}})
		t.Claims = append(t.Claims, mesh.Claim{Cluster: c, Kind: mesh.PodRange, Prefix: pods, Order: uint64(i + 1)})
		for j := range 2 {
			t.Nodes = append(t.Nodes, aNode(c, i, j))
		}
		t.Gateways = append(t.Gateways, mesh.Gateway{
			Cluster: c, Name: "flatmesh-system/gw", Addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}),
			Ports: []uint16{15443}, StandbyPorts: []uint16{15447},
		})
	}
	return t
}

func aNode(cluster string, i, j int) mesh.Node {
	pods := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i + 1), byte(j + 1)}), 24)}
	return mesh.Node{
		ID: mesh.NodeID{Cluster: cluster, Name: fmt.Sprintf("n%d", j+1)}, PodCIDRs: pods, Prefixes: pods,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i + 1), byte(j + 1)})}, Zone: "z1",
		Key: mesh.PublicKey{byte(i + 1), byte(j + 1)}, TunnelAddrs: []netip.Addr{netip.AddrFrom4([4]byte{198, 19, byte(i + 1), byte(j + 1)})},
	}
}

// allUp is what a node reports when all is well.
func allUp(from mesh.NodeID) map[mesh.NodeID]mesh.TunnelStatus {
	out := map[mesh.NodeID]mesh.TunnelStatus{}
	for _, n := range twoClusters().Nodes {
		if n.ID.Cluster != from.Cluster {
			out[n.ID] = mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}
		}
	}
	return out
}

// but returns a report with one tunnel in another state.
func but(report map[mesh.NodeID]mesh.TunnelStatus, to string, s mesh.TunnelState) map[mesh.NodeID]mesh.TunnelStatus {
	out := map[mesh.NodeID]mesh.TunnelStatus{}
	for id, x := range report {
		out[id] = x
	}
	out[node(to)] = mesh.TunnelStatus{State: s, Reason: mesh.ReasonProbeLost}
	return out
}

func name(s string) mesh.ServiceName { return mesh.ServiceName{Namespace: "demo", Name: s} }

// aPart is what a cluster has of a service with one port, 80: pods on these nodes.
func aPart(cluster string, nodes ...int) mesh.ServicePart {
	i := 1
	if cluster == "west" {
		i = 2
	}
	p := mesh.ServicePort{Number: 80, Protocol: mesh.TCP, AppProtocol: "grpc", TLS: true}
	for k, n := range nodes {
		p.Backends = append(p.Backends, mesh.Backend{
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(n), byte(k + 1)}), 8080),
			Node: fmt.Sprintf("n%d", n), Pod: fmt.Sprintf("p%d", k), ServiceAccount: "echo",
		})
	}
	return mesh.ServicePart{Cluster: cluster, Exported: true, Ports: []mesh.ServicePort{p}, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i), 1})}}
}

func aService(s string, parts ...mesh.ServicePart) *mesh.Service {
	return &mesh.Service{Name: name(s), Parts: parts}
}

// everywhere has a pod on each n1.
func everywhere(s string) *mesh.Service { return aService(s, aPart("east", 1), aPart("west", 1)) }

// withPort adds a port to a part.
func withPort(p mesh.ServicePart, number uint16, change func(*mesh.ServicePort)) mesh.ServicePart {
	q := p.Ports[0]
	q.Number = number
	if change != nil {
		change(&q)
	}
	p.Ports = append([]mesh.ServicePort{p.Ports[0]}, q)
	return p
}

// begun is a Catalog with services that has begun, all tunnels up.
func begun(t testing.TB, mcs bool, services ...*mesh.Service) *Catalog {
	t.Helper()
	c := New(t.Context(), options(mcs))
	tell(c, services...)
	c.Begin(nil)
	return c
}

func tell(c *Catalog, services ...*mesh.Service) {
	c.SetTopology(twoClusters())
	all := map[mesh.ServiceName]*mesh.Service{}
	for _, s := range services {
		all[s.Name] = s
	}
	c.SetServices(all)
	for _, n := range twoClusters().Nodes {
		c.SetReport(n.ID, allUp(n.ID))
	}
}

func set(c *Catalog, s *mesh.Service) { c.SetServices(map[mesh.ServiceName]*mesh.Service{s.Name: s}) }

func remove(c *Catalog, s string) { c.SetServices(map[mesh.ServiceName]*mesh.Service{name(s): nil}) }

func grpcOn(n string) string  { return Of(build.GRPC, node(n)) }
func envoyOn(n string) string { return Of(build.Envoy, node(n)) }
