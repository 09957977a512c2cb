package build

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/internal/testmesh"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// plainly is what a client gets of a service port, endpoint by endpoint; nil
// where the service has no such port for it.
func plainly(w *testmesh.World, name string, s *mesh.Service, client mesh.NodeID, scope mesh.Scope, number uint16) *Assignment {
	def := s.Definition(client.Cluster, scope, number)
	if def == nil {
		return nil
	}
	want, _ := def.Port(number)
	a := &Assignment{Name: name}
	if def.Prefer != mesh.PreferNone {
		a.GatewayPriority = 1
	}
	for _, terminating := range []bool{false, true} {
		a.Direct, a.Remote = nil, nil
		usable := false
		for _, part := range s.Parts {
			p, ok := part.Port(number)
			if !scope.In(client.Cluster, &part) || !ok || p.Protocol != want.Protocol || p.TLS != want.TLS {
				continue
			}
			r := Remote{Cluster: part.Cluster}
			some := false
			for _, b := range p.Backends {
				if b.Terminating != terminating || second(w, &part, p, b, client.Cluster) {
					continue
				}
				some = true
				to := mesh.Target{
					Node: mesh.NodeID{Cluster: part.Cluster, Name: b.Node}, Addr: b.Addr.Addr(),
					Exported: part.Exported, TLS: p.TLS, TCP: p.Protocol == mesh.TCP,
				}
				path := mesh.Resolve(w.Topology, w.Reach, client, to)
				usable = usable || path.Kind != mesh.None
				switch path.Kind {
				case mesh.Direct:
					r.Standby = true
					a.Direct = append(a.Direct, direct(w, def.Prefer, client, to.Node, b, path.Reason))
				case mesh.ViaGateway:
					r.Pods++
				}
			}
			if some && part.Cluster != client.Cluster {
				a.Remote = append(a.Remote, gatewaysOf(w, client, r, p))
			}
		}
		if usable {
			break
		}
	}
	return a
}

// second reports whether a backend is the address of a dual-stack pod that is
// not to be used.
func second(w *testmesh.World, part *mesh.ServicePart, p *mesh.ServicePort, b mesh.Backend, cluster string) bool {
	take := mesh.IPv4
	if len(part.ClusterIPs) > 0 {
		take = mesh.FamilyOf(part.ClusterIPs[0])
	}
	has := map[mesh.Family]bool{}
	for _, c := range w.Topology.Clusters {
		for _, cidr := range c.PodCIDRs {
			has[mesh.FamilyOf(cidr.Addr())] = has[mesh.FamilyOf(cidr.Addr())] || c.Name == cluster
		}
	}
	for _, n := range w.Topology.NodesOf(cluster) {
		for _, cidr := range n.PodCIDRs {
			has[mesh.FamilyOf(cidr.Addr())] = true
		}
	}
	if other := mesh.IPv4 + mesh.IPv6 - take; !has[take] && has[other] {
		take = other
	}
	if b.Pod == "" || mesh.FamilyOf(b.Addr.Addr()) == take {
		return false
	}
	return slices.ContainsFunc(p.Backends, func(o mesh.Backend) bool {
		return o.Pod == b.Pod && mesh.FamilyOf(o.Addr.Addr()) == take
	})
}

func direct(w *testmesh.World, prefer mesh.Preference, client, node mesh.NodeID, b mesh.Backend, reason mesh.Reason) Direct {
	d := Direct{Addr: b.Addr, Node: node, Zone: b.Zone, Reason: reason}
	if n, ok := w.Topology.Node(node); ok {
		d.Region = n.Region
		if n.Zone != "" {
			d.Zone = n.Zone
		}
	}
	own, ok := w.Topology.Node(client)
	if prefer == mesh.PreferCluster && node.Cluster != client.Cluster ||
		prefer == mesh.PreferZone && (!ok || own.Zone == "" || own.Zone != d.Zone || own.Region != d.Region) {
		d.Priority = 1
	}
	return d
}

func gatewaysOf(w *testmesh.World, client mesh.NodeID, r Remote, p *mesh.ServicePort) Remote {
	switch {
	case p.Protocol != mesh.TCP:
		r.Reason = mesh.ReasonNotTCP
		return r
	case !p.TLS:
		r.Reason = mesh.ReasonNoTLS
		return r
	}
	var gateways []mesh.Gateway
	gateways, r.Reason = mesh.NewResolver(w.Topology).Gateways(client, r.Cluster)
	for _, g := range gateways {
		for _, port := range g.Ports {
			r.Serving = append(r.Serving, netip.AddrPortFrom(g.Addr, port))
		}
		for _, port := range g.StandbyPorts {
			r.StandbyAddrs = append(r.StandbyAddrs, netip.AddrPortFrom(g.Addr, port))
		}
	}
	return r
}

