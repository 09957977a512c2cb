package route

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// maxForeign is how many foreign routes of one family are named one by one.
const maxForeign = 5

// Observe reads what of flatmesh's the kernel holds, and what of the node's own
// it must not take away: Local without Protected and Hosts.
//
// Of other tables it reads main and local alone. Main may hold the routes of the
// whole internet; see maxRoutes for what is left out then, which Actual.Notes
// says.
func (t *Table) Observe(ctx context.Context) (Actual, Local, error) {
	a, elsewhere, err := t.own(ctx)
	if err != nil {
		return Actual{}, Local{}, fmt.Errorf("observe routing: %w", err)
	}
	if a.Forwarding4, err = settingIsOne("net/ipv4/ip_forward"); err != nil {
		return Actual{}, Local{}, fmt.Errorf("observe routing: %w", err)
	}
	if a.Forwarding6, err = settingIsOne("net/ipv6/conf/all/forwarding"); err != nil {
		return Actual{}, Local{}, fmt.Errorf("observe routing: %w", err)
	}
	l, notes, err := t.local(ctx, a, elsewhere)
	if err != nil {
		return Actual{}, Local{}, fmt.Errorf("observe routing: %w", err)
	}
	a.Notes = notes
	t.held.reset(a)
	return a, l, nil
}

