package controlplane

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// randomMesh makes meshes in a small world, so that much overlaps.
type randomMesh struct {
	*rand.Rand
	facts facts
	order func([]string) (map[string]uint64, error)
	addrs int
	// podsOnly leaves out service and node ranges and addresses.
	podsOnly bool
}

func newRandomMesh(seed uint64) *randomMesh {
	r := &randomMesh{Rand: rand.New(rand.NewPCG(seed, 0)), order: counted()}
	r.facts = facts{registrations: map[mesh.NodeID]store.Registration{}, tunnelRanges: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/20"), netip.MustParsePrefix("fd00:3::/64")}}
	return r
}

// prefix is one of some hundred, of which any two overlap often.
func (r *randomMesh) prefix(narrowest int) netip.Prefix {
	bits := 14 + r.IntN(narrowest-13)
	if r.IntN(3) == 0 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(r.IntN(6)), byte(r.IntN(4) * 64)}), 16+bits).Masked()
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(6)), byte(r.IntN(8) * 32), 0}), bits).Masked()
}

// disjoint makes up to n prefixes that do not overlap, as a declaration's must.
func (r *randomMesh) disjoint(n, narrowest int) (out []netip.Prefix) {
	for range n {
		if p := r.prefix(narrowest); !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p)
		}
	}
	return out
}

func (r *randomMesh) addCluster() {
	name := fmt.Sprintf("c%d", len(r.facts.clusters))
	c := mesh.Cluster{Name: name, Network: name}
	if r.IntN(4) == 0 {
		c.Network = "shared"
	}
	if r.IntN(3) > 0 {
		c.PodCIDRs = r.disjoint(1+r.IntN(3), 20)
	}
	if !r.podsOnly {
		c.ServiceCIDRs = r.disjoint(r.IntN(2), 20)
		if r.IntN(2) > 0 {
			c.NodeCIDRs = r.disjoint(1, 22)
		}
	}
	r.facts.clusters = append(r.facts.clusters, c)
	for range 1 + r.IntN(4) {
		r.addNode(c)
	}
}

func (r *randomMesh) addNode(c mesh.Cluster) {
	r.addrs++
	n := mesh.Node{ID: mesh.NodeID{Cluster: c.Name, Name: fmt.Sprintf("n%d", r.addrs)}}
	for range 1 + r.IntN(2) {
		p := r.prefix(26)
		if len(c.PodCIDRs) > 0 && r.IntN(4) > 0 {
			in := c.PodCIDRs[r.IntN(len(c.PodCIDRs))]
			p = netip.PrefixFrom(in.Addr(), min(in.Bits()+r.IntN(5), in.Addr().BitLen()))
			for range r.IntN(3) { // not always the first
				last := p.Masked().Addr().As16()
				last[15-(p.Addr().BitLen()-p.Bits())/8] += 1 << ((p.Addr().BitLen() - p.Bits()) % 8)
				if a := netip.AddrFrom16(last); p.Addr().Is4() {
					p = netip.PrefixFrom(a.Unmap(), p.Bits())
				} else {
					p = netip.PrefixFrom(a, p.Bits())
				}
			}
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	if !r.podsOnly {
		n.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(r.IntN(20)), byte(r.IntN(256)), 9})}
	}
	r.facts.nodes = append(r.facts.nodes, n)
	if r.IntN(8) == 0 {
		return // no agent
	}
	reg := store.Registration{Node: n.ID, Key: keyOf(n.ID.String()), ListenPort: 51830}
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 3, 0, byte(r.addrs)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 3, 15: byte(r.addrs)})} {
		if r.IntN(10) > 0 {
			reg.TunnelAddrs = append(reg.TunnelAddrs, a)
		}
	}
	r.facts.registrations[n.ID] = reg
}

func (r *randomMesh) build(t *testing.T) mesh.Topology {
	t.Helper()
	top, err := buildTopology(r.facts, r.order)
	if err != nil {
		t.Fatal(err)
	}
	return top
}