// clients are on all nodes that there may be, and on a host of each cluster that
// has none.
func clients() []mesh.NodeID {
	out := testmesh.Nodes()
	for _, c := range testmesh.Clusters {
		out = append(out, mesh.NodeID{Cluster: c})
	}
	return out
}

// checkSpreads compares the assignments of a world with the plain ones, and view
// keys with assignments. It returns how many keys there are more than assignments that differ, for
// services that prefer nothing, and for others.
func checkSpreads(t *testing.T, w *testmesh.World) (more, preferring int) {
	t.Helper()
	resolver := mesh.NewResolver(w.Topology)
	for _, s := range w.Services {
		for _, scope := range []mesh.Scope{mesh.ScopeMesh, mesh.ScopeCluster, mesh.ScopeSet} {
			for _, number := range testmesh.Ports() {
				name := ClusterName(number, Host(s.Name, scope))
				spreads := map[string]*Spread{}
				for _, cluster := range testmesh.Clusters {
					spreads[cluster] = NewSpread(resolver, name, s, cluster, scope, number)
				}
				byKey := map[[2]string]Assignment{}
				byContent := map[[2]string]bool{}
				for _, client := range clients() {
					sp, want := spreads[client.Cluster], plainly(w, name, s, client, scope, number)
					if (sp == nil) != (want == nil) {
						t.Fatalf("%s for %s: %v, want %v", name, client, sp, want)
					}
					if sp == nil {
						continue
					}
					got := sp.Assignment(w.Reach, client).Normal()
					if want := want.Normal(); !reflect.DeepEqual(got, want) {
						t.Fatalf("%s for %s:\n%+v, want\n%+v\n%+v", name, client, got, want, s)
					}
					k := [2]string{client.Cluster, string(sp.AppendKey(nil, w.Reach, client))}
					if same, ok := byKey[k]; ok && !reflect.DeepEqual(got, same) {
						t.Fatalf("%s for %s: one key for\n%+v and\n%+v", name, client, got, same)
					}
					byKey[k] = got
					byContent[[2]string{client.Cluster, fmt.Sprint(got)}] = true
				}
				if s.Parts[0].Prefer == mesh.PreferNone {
					more += len(byKey) - len(byContent)
				} else {
					preferring += len(byKey) - len(byContent)
				}
			}
		}
	}
	return more, preferring
}

// What is made of groups of endpoints is what is plainly made of each, and clients
// share a key where they get the same.
func TestSpreadIsPlain(t *testing.T) {
	more, preferring := 0, 0
	for seed := range uint64(60) {
		m, p := checkSpreads(t, testmesh.New(seed))
		more, preferring = more+m, preferring+p
	}
	if more != 0 {
		t.Errorf("%d view keys too many", more)
	}
	// Where all of a client's endpoints are in the zone that it prefers, and where
	// none is, it gets the same by two keys.
	if preferring > 60 {
		t.Errorf("%d view keys too many of services with a preference", preferring)
	}
}

func FuzzSpread(f *testing.F) {
	f.Add(uint64(1), uint8(3))
	f.Fuzz(func(t *testing.T, seed uint64, changes uint8) {
		w := testmesh.New(seed)
		for range changes % 16 {
			w.ChangeTopology()
			w.ChangeService()
			w.ChangeReport()
		}
		checkSpreads(t, w)
	})
}

