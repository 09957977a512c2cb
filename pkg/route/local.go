package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// maxRoutes is how many routes of one family and table are read. A main table
// that holds more is fed by a routing daemon, with the routes of the internet for
// one; then those of localProtocols alone are read, as many of each at most.
// Reading a million on every resync would be all that the agent does.
const maxRoutes = 1 << 15

// localProtocols are the kernel's, people's and tools', router advertisements'
// and DHCP's.
var localProtocols = [...]netlink.RouteProtocol{unix.RTPROT_KERNEL, unix.RTPROT_BOOT, unix.RTPROT_STATIC, unix.RTPROT_RA, unix.RTPROT_DHCP}

// local reads what of the node's own no route may overlap.
func (t *Table) local(ctx context.Context, a Actual, elsewhere []netip.Addr) (l Local, notes []string, err error) {
	for _, addr := range elsewhere {
		if mesh.ValidateAddr(addr) == nil {
			l.Addrs = append(l.Addrs, addr)
		}
	}
	own := map[netip.Addr]bool{}
	for _, p := range a.Addrs {
		own[p.Addr()] = true
	}
	for _, f := range families(a) {
		for _, table := range []int{unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL} {
			routes, note, err := readLocal(ctx, f, table, maxRoutes)
			if err != nil {
				return Local{}, nil, fmt.Errorf("list %v routes of table %d: %w", f, table, err)
			}
			if note != "" {
				notes = append(notes, note)
			}
			for _, r := range routes {
				switch {
				case r.link == a.LinkIndex && a.LinkIndex != 0:
				case r.prefix.IsSingleIP() && own[r.prefix.Addr()]: // some kernels show it on the loopback interface
				case r.routed:
					l.Routed = append(l.Routed, r.prefix)
				default:
					l.Connected = append(l.Connected, r.prefix)
				}
			}
		}
	}
	slices.SortFunc(l.Addrs, netip.Addr.Compare)
	l.Addrs = slices.Compact(l.Addrs)
	for _, list := range []*[]netip.Prefix{&l.Connected, &l.Routed} {
		slices.SortFunc(*list, mesh.ComparePrefix)
		*list = slices.Compact(*list)
	}
	return l, notes, nil
}

// localRoute is a route of others.
type localRoute struct {
	prefix netip.Prefix
	link   int
	routed bool
}

// readLocal reads the routes of a table that matter, and says what it left out.
func readLocal(ctx context.Context, f mesh.Family, table, limit int) (routes []localRoute, note string, err error) {
	routes, over, err := readProtocol(ctx, netlink.Route{Table: table}, f, limit)
	if err != nil || !over {
		return routes, "", err
	}
	routes = nil
	for _, protocol := range localProtocols {
		more, _, err := readProtocol(ctx, netlink.Route{Table: table, Protocol: protocol}, f, limit)
		if err != nil {
			return nil, "", err
		}
		routes = append(routes, more...)
	}
	return routes, fmt.Sprintf("table %d holds more than %d %v routes: what routing daemons put there is not checked against remote ranges", table, limit, f), nil
}

func readProtocol(ctx context.Context, filter netlink.Route, f mesh.Family, limit int) (routes []localRoute, over bool, err error) {
	routes, err = whole(ctx, func() ([]localRoute, error) {
		var routes []localRoute
		n := 0
		err := dumpRoutes(f, filter, func(k netlink.Route) bool {
			n++
			if r, ok := localRouteOf(k); ok && n <= limit {
				routes = append(routes, r)
			}
			return n <= limit
		})
		over = n > limit
		return routes, err
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // a table in constant change is read as well as it can be
	}
	return routes, over, err
}

// localRouteOf judges a route of others. False: it is nothing that a remote
// range could take away. That holds for the default route, whole or in halves as
// VPN clients have it, which are those that cover what is never routed.
func localRouteOf(k netlink.Route) (localRoute, bool) {
	r := localRoute{prefix: prefixOf(k.Dst), link: k.LinkIndex}
	if mesh.ValidatePrefix(r.prefix) != nil {
		return r, false
	}
	switch k.Type {
	case unix.RTN_UNICAST:
		r.routed = hasNextHop(k)
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		r.routed = true
	case unix.RTN_LOCAL:
	default: // broadcast, anycast and multicast lie in what is connected
		return r, false
	}
	return r, true
}

func hasNextHop(k netlink.Route) bool {
	return k.Gw != nil || k.Via != nil ||
		slices.ContainsFunc(k.MultiPath, func(n *netlink.NexthopInfo) bool { return n.Gw != nil || n.Via != nil })
}