// own reads the interface, and the routes and rules of flatmesh's. It also
// returns the addresses on other interfaces.
func (t *Table) own(ctx context.Context) (a Actual, elsewhere []netip.Addr, err error) {
	link, err := t.nl.LinkByName(t.o.Link)
	switch {
	case err == nil:
		a.LinkIndex, a.LinkUp = link.Attrs().Index, link.Attrs().Flags&net.FlagUp != 0
	case !errors.As(err, &netlink.LinkNotFoundError{}):
		return a, nil, fmt.Errorf("find interface %s: %w", t.o.Link, err)
	}
	switch _, err := os.Stat(procSys + "/net/ipv6"); {
	case err == nil:
		a.IPv6 = true
	case !errors.Is(err, fs.ErrNotExist):
		return a, nil, fmt.Errorf("look for IPv6: %w", err)
	}
	a.Settings = map[string]string{}
	for _, s := range settingsFor(t.o, true) {
		if v, ok, err := readSetting(s.path); err != nil {
			return a, nil, err
		} else if ok {
			a.Settings[s.path] = v
		}
	}
	addrs, err := whole(ctx, func() ([]netlink.Addr, error) { return t.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return a, nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, k := range addrs {
		p := prefixOf(k.IPNet)
		switch {
		case !p.IsValid() || p.Addr().IsLinkLocalUnicast():
		case k.LinkIndex != a.LinkIndex:
			elsewhere = append(elsewhere, p.Addr())
		default:
			a.Addrs = append(a.Addrs, p)
		}
	}
	slices.SortFunc(a.Addrs, mesh.ComparePrefix)
	for _, f := range families(a) {
		if err := t.ownRules(ctx, f, &a); err != nil {
			return a, nil, err
		}
		if err := t.ownRoutes(ctx, f, &a); err != nil {
			return a, nil, err
		}
	}
	slices.SortFunc(a.Rules, Rule.compare)
	slices.SortFunc(a.Routes, Route.compare)
	return a, elsewhere, nil
}

func (t *Table) ownRules(ctx context.Context, f mesh.Family, a *Actual) error {
	rules, err := whole(ctx, func() ([]netlink.Rule, error) { return t.nl.RuleList(kernelFamily(f)) })
	if err != nil {
		return fmt.Errorf("list %v rules: %w", f, err)
	}
	for _, k := range rules {
		switch {
		case k.Table == t.o.Table && int(k.Protocol) == t.o.Protocol:
			a.Rules = append(a.Rules, ruleOf(f, k))
		case k.Table == t.o.Table:
			a.Foreign = append(a.Foreign, fmt.Sprintf("%v rule %d, not of flatmesh's, leads to table %d", f, k.Priority, k.Table))
		case k.Priority == t.o.RulePriority:
			a.Foreign = append(a.Foreign, fmt.Sprintf("an %v rule to table %d has priority %d too; which of the two goes first is chance", f, k.Table, k.Priority))
		}
	}
	return nil
}

func ruleOf(f mesh.Family, k netlink.Rule) Rule {
	r := Rule{Family: f, Priority: k.Priority, Mark: k.Mark, Invert: k.Invert}
	if k.Mask != nil {
		r.Mask = *k.Mask
	}
	r.Odd = k.Src != nil || k.Dst != nil || k.IifName != "" || k.OifName != "" || k.Tos != 0 || k.TunID != 0 ||
		k.IPProto != 0 || k.Sport != nil || k.Dport != nil || k.UIDRange != nil || k.Goto >= 0 ||
		k.SuppressIfgroup >= 0 || k.SuppressPrefixlen >= 0
	return r
}

func (t *Table) ownRoutes(ctx context.Context, f mesh.Family, a *Actual) error {
	type found struct {
		own     []Route
		foreign []string
		more    int
	}
	all, err := whole(ctx, func() (found, error) {
		var all found
		err := dumpRoutes(f, netlink.Route{Table: t.o.Table}, func(k netlink.Route) bool {
			switch {
			case int(k.Protocol) == t.o.Protocol:
				all.own = append(all.own, routeOf(k))
			case len(all.foreign) < maxForeign:
				all.foreign = append(all.foreign, fmt.Sprintf("table %d is also used by others: %v of protocol %v", k.Table, prefixOf(k.Dst), k.Protocol))
			default:
				all.more++
			}
			return true
		})
		return all, err
	})
	if err != nil {
		return fmt.Errorf("list %v routes of table %d: %w", f, t.o.Table, err)
	}
	a.Routes = append(a.Routes, all.own...)
	a.Foreign = append(a.Foreign, all.foreign...)
	if all.more > 0 {
		a.Foreign = append(a.Foreign, fmt.Sprintf("table %d holds %d more %v routes of others", t.o.Table, all.more, f))
	}
	return nil
}

// routeOf leaves out what the kernel makes up: IPv6 shows an unreachable route
// on the loopback interface.
func routeOf(k netlink.Route) Route {
	r := Route{Dst: prefixOf(k.Dst), Metric: k.Priority}
	if k.Type == unix.RTN_UNREACHABLE && k.Tos == 0 {
		r.Unreachable = true
		return r
	}
	r.Link = k.LinkIndex
	if src, ok := netip.AddrFromSlice(k.Src); ok {
		r.Src = src.Unmap()
	}
	r.Odd = k.Type != unix.RTN_UNICAST || k.Tos != 0 || k.Gw != nil || k.Via != nil || k.Encap != nil || len(k.MultiPath) > 0 ||
		k.Family == unix.AF_INET && k.Scope != unix.RT_SCOPE_LINK
	return r
}

// dumpRoutes passes the routes of one table to each, until it returns false.
// Kernels since 4.20 send no others; and a dump that is broken off costs no more
// than what was read of it, which is why it has a socket of its own.
func dumpRoutes(f mesh.Family, filter netlink.Route, each func(netlink.Route) bool) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	if err := nl.SetSocketTimeout(answerTimeout); err != nil {
		return fmt.Errorf("set netlink timeout: %w", err)
	}
	if err := nl.SetStrictCheck(true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("ask for one table only: %w", err)
	}
	mask := netlink.RT_FILTER_TABLE
	if filter.Protocol != 0 {
		mask |= netlink.RT_FILTER_PROTOCOL
	}
	brokenOff := false
	err = nl.RouteListFilteredIter(kernelFamily(f), &filter, mask, func(k netlink.Route) bool {
		if !each(k) {
			brokenOff = true
			nl.Close()
		}
		return !brokenOff
	})
	if brokenOff || errors.Is(err, unix.ENOENT) { // a table without routes need not exist
		return nil
	}
	return err
}

// whole repeats a dump that a change interrupted. The last error, and what was
// read, are the caller's to judge.
func whole[T any](ctx context.Context, read func() (T, error)) (v T, err error) {
	for range 5 {
		if err := ctx.Err(); err != nil {
			return v, err
		}
		if v, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return v, err
}

func settingIsOne(path string) (bool, error) {
	v, ok, err := readSetting(path)
	return ok && v != "0", err
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits)
}
