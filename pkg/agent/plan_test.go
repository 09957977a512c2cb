package agent

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

func addrs(in ...string) (out []netip.Addr) {
	for _, s := range in {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(in ...string) (out []netip.Prefix) {
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func nodeID(t testing.TB, s string) mesh.NodeID {
	t.Helper()
	id, err := mesh.ParseNodeID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func key(t testing.TB) wg.PrivateKey {
	t.Helper()
	k, err := wg.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// east is this node; west and north are others.
func testInputs(t testing.TB) (in inputs, west, north mesh.Peer) {
	t.Helper()
	west = mesh.Peer{
		Node: nodeID(t, "west/n1"), Key: key(t).PublicKey(), Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:51830")},
		TunnelAddrs: addrs("198.19.0.2", "fd00:19::2"), Prefixes: prefixes("10.2.0.0/24", "fd00:2::/64"),
	}
	north = mesh.Peer{
		Node: nodeID(t, "north/n1"), Key: key(t).PublicKey(), Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.3:51830")},
		TunnelAddrs: addrs("198.19.0.3"), Prefixes: prefixes("10.3.0.0/24"),
	}
	in = inputs{
		view: view{
			node:    mesh.NodeConfig{Node: nodeID(t, "east/n1"), TunnelAddrs: addrs("198.19.0.1", "fd00:19::1"), Prefixes: prefixes("10.1.0.0/24", "fd00:1::/64")},
			cluster: mesh.ClusterConfig{Cluster: "east", Network: "east", Remote: prefixes("10.2.0.0/16", "10.3.0.0/16", "198.19.0.0/16", "fd00:2::/48"), Protected: prefixes("10.1.0.0/16")},
			peers:   []mesh.Peer{north, west},
		},
		local: route.Local{Protected: prefixes("10.1.0.0/16"), Addrs: addrs("192.0.2.1")},
		key:   key(t), port: 51830, mark: 0x2030,
	}
	return in, west, north
}

func planned(p plan, name string) (wg.Peer, bool) {
	i := slices.IndexFunc(p.device.Peers, func(q wg.Peer) bool { return q.Name == name })
	if i < 0 {
		return wg.Peer{}, false
	}
	return p.device.Peers[i], true
}

func TestPlan(t *testing.T) {
	in, west, _ := testInputs(t)
	p := makePlan(in)
	if err := p.device.Validate(); err != nil {
		t.Fatal(err)
	}
	got, ok := planned(p, "west/n1")
	if !ok || !slices.Equal(got.AllowedIPs, west.AllowedIPs()) || !slices.Equal(got.Candidates, west.Endpoints) {
		t.Fatalf("west/n1 is planned as %+v", got)
	}
	wantVia := prefixes("10.2.0.0/24", "10.3.0.0/24", "198.19.0.2/32", "198.19.0.3/32", "fd00:2::/64", "fd00:19::2/128")
	if !slices.Equal(p.route.Via, wantVia) {
		t.Errorf("routes %v, want %v", p.route.Via, wantVia)
	}
	// fd00:19::2 lies in no closed range here, so it is closed by itself.
	wantClosed := prefixes("10.2.0.0/16", "10.3.0.0/16", "198.19.0.0/16", "fd00:2::/48", "fd00:19::2/128")
	if !slices.Equal(p.route.Unreachable, wantClosed) {
		t.Errorf("closed %v, want %v", p.route.Unreachable, wantClosed)
	}
	if len(p.refused) != 0 || len(p.targets) != 2 {
		t.Errorf("refused %v, targets %v", p.refused, p.targets)
	}
}

// Both ends must compute the same digest of what one holds of the other, or no
// tunnel ever comes up.
func TestPlanDigestsAgree(t *testing.T) {
	in, west, north := testInputs(t)
	east := mesh.Peer{Node: in.view.node.Node, Key: in.key.PublicKey(), TunnelAddrs: in.view.node.TunnelAddrs, Prefixes: in.view.node.Prefixes}
	for _, far := range []mesh.Peer{west, north} {
		other := inputs{view: view{node: mesh.NodeConfig{Node: far.Node, TunnelAddrs: far.TunnelAddrs, Prefixes: far.Prefixes}, peers: []mesh.Peer{east}}, key: key(t), port: 1, mark: 1}
		if !far.Has(mesh.IPv6) {
			other.view.node.Barriers = []mesh.Barrier{{Family: mesh.IPv6, Reason: mesh.ReasonNoTunnelAddr}}
		}
		theirs := makePlan(other)
		for _, target := range makePlan(in).targets {
			if target.Node != far.Node {
				continue
			}
			if held := theirs.owner[east.TunnelAddrs[0]]; held != target.Expect || held == 0 {
				t.Errorf("%v holds %x of us, and we expect %x", far.Node, held, target.Expect)
			}
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*inputs)
		peer   string // whose prefix is refused; empty for a remote range
		prefix string
		reason mesh.Reason
		detail string // a part of it
	}{
		{"local pods", func(in *inputs) { in.view.peers[1].Prefixes = prefixes("10.1.7.0/24") }, "west/n1", "10.1.7.0/24", mesh.ReasonUnsafeRange, "10.1.0.0/16"},
		{"everything", func(in *inputs) { in.view.peers[1].Prefixes = prefixes("0.0.0.0/0") }, "west/n1", "0.0.0.0/0", mesh.ReasonUnsafeRange, ""},
		{"a peer's endpoint", func(in *inputs) {
			in.local.Hosts = []route.Host{{Addr: netip.MustParseAddr("10.2.0.9"), What: "the endpoint of north/n1"}}
		}, "west/n1", "10.2.0.0/24", mesh.ReasonUnsafeRange, "north/n1"},
		{"the control plane", func(in *inputs) {
			in.local.Hosts = []route.Host{{Addr: netip.MustParseAddr("10.2.0.9"), What: "the control plane"}}
		}, "west/n1", "10.2.0.0/24", mesh.ReasonUnsafeRange, "the control plane"},
		{"a remote range over the control plane", func(in *inputs) {
			in.local.Hosts = []route.Host{{Addr: netip.MustParseAddr("10.2.9.9"), What: "the control plane"}}
		}, "", "10.2.0.0/16", mesh.ReasonUnsafeRange, "the control plane"},
		{"a connected network", func(in *inputs) { in.local.Connected = prefixes("10.3.0.128/25") }, "north/n1", "10.3.0.0/24", mesh.ReasonUnsafeRange, "10.3.0.128/25"},
		{"a prefix of two peers", func(in *inputs) { in.view.peers[1].Prefixes = prefixes("10.3.0.0/24") }, "west/n1", "10.3.0.0/24", mesh.ReasonDuplicate, "north/n1"},
		{"a prefix inside another peer's", func(in *inputs) { in.view.peers[1].Prefixes = prefixes("10.3.0.64/26") }, "west/n1", "10.3.0.64/26", mesh.ReasonDuplicate, "north/n1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, _, _ := testInputs(t)
			tt.change(&in)
			p := makePlan(in)
			if err := p.device.Validate(); err != nil {
				t.Fatal(err)
			}
			prefix := netip.MustParsePrefix(tt.prefix)
			i := slices.IndexFunc(p.refused, func(r refusal) bool {
				return r.Prefix == prefix && (r.Node == mesh.NodeID{}) == (tt.peer == "")
			})
			if i < 0 {
				t.Fatalf("%s is not refused: %v", tt.prefix, p.refused)
			}
			if r := p.refused[i]; r.Reason != tt.reason || !strings.Contains(r.Detail, tt.detail) {
				t.Errorf("refused with %q %q", r.Reason, r.Detail)
			}
			if tt.peer == "" {
				if slices.Contains(p.route.Unreachable, prefix) {
					t.Error("and is closed all the same")
				}
				if !slices.Contains(p.route.Unreachable, netip.MustParsePrefix("10.2.128.0/17")) {
					t.Errorf("what is safe of it is left open: %v", p.route.Unreachable)
				}
				return
			}
			q, _ := planned(p, tt.peer)
			if slices.Contains(q.AllowedIPs, prefix) {
				t.Error("and allowed all the same")
			}
			for _, target := range p.targets {
				if target.Node.String() == tt.peer && target.Refused != tt.reason {
					t.Errorf("the tunnel is judged %q", target.Refused)
				}
			}
		})
	}
}

func TestPlanLeavesOut(t *testing.T) {
	in, west, _ := testInputs(t)
	in.view.peers = append(in.view.peers, mesh.Peer{Node: in.view.node.Node, Key: key(t).PublicKey(), TunnelAddrs: addrs("198.19.0.1")},
		mesh.Peer{Node: nodeID(t, "west/mirror"), Key: in.key.PublicKey(), TunnelAddrs: addrs("198.19.0.9")})
	in.view.node.Barriers = []mesh.Barrier{{Family: mesh.IPv4, Reason: mesh.ReasonOverlap}}
	p := makePlan(in)
	if len(p.device.Peers) != 1 || p.device.Peers[0].Key != west.Key {
		t.Fatalf("peers %+v, want west/n1 alone: itself, its own key and what has IPv4 alone are left out", p.device.Peers)
	}
	if want := prefixes("fd00:2::/64", "fd00:19::2/128"); !slices.Equal(p.route.Via, want) {
		t.Errorf("routes %v, want %v", p.route.Via, want)
	}
	if want := addrs("fd00:19::1"); !slices.Equal(p.route.Addrs, want) {
		t.Errorf("addresses %v, want %v", p.route.Addrs, want)
	}
	if !slices.Contains(p.route.Unreachable, netip.MustParsePrefix("10.2.0.0/16")) {
		t.Error("what has no tunnels is not closed and leaks in plaintext")
	}
}

// Whatever the control plane says, the plan is one that a device takes and that
// routes nothing local.
func TestPlanRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	randomPrefix := func() netip.Prefix {
		a := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4) * 64), 0})
		return netip.PrefixFrom(a, 8+r.IntN(25)).Masked()
	}
	for range 2000 {
		in, _, _ := testInputs(t)
		in.view.peers = nil
		for i := range r.IntN(6) {
			p := mesh.Peer{Node: mesh.NodeID{Cluster: "west", Name: "n" + string(rune('0'+i))}, TunnelAddrs: addrs("198.19.0.7")}
			p.Key[0] = byte(r.IntN(4) + 1)
			for range r.IntN(3) {
				p.Prefixes = append(p.Prefixes, randomPrefix())
			}
			in.view.peers = append(in.view.peers, p)
		}
		in.view.cluster.Remote = []netip.Prefix{randomPrefix(), randomPrefix()}
		in.local.Connected = []netip.Prefix{randomPrefix()}
		p := makePlan(in)
		if err := p.device.Validate(); err != nil {
			t.Fatalf("%v\nfrom %s", err, cmp.Diff(nil, in.view.peers))
		}
		for _, v := range slices.Concat(p.route.Via, p.route.Unreachable) {
			for _, l := range slices.Concat(in.local.Connected, in.local.Protected) {
				if v.Overlaps(l) {
					t.Fatalf("%v is routed and overlaps the local %v", v, l)
				}
			}
		}
	}
}
