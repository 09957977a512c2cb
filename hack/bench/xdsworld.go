package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// The two clusters of a world: clients are in the first.
const (
	nearCluster = "near"
	farCluster  = "far"
	farNodes    = 40
)

// world is what an xDS server serves in a benchmark: services that have half of
// their endpoints in each of two clusters, and a node of the near cluster for each
// client. Every node has tunnels to all nodes of the other cluster; one client in
// five has one that is Down.
type world struct {
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"` // of each service
	Clients   int `json:"clients"`
	// OneNode puts one endpoint of every service on the first far node.
	OneNode bool `json:"oneNode"`
}

func nearNode(i int) mesh.NodeID {
	return mesh.NodeID{Cluster: nearCluster, Name: fmt.Sprintf("n%d", i)}
}

func farNode(i int) mesh.NodeID {
	return mesh.NodeID{Cluster: farCluster, Name: fmt.Sprintf("n%d", i)}
}

func serviceName(i int) mesh.ServiceName {
	return mesh.ServiceName{Namespace: "demo", Name: fmt.Sprintf("svc-%05d", i)}
}

// assignmentName is the name of a service's assignment.
func assignmentName(i int) string {
	return build.ClusterName(80, build.Host(serviceName(i), mesh.ScopeMesh))
}

// podPrefix is the prefix of a node's pods, of 8,192 addresses.
func podPrefix(id mesh.NodeID, i int) netip.Prefix {
	base := uint32(10) << 24
	if id.Cluster == farCluster {
		base |= 1 << 23
	}
	return netip.PrefixFrom(fromUint32(base|uint32(i)<<13), 19)
}

func fromUint32(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

func (w world) topology() mesh.Topology {
	t := mesh.Topology{TunnelRanges: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}}
	for _, c := range []struct {
		name, pods, gateway string
		nodes               int
		node                func(int) mesh.NodeID
	}{
		{farCluster, "10.128.0.0/9", "192.0.2.2", farNodes, farNode},
		{nearCluster, "10.0.0.0/9", "192.0.2.1", w.Clients, nearNode},
	} {
		pods := netip.MustParsePrefix(c.pods)
		t.Clusters = append(t.Clusters, mesh.Cluster{Name: c.name, Network: c.name, PodCIDRs: []netip.Prefix{pods}})
		t.Claims = append(t.Claims, mesh.Claim{Cluster: c.name, Kind: mesh.PodRange, Prefix: pods, Order: uint64(len(t.Claims) + 1)})
		t.Gateways = append(t.Gateways, mesh.Gateway{
			Cluster: c.name, Name: "flatmesh-system/gateway", Addr: netip.MustParseAddr(c.gateway),
			Ports: []uint16{15443, 15444, 15445, 15446}, StandbyPorts: []uint16{15447, 15448, 15449, 15450},
		})
		for i := range c.nodes {
			id := c.node(i)
			p := podPrefix(id, i)
			place := uint32(len(t.Nodes) + 1)
			t.Nodes = append(t.Nodes, mesh.Node{
				ID: id, PodCIDRs: []netip.Prefix{p}, Prefixes: []netip.Prefix{p}, Addresses: []netip.Addr{fromUint32(172<<24 | 16<<16 | place)},
				Region: "region-" + c.name, Zone: fmt.Sprintf("zone-%d", i%3), Key: mesh.PublicKey{byte(place), byte(place >> 8), 1},
				TunnelAddrs: []netip.Addr{fromUint32(198<<24 | 18<<16 | place)},
			})
		}
	}
	slices.SortFunc(t.Nodes, func(a, b mesh.Node) int { return a.ID.Compare(b.ID) })
	return t
}

// service is a service in one of its generations, which differ in one endpoint.
func (w world) service(i, generation int) *mesh.Service {
	part := func(cluster string, nodes int, node func(int) mesh.NodeID, first int) mesh.ServicePart {
		p := mesh.ServicePart{Cluster: cluster, Created: 1, Exported: true, Ports: []mesh.ServicePort{{Number: 80, Name: "grpc", Protocol: mesh.TCP, AppProtocol: "grpc", TLS: true}}}
		for e := first; e < w.Endpoints; e += 2 {
			n := (i*w.Endpoints + e) % nodes
			if w.OneNode && cluster == farCluster && e == first {
				n = 0
			}
			// The upper half of a node's addresses is for endpoints that come and go. It
			// is a near one that does: all clients have its address, whatever their tunnels.
			place := 1 + (i*w.Endpoints+e)/nodes%4000
			if cluster == nearCluster && e == first && generation > 0 {
				place = 4096 + generation%4000
			}
			base := podPrefix(node(n), n).Addr().As4()
			addr := fromUint32(binary.BigEndian.Uint32(base[:]) + uint32(place))
			p.Ports[0].Backends = append(p.Ports[0].Backends, mesh.Backend{
				Addr: netip.AddrPortFrom(addr, 8080), Node: node(n).Name, Pod: fmt.Sprintf("svc-%05d-%d", i, e), ServiceAccount: "demo",
			})
		}
		slices.SortFunc(p.Ports[0].Backends, func(a, b mesh.Backend) int { return a.Addr.Compare(b.Addr) })
		return p
	}
	return &mesh.Service{Name: serviceName(i), Parts: []mesh.ServicePart{
		part(farCluster, farNodes, farNode, 1), part(nearCluster, w.Clients, nearNode, 0),
	}}
}

// report is what the agent of a client's node says of its tunnels; flipped turns
// the one to the first far node.
func (w world) report(client int, flipped bool) map[mesh.NodeID]mesh.TunnelStatus {
	out := make(map[mesh.NodeID]mesh.TunnelStatus, farNodes)
	for i := range farNodes {
		s := mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}
		if client%5 == 4 && i == 1+client/5%(farNodes-1) || i == 0 && flipped {
			s = mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonProbeLost}
		}
		out[farNode(i)] = s
	}
	return out
}

// farReport is that of a far node.
func (w world) farReport() map[mesh.NodeID]mesh.TunnelStatus {
	out := make(map[mesh.NodeID]mesh.TunnelStatus, w.Clients)
	for i := range w.Clients {
		out[nearNode(i)] = mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}
	}
	return out
}