// Each family of a client's node decides which gateways it can use.
func TestSpreadKeyHasFamilies(t *testing.T) {
	node := func(cluster, name string, addrs ...string) mesh.Node {
		n := mesh.Node{ID: mesh.NodeID{Cluster: cluster, Name: name}}
		for _, a := range addrs {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
		}
		return n
	}
	gateway := func(addr string) mesh.Gateway {
		return mesh.Gateway{Cluster: "west", Name: addr, Addr: netip.MustParseAddr(addr), Ports: []uint16{15443}}
	}
	backend := mesh.Backend{Addr: netip.MustParseAddrPort("10.2.0.1:80"), Node: "n1"}
	s := &mesh.Service{Name: mesh.ServiceName{Namespace: "demo", Name: "echo"}, Parts: []mesh.ServicePart{{
		Cluster: "west", Exported: true, Ports: []mesh.ServicePort{{Number: 80, Protocol: mesh.TCP, TLS: true, Backends: []mesh.Backend{backend}}},
	}}}
	for _, c := range []struct {
		gateways string
		want     string // the clients' keys, alike where they have the same letter
	}{
		{"203.0.113.1", "aaba"}, {"fd00::1", "abaa"}, {"203.0.113.1 fd00::1", "abca"}, {"", "aaaa"},
	} {
		t.Run(c.gateways, func(t *testing.T) {
			topology := mesh.Topology{
				Clusters: []mesh.Cluster{{Name: "east", Network: "east"}, {Name: "west", Network: "west"}},
				Nodes: []mesh.Node{
					node("east", "both", "192.0.2.1", "fd01::1"), node("east", "none"), node("east", "six", "fd01::2"), node("east", "four", "192.0.2.2"),
				},
			}
			for _, a := range strings.Fields(c.gateways) {
				topology.Gateways = append(topology.Gateways, gateway(a))
			}
			sp := NewSpread(mesh.NewResolver(topology), "x", s, "east", mesh.ScopeMesh, 80)
			letters := map[string]byte{}
			contents := map[string]string{}
			got := ""
			for _, n := range []string{"both", "four", "six", "none"} {
				client := mesh.NodeID{Cluster: "east", Name: n}
				k := string(sp.AppendKey(nil, nil, client))
				a := fmt.Sprint(sp.Assignment(nil, client).Normal())
				if was, ok := contents[k]; ok && was != a {
					t.Errorf("%s: %s, and by the same key %s", n, a, was)
				}
				contents[k] = a
				if letters[k] == 0 {
					letters[k] = 'a' + byte(len(letters))
				}
				got += string(letters[k])
			}
			if got != c.want {
				t.Errorf("both, four, six, none: %s, want %s", got, c.want)
			}
		})
	}
}

// A pod with two addresses counts once, by the family that its Service has first,
// unless the clients' cluster lacks that; one of which the pod is not known counts
// for each.
func TestDualStackPodsCountOnce(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")
	pods := func(cidrs ...string) (out []netip.Prefix) {
		for _, c := range cidrs {
			out = append(out, netip.MustParsePrefix(c))
		}
		return out
	}
	for _, c := range []struct {
		name   string
		ips    []netip.Addr
		client []netip.Prefix // pods of the clients' cluster
		pod    string
		want   string
	}{
		{"IPv4 first", []netip.Addr{v4, v6}, pods("10.1.0.0/16", "fd01::/48"), "p", "10.2.0.1:80"},
		{"IPv6 first", []netip.Addr{v6, v4}, pods("10.1.0.0/16", "fd01::/48"), "p", "[fd02::1]:80"},
		{"headless", nil, pods("10.1.0.0/16", "fd01::/48"), "p", "10.2.0.1:80"},
		{"clients of IPv6 alone", []netip.Addr{v4, v6}, pods("fd01::/48"), "p", "[fd02::1]:80"},
		{"clients of IPv4 alone", []netip.Addr{v6, v4}, pods("10.1.0.0/16"), "p", "10.2.0.1:80"},
		{"clients of neither", []netip.Addr{v6, v4}, nil, "p", "[fd02::1]:80"},
		{"unknown pod", []netip.Addr{v4, v6}, pods("10.1.0.0/16"), "", "10.2.0.1:80 [fd02::1]:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &mesh.Service{Parts: []mesh.ServicePart{{
				Cluster: "west", Exported: true, ClusterIPs: c.ips,
				Ports: []mesh.ServicePort{{Number: 80, Protocol: mesh.TCP, TLS: true, Backends: []mesh.Backend{
					{Addr: netip.MustParseAddrPort("10.2.0.1:80"), Pod: c.pod, Node: "n1"}, {Addr: netip.MustParseAddrPort("[fd02::1]:80"), Pod: c.pod, Node: "n1"},
				}}},
			}}}
			near := mesh.Topology{Clusters: []mesh.Cluster{{Name: "east", Network: "x", PodCIDRs: c.client}, {Name: "west", Network: "x"}}}
			a := NewSpread(mesh.NewResolver(near), "x", s, "east", mesh.ScopeMesh, 80).Assignment(nil, mesh.NodeID{Cluster: "east", Name: "n1"})
			var got []string
			for _, d := range a.Direct {
				got = append(got, d.Addr.String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("direct %v, want %s", got, c.want)
			}
			// Behind a gateway it weighs as one too.
			far := mesh.Topology{Clusters: []mesh.Cluster{{Name: "east", Network: "x", PodCIDRs: c.client}, {Name: "west", Network: "y"}},
				Gateways: []mesh.Gateway{{Cluster: "west", Addr: v4, Ports: []uint16{15443}}}}
			a = NewSpread(mesh.NewResolver(far), "x", s, "east", mesh.ScopeMesh, 80).Assignment(nil, mesh.NodeID{Cluster: "east", Name: "n1"})
			if n := len(strings.Fields(c.want)); len(a.Remote) != 1 || a.Remote[0].Pods != n {
				t.Errorf("behind gateways %+v, want %d pods", a.Remote, n)
			}
		})
	}
}