// meshes runs a check on many meshes; a failure names the one to look at.
func meshes(t *testing.T, n int, check func(t *testing.T, r *randomMesh)) {
	first := rand.Uint64()
	for i := range uint64(n) {
		seed := first + i
		r := newRandomMesh(seed)
		for range 2 + r.IntN(5) {
			r.addCluster()
		}
		check(t, r)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// part is a node in a family.
type part struct {
	node   mesh.NodeID
	family mesh.Family
}

// partsOf holds which nodes have tunnels of which family as far as it is up to
// themselves.
func partsOf(top mesh.Topology) map[part]bool {
	out := map[part]bool{}
	for _, cluster := range top.Clusters {
		for _, c := range mesh.NodeConfigs(top, cluster.Name) {
			n, _ := top.Node(c.Node)
			for _, f := range mesh.Families {
				if n.Registered() && c.Takes(f) {
					out[part{c.Node, f}] = true
				}
			}
		}
	}
	return out
}

// peersOf holds which peers a cluster has in which family.
func peersOf(top mesh.Topology, cluster string) map[part]bool {
	out := map[part]bool{}
	for _, p := range mesh.Peers(top, cluster) {
		for _, f := range mesh.Families {
			if p.Has(f) {
				out[part{p.Node, f}] = true
			}
		}
	}
	return out
}

func TestWhatIsServedIsSafe(t *testing.T) {
	met := map[mesh.Effect]int{}
	tunnels := 0
	meshes(t, 600, func(t *testing.T, r *randomMesh) {
		top := r.build(t)
		for _, x := range top.Conflicts {
			met[x.Effect]++
		}
		peers := map[string]map[part]bool{}
		for _, c := range top.Clusters {
			peers[c.Name] = peersOf(top, c.Name)
			tunnels += len(peers[c.Name])
			checkServed(t, top, c.Name)
		}
		// What bars a pair bars it both ways.
		parts := partsOf(top)
		for a := range parts {
			for b := range parts {
				if a.family == b.family && peers[a.node.Cluster][b] != peers[b.node.Cluster][a] {
					t.Errorf("%v of %v and %v: a peer one way only", a.family, a.node, b.node)
				}
			}
		}
	})
	t.Logf("met %v, %d peers", met, tunnels)
	for _, e := range []mesh.Effect{mesh.Listed, mesh.Yields, mesh.PairApart, mesh.NoTunnels} {
		if met[e] == 0 {
			t.Errorf("no conflict of the kind %v was among them", e)
		}
	}
	if tunnels == 0 {
		t.Error("no peers were among them")
	}
}

// checkServed checks what a cluster's agents are served.
func checkServed(t *testing.T, top mesh.Topology, cluster string) {
	t.Helper()
	cfg, _ := mesh.ClusterConfigOf(top, cluster)
	for _, remote := range cfg.Remote {
		if slices.ContainsFunc(cfg.Protected, remote.Overlaps) {
			t.Errorf("%s: the remote range %v overlaps a protected one of %v", cluster, remote, cfg.Protected)
		}
	}
	type held struct {
		by     mesh.NodeID
		prefix netip.Prefix
	}
	var all []held
	for _, p := range mesh.Peers(top, cluster) {
		for _, a := range p.AllowedIPs() {
			for _, h := range all {
				if h.prefix.Overlaps(a) {
					t.Errorf("%s: %v may send from %v, and %v from %v", cluster, p.Node, a, h.by, h.prefix)
				}
			}
			// A route into a tunnel that goes leaves an unreachable behind, not the way
			// out of the node; but no route is made over what is protected.
			inside := func(r netip.Prefix) bool { return r.Bits() <= a.Bits() && r.Contains(a.Addr()) }
			if !slices.ContainsFunc(cfg.Remote, inside) && !slices.ContainsFunc(cfg.Protected, func(q netip.Prefix) bool {
				return slices.ContainsFunc(top.Claims, func(c mesh.Claim) bool { return inside(c.Prefix) && q.Overlaps(c.Prefix) })
			}) {
				t.Errorf("%s: %v of %v lies in no remote range of %v", cluster, a, p.Node, cfg.Remote)
			}
		}
		for _, a := range p.AllowedIPs() {
			all = append(all, held{p.Node, a})
		}
	}
}

// A cluster that comes later, however bad, takes no peer from those that were
// there, and changes none.
func TestLaterClusterHarmsNobody(t *testing.T) {
	meshes(t, 600, func(t *testing.T, r *randomMesh) {
		before := r.build(t)
		r.addCluster()
		after := r.build(t)
		sameForEstablished(t, before, after)
	})
}

// Nor does a node that comes later, whatever its pod prefixes.
func TestLaterNodeHarmsNobody(t *testing.T) {
	meshes(t, 600, func(t *testing.T, r *randomMesh) {
		r.podsOnly = true
		r.facts.clusters, r.facts.nodes = nil, nil
		clear(r.facts.registrations)
		for range 4 {
			r.addCluster()
		}
		before := r.build(t)
		r.addNode(r.facts.clusters[r.IntN(4)])
		sameForEstablished(t, before, r.build(t))
	})
}

func sameForEstablished(t *testing.T, before, after mesh.Topology) {
	t.Helper()
	for _, c := range before.Clusters {
		now := mesh.Peers(after, c.Name)
		for _, p := range mesh.Peers(before, c.Name) {
			i := slices.IndexFunc(now, func(q mesh.Peer) bool { return q.Node == p.Node })
			if i < 0 {
				t.Errorf("%s has lost %v", c.Name, p.Node)
			} else if !now[i].Equal(p) {
				t.Errorf("%s: %v was %v, is %v", c.Name, p.Node, p, now[i])
			}
		}
	}
}

// The number of tunnels that the status expects, against counting pairs.
func TestExpectedAgainstCounting(t *testing.T) {
	meshes(t, 300, func(t *testing.T, r *randomMesh) {
		top := r.build(t)
		parts := partsOf(top)
		want := 0
		for _, c := range top.Clusters {
			peers := mesh.Peers(top, c.Name)
			for _, n := range top.NodesOf(c.Name) {
				for _, p := range peers {
					if slices.ContainsFunc(mesh.Families[:], func(f mesh.Family) bool { return parts[part{n.ID, f}] && p.Has(f) }) {
						want++
					}
				}
			}
		}
		if got := expected(top); got != want {
			t.Errorf("got %d, want %d", got, want)
		}
	})
}

// The order of facts in memory must not matter.
func TestBuildIgnoresTheOrderOfFacts(t *testing.T) {
	meshes(t, 300, func(t *testing.T, r *randomMesh) {
		want := fmt.Sprintf("%+v", r.build(t))
		r.Shuffle(len(r.facts.clusters), func(i, j int) { r.facts.clusters[i], r.facts.clusters[j] = r.facts.clusters[j], r.facts.clusters[i] })
		r.Shuffle(len(r.facts.nodes), func(i, j int) { r.facts.nodes[i], r.facts.nodes[j] = r.facts.nodes[j], r.facts.nodes[i] })
		if got := fmt.Sprintf("%+v", r.build(t)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}
