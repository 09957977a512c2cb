package testmesh

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// service makes one of which clusters may well say different things.
func (w *World) service(name mesh.ServiceName) *mesh.Service {
	s := &mesh.Service{Name: name}
	tls := w.IntN(3) > 0
	prefer := pick(w, mesh.PreferNone, mesh.PreferNone, mesh.PreferCluster, mesh.PreferZone)
	for i, cluster := range Clusters {
		if w.IntN(3) == 0 {
			continue
		}
		p := mesh.ServicePart{
			Cluster: cluster, Created: int64(w.IntN(3)), Exported: w.IntN(4) > 0, Prefer: prefer, Retry: w.IntN(4) == 0,
			ClusterIPs: w.clusterIPs(i, name),
		}
		for _, number := range Ports() {
			switch {
			case number == 53 && w.IntN(3) == 0:
				p.Ports = append(p.Ports, w.port(i, mesh.ServicePort{Number: number, Name: "dns", Protocol: mesh.UDP}))
			case number == 81 && w.IntN(2) == 0, number == 80:
				q := mesh.ServicePort{Number: number, Name: fmt.Sprint("p", number), Protocol: mesh.TCP, TLS: tls, AppProtocol: pick(w, "", "http", "grpc")}
				if w.IntN(10) == 0 {
					q.TLS = !tls
				}
				p.Ports = append(p.Ports, w.port(i, q))
				if w.IntN(10) == 0 {
					p.Ports = append(p.Ports, w.port(i, mesh.ServicePort{Number: number, Name: "udp", Protocol: mesh.UDP}))
				}
			}
		}
		s.Parts = append(s.Parts, p)
	}
	if len(s.Parts) == 0 {
		return nil
	}
	return s
}

// clusterIPs are such that services sometimes claim the same.
func (w *World) clusterIPs(i int, name mesh.ServiceName) []netip.Addr {
	last := name.Name[1] - '0'
	if w.IntN(6) == 0 {
		last = 9
	}
	v4, v6 := netip.AddrFrom4([4]byte{10, 96, byte(i), last}), netip.AddrFrom16([16]byte{0xfd, 2: 0xcc, 14: byte(i), 15: last})
	return pick(w, []netip.Addr{v4}, []netip.Addr{v4}, []netip.Addr{v4, v6}, []netip.Addr{v6}, nil)
}

// scaled returns a service with other pods in one place.
func (w *World) scaled(old *mesh.Service) *mesh.Service {
	s := &mesh.Service{Name: old.Name, Parts: slices.Clone(old.Parts)}
	p := &s.Parts[w.IntN(len(s.Parts))]
	p.Ports = slices.Clone(p.Ports)
	if len(p.Ports) > 0 {
		q := &p.Ports[w.IntN(len(p.Ports))]
		*q = w.port(slices.Index(Clusters[:], p.Cluster), *q)
	}
	return s
}

// port returns a port with pods in a cluster.
func (w *World) port(i int, p mesh.ServicePort) mesh.ServicePort {
	p.Backends = nil
	account := pick(w, "a", "a", "a", "b", "")
	taken := map[netip.AddrPort]bool{}
	add := func(b mesh.Backend, ip netip.Addr) {
		if b.Addr = netip.AddrPortFrom(ip, p.Number+8000); !taken[b.Addr] {
			taken[b.Addr] = true
			p.Backends = append(p.Backends, b)
		}
	}
	for k := range w.IntN(5) {
		j := w.IntN(nodesEach)
		b := mesh.Backend{
			Node: fmt.Sprintf("n%d", j+1), Zone: pick(w, "", "z1"), Pod: fmt.Sprintf("pod%d", k), ServiceAccount: account,
			Terminating: w.IntN(5) == 0,
		}
		p4, p6 := nodePods(i, j)
		v4, v6 := p4.Addr().As4(), p6.Addr().As16()
		v4[3], v6[15] = byte(k+1), byte(k+1)
		switch w.IntN(12) {
		case 0: // on the node's own network
			a4, _ := nodeAddrs(i, j)
			add(b, a4)
		case 1: // borrowed from elsewhere in the cluster
			v4[2] = 200
			add(b, netip.AddrFrom4(v4))
		case 2:
			b.Node = pick(w, "", "unknown")
			add(b, netip.AddrFrom4(v4))
		case 3:
			b.Pod, b.ServiceAccount = "", ""
			add(b, netip.AddrFrom4(v4))
		case 4, 5:
			add(b, netip.AddrFrom4(v4))
			add(b, netip.AddrFrom16(v6))
		case 6:
			add(b, netip.AddrFrom16(v6))
		default:
			add(b, netip.AddrFrom4(v4))
		}
	}
	slices.SortFunc(p.Backends, func(a, b mesh.Backend) int { return a.Addr.Compare(b.Addr) })
	return p
}
