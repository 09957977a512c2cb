package xds

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	peerv1 "github.com/flatmesh/flatmesh/api/peer/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var (
	samplePeer = mesh.Peer{
		Node: mesh.NodeID{Cluster: "east", Name: "n1"}, Key: mesh.PublicKey{1, 2, 3},
		Endpoints:   []netip.AddrPort{netip.MustParseAddrPort("192.168.1.1:51830"), netip.MustParseAddrPort("[2001:db8::1]:51830")},
		TunnelAddrs: []netip.Addr{netip.MustParseAddr("198.19.0.2"), netip.MustParseAddr("fd19::2")},
		Prefixes:    []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("fd00:1:1::/64")},
	}
	sampleNode = mesh.NodeConfig{
		Node: samplePeer.Node, TunnelAddrs: samplePeer.TunnelAddrs, Prefixes: samplePeer.Prefixes,
		Refused:  []mesh.RefusedPrefix{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Reason: mesh.ReasonOutsideRange, Detail: "lies in none"}},
		Barriers: []mesh.Barrier{{Family: mesh.IPv6, Reason: mesh.ReasonOverlap, Detail: "overlaps"}},
	}
	sampleCluster = mesh.ClusterConfig{
		Cluster: "east", Network: "vpc",
		Remote:    []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("198.19.0.0/16")},
		Protected: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Conflicts: []mesh.Conflict{{
			Effect: mesh.Yields,
			First:  mesh.Claim{Cluster: "east", Kind: mesh.PodRange, Prefix: netip.MustParsePrefix("10.1.0.0/16"), Order: 1},
			Second: mesh.Claim{Cluster: "west", Kind: mesh.PodRange, Node: "n1", Prefix: netip.MustParsePrefix("10.1.1.0/24"), Order: 7},
		}},
	}
)

func TestResourcesComeBack(t *testing.T) {
	// The versions are what clients resume with after the control plane was
	// replaced: where one changes here, every agent is sent everything once.
	for _, c := range []struct {
		want, name, version string
		build               func() (*discovery.Resource, error)
		parse               func(*discovery.Resource) (any, error)
	}{
		{fmt.Sprint(samplePeer), "east/n1", "6c8003ec428cbd1f",
			func() (*discovery.Resource, error) { return PeerResource(samplePeer) },
			func(r *discovery.Resource) (any, error) { return ParsePeer(r) }},
		{fmt.Sprint(sampleNode), "east/n1", "7367f43687d90d35",
			func() (*discovery.Resource, error) { return NodeConfigResource(sampleNode) },
			func(r *discovery.Resource) (any, error) { return ParseNodeConfig(r) }},
		{fmt.Sprint(sampleCluster), "east", "e4da2e77f96c28d2",
			func() (*discovery.Resource, error) { return ClusterConfigResource(sampleCluster) },
			func(r *discovery.Resource) (any, error) { return ParseClusterConfig(r) }},
		{fmt.Sprint(mesh.Peer{Node: samplePeer.Node, Key: samplePeer.Key}), "east/n1", "45059f78531ca2af",
			func() (*discovery.Resource, error) {
				return PeerResource(mesh.Peer{Node: samplePeer.Node, Key: samplePeer.Key})
			},
			func(r *discovery.Resource) (any, error) { return ParsePeer(r) }},
	} {
		r, err := c.build()
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.build()
		if err != nil || !proto.Equal(r, again) {
			t.Errorf("%s is built differently the second time", c.want)
		}
		if r.GetName() != c.name || r.GetVersion() != c.version {
			t.Errorf("%s: got name %q, version %q", c.want, r.GetName(), r.GetVersion())
		}
		got, err := c.parse(r)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("got  %v (%v)\nwant %s", got, err, c.want)
		}
	}
}

func TestVersionTellsEveryChange(t *testing.T) {
	seen := map[string]string{}
	for _, change := range []func(*mesh.Peer){
		func(*mesh.Peer) {},
		func(p *mesh.Peer) { p.Node.Name = "n2" },
		func(p *mesh.Peer) { p.Key[31] = 1 },
		func(p *mesh.Peer) { p.Endpoints = p.Endpoints[:1] },
		func(p *mesh.Peer) { p.Endpoints = []netip.AddrPort{p.Endpoints[1], p.Endpoints[0]} }, // best first
		func(p *mesh.Peer) { p.TunnelAddrs = p.TunnelAddrs[1:] },
		func(p *mesh.Peer) { p.Prefixes = nil },
	} {
		p := samplePeer
		change(&p)
		r, err := PeerResource(p)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[r.GetVersion()]; ok {
			t.Errorf("%v has the version of %s", p, other)
		}
		seen[r.GetVersion()] = fmt.Sprint(p)
	}
}

func wrap(t *testing.T, name, typeURL string, m proto.Message) *discovery.Resource {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &discovery.Resource{Name: name, Resource: &anypb.Any{TypeUrl: typeURL, Value: b}}
}

