package route

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestObserveLocal(t *testing.T) {
	n := newNode(t)
	nstest.Veth(t, n.Host, "cni0", n.wire, "pod0", 1500)
	n.Addr(t, "cni0", netip.MustParsePrefix("10.1.0.1/24"))
	n.Addr(t, "cni0", netip.MustParsePrefix("fd01::1/64"))
	n.settle(world)
	up := n.Link(t, "up0").Attrs().Index
	gw := net.ParseIP("192.168.7.1")
	hops := []*netlink.NexthopInfo{{LinkIndex: up, Gw: gw}, {LinkIndex: up, Gw: net.ParseIP("192.168.7.9")}}
	for dst, r := range map[string]netlink.Route{
		"10.1.1.0/24":  {Gw: gw},                                                                                                                // another node of the cluster
		"10.1.2.0/24":  {MultiPath: hops},                                                                                                       // and one by two ways
		"10.1.0.64/26": {Type: unix.RTN_BLACKHOLE, Protocol: 80},                                                                                // a CNI's own block
		"10.50.0.0/16": {LinkIndex: up, Scope: unix.RT_SCOPE_LINK},                                                                              // on the link
		"0.0.0.0/1":    {Gw: gw},                                                                                                                // a VPN's halves of the default route
		"128.0.0.0/1":  {LinkIndex: up, Scope: unix.RT_SCOPE_LINK},                                                                              //
		"10.60.0.0/16": {LinkIndex: n.Link(t, "lo").Attrs().Index, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}, // AnyIP
		"10.70.0.0/16": {Gw: gw, Table: 100},                                                                                                    // someone's own table
		"fd50::/32":    {Gw: net.ParseIP("2001:db8:7::1")},
		"fd60::/32":    {LinkIndex: up},
		"fd70::/32":    {Type: unix.RTN_UNREACHABLE},
	} {
		r.Dst = ipNet(netip.MustParsePrefix(dst))
		if err := n.NL.RouteAdd(&r); err != nil {
			t.Fatalf("%s: %v", dst, err)
		}
	}
	a, l := n.observe()
	if len(a.Notes)+len(a.Foreign) != 0 {
		t.Errorf("notes %q, foreign %q", a.Notes, a.Foreign)
	}
	if want := addrs("10.1.0.1 192.168.7.2 2001:db8:7::2 fd01::1"); !slices.Equal(l.Addrs, want) {
		t.Errorf("addresses %v, want %v", l.Addrs, want)
	}
	wide := func(list []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(list), netip.Prefix.IsSingleIP)
	}
	if want := prefixes("10.1.0.0/24 10.50.0.0/16 10.60.0.0/16 192.168.7.0/24 2001:db8:7::/64 fd01::/64 fd60::/32"); !slices.Equal(wide(l.Connected), want) {
		t.Errorf("connected %v, want %v", wide(l.Connected), want)
	}
	if want := prefixes("10.1.0.64/26 10.1.1.0/24 10.1.2.0/24 fd50::/32 fd70::/32"); !slices.Equal(l.Routed, want) {
		t.Errorf("routed %v, want %v", l.Routed, want)
	}
	// What the node holds of the mesh is not in the mesh's way.
	if _, refused := Safe(slices.Concat(world.Via, world.Unreachable), l); len(refused) != 0 {
		t.Errorf("refused %v", refused)
	}
}

// TestFullTable has a routing daemon fill the main table.
func TestFullTable(t *testing.T) {
	n := newNode(t)
	gws := map[mesh.Family]net.IP{mesh.IPv4: net.ParseIP("192.168.7.1"), mesh.IPv6: net.ParseIP("2001:db8:7::1")}
	add := func(p netip.Prefix, protocol netlink.RouteProtocol) {
		t.Helper()
		err := n.NL.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: gws[mesh.FamilyOf(p.Addr())], Protocol: protocol})
		if err != nil {
			t.Fatal(err)
		}
	}
	const limit = 500
	for i := range 4 * limit { // several datagrams
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24), unix.RTPROT_BGP)
		add(netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 4: byte(i >> 8), 5: byte(i)}), 48), unix.RTPROT_BGP)
	}
	add(netip.MustParsePrefix("10.4.0.0/16"), unix.RTPROT_STATIC)
	add(netip.MustParsePrefix("fd04::/48"), unix.RTPROT_STATIC)
	for f, want := range map[mesh.Family]string{mesh.IPv4: "10.4.0.0/16", mesh.IPv6: "fd04::/48"} {
		var got []string
		var note string
		n.do(func() error {
			routes, s, err := readLocal(t.Context(), f, unix.RT_TABLE_MAIN, limit)
			note = s
			for _, r := range routes {
				if r.routed {
					got = append(got, r.prefix.String())
				}
			}
			return err
		})
		if !slices.Equal(got, []string{want}) || !strings.Contains(note, "more than 500 "+f.String()+" routes") {
			t.Errorf("%v: routed %v, note %q", f, got, note)
		}
	}
	if _, l := n.observe(); len(l.Routed) != 8*limit+2 {
		t.Errorf("within the limit %d are read", len(l.Routed))
	}
}