func TestParsePeerRefuses(t *testing.T) {
	good := func() *peerv1.Peer {
		return &peerv1.Peer{Node: "east/n1", PublicKey: bytes.Repeat([]byte{1}, 32), Endpoints: []string{"192.168.1.1:51830"}, TunnelAddresses: []string{"198.19.0.2"}, Prefixes: []string{"10.1.1.0/24"}}
	}
	if _, err := ParsePeer(wrap(t, "east/n1", PeerType, good())); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*peerv1.Peer)
		want   string
	}{
		"another node's":             {func(p *peerv1.Peer) { p.Node = "east/n2" }, "the resource is of east/n2"},
		"no node":                    {func(p *peerv1.Peer) { p.Node = "" }, "want CLUSTER/NODE"},
		"a short key":                {func(p *peerv1.Peer) { p.PublicKey = p.PublicKey[1:] }, "31 bytes"},
		"the zero key":               {func(p *peerv1.Peer) { p.PublicKey = make([]byte, 32) }, "all zeros"},
		"a default route":            {func(p *peerv1.Peer) { p.Prefixes = []string{"0.0.0.0/0"} }, "cannot be routed"},
		"host bits":                  {func(p *peerv1.Peer) { p.Prefixes = []string{"10.1.1.1/24"} }, "did you mean"},
		"an IPv4-mapped range":       {func(p *peerv1.Peer) { p.Prefixes = []string{"::ffff:10.1.1.0/120"} }, "own form"},
		"no range":                   {func(p *peerv1.Peer) { p.Prefixes = []string{"10.1.1.0"} }, "10.1.1.0"},
		"loopback tunnel address":    {func(p *peerv1.Peer) { p.TunnelAddresses = []string{"127.0.0.1"} }, "127.0.0.0/8"},
		"mapped tunnel address":      {func(p *peerv1.Peer) { p.TunnelAddresses = []string{"::ffff:198.19.0.2"} }, "cannot be reached"},
		"a name as endpoint":         {func(p *peerv1.Peer) { p.Endpoints = []string{"n1:51830"} }, "n1"},
		"an endpoint without port":   {func(p *peerv1.Peer) { p.Endpoints = []string{"192.168.1.1:0"} }, "no port"},
		"an endpoint with a zone":    {func(p *peerv1.Peer) { p.Endpoints = []string{"[fe80::1%eth0]:51830"} }, "zone"},
		"an endpoint on multicast":   {func(p *peerv1.Peer) { p.Endpoints = []string{"224.0.0.1:51830"} }, "224.0.0.0/3"},
		"a second error is told too": {func(p *peerv1.Peer) { p.Endpoints, p.Prefixes = []string{"x"}, []string{"0.0.0.0/0"} }, "cannot be routed"},
	} {
		m := good()
		c.change(m)
		if p, err := ParsePeer(wrap(t, "east/n1", PeerType, m)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
	}
	if _, err := ParsePeer(wrap(t, "east/n1", NodeConfigType, good())); err == nil || !strings.Contains(err.Error(), "type") {
		t.Errorf("another type: %v", err)
	}
	if _, err := ParsePeer(&discovery.Resource{Name: "east/n1"}); err == nil {
		t.Error("nothing is taken for a peer")
	}
}

func TestParseConfigsRefuse(t *testing.T) {
	for name, m := range map[string]*peerv1.NodeConfig{
		"another node's":         {Node: "east/n2"},
		"a family that wraps":    {Node: "east/n1", Barriers: []*peerv1.Barrier{{Family: 256 + 4}}},
		"a family of the future": {Node: "east/n1", Barriers: []*peerv1.Barrier{{Family: 5}}},
		"a bad prefix":           {Node: "east/n1", Prefixes: []string{"10.1.1.1/24"}},
		"a bad address":          {Node: "east/n1", TunnelAddresses: []string{"::"}},
	} {
		if c, err := ParseNodeConfig(wrap(t, "east/n1", NodeConfigType, m)); err == nil {
			t.Errorf("node config, %s: got %v", name, c)
		}
	}
	claim := &peerv1.Claim{Cluster: "east", Kind: "pod", Prefix: "10.0.0.0/8"}
	for name, m := range map[string]*peerv1.ClusterConfig{
		"another cluster's":    {Cluster: "west"},
		"a remote default":     {Cluster: "east", Remote: []string{"0.0.0.0/0"}},
		"protected nonsense":   {Cluster: "east", Protected: []string{"x"}},
		"an effect unknown":    {Cluster: "east", Conflicts: []*peerv1.Conflict{{Effect: "x", First: claim, Second: claim}}},
		"a conflict with none": {Cluster: "east", Conflicts: []*peerv1.Conflict{{Effect: "yields", First: claim}}},
	} {
		if c, err := ParseClusterConfig(wrap(t, "east", ClusterConfigType, m)); err == nil {
			t.Errorf("cluster config, %s: got %v", name, c)
		}
	}
}

// FuzzParse gives every parser arbitrary bytes: none may panic, and what a parser
// takes it must be able to give on unchanged.
func FuzzParse(f *testing.F) {
	for _, build := range []func() (*discovery.Resource, error){
		func() (*discovery.Resource, error) { return PeerResource(samplePeer) },
		func() (*discovery.Resource, error) { return NodeConfigResource(sampleNode) },
		func() (*discovery.Resource, error) { return ClusterConfigResource(sampleCluster) },
	} {
		r, err := build()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.GetName(), r.GetResource().GetValue())
	}
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		in := func(typeURL string) *discovery.Resource {
			return &discovery.Resource{Name: name, Resource: &anypb.Any{TypeUrl: typeURL, Value: b}}
		}
		if p, err := ParsePeer(in(PeerType)); err == nil {
			r, err := PeerResource(p)
			if err != nil {
				t.Fatal(err)
			}
			if q, err := ParsePeer(r); err != nil || !q.Equal(p) {
				t.Errorf("%v comes back as %v (%v)", p, q, err)
			}
			for _, a := range p.AllowedIPs() {
				if err := mesh.ValidatePrefix(a); err != nil {
					t.Errorf("%v may send from %v: %v", p, a, err)
				}
			}
		}
		if c, err := ParseNodeConfig(in(NodeConfigType)); err == nil {
			if _, err := NodeConfigResource(c); err != nil {
				t.Error(err)
			}
		}
		if c, err := ParseClusterConfig(in(ClusterConfigType)); err == nil {
			if _, err := ClusterConfigResource(c); err != nil {
				t.Error(err)
			}
		}
	})
}
