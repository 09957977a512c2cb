package route

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Op is one change to the kernel, made by Diff for Table.Apply. Its String says
// what it does.
type Op interface {
	fmt.Stringer
	apply(*Table) error
	// holds reports whether the kernel is as the operation would leave it.
	holds(Actual) bool
	// expose reports whether the operation takes away what keeps traffic from
	// leaving in plaintext, should failed not have been applied.
	expose(failed Op) bool
}

// putRoute adds a route, or replaces the one of flatmesh's that has its place.
// Only what Observe saw is replaced: a route of someone else's may have that
// place, and is left alone.
type putRoute struct {
	route   Route
	replace bool
}

func (op putRoute) String() string {
	if op.replace {
		return fmt.Sprintf("replace %v", op.route)
	}
	return fmt.Sprintf("add %v", op.route)
}

func (op putRoute) apply(t *Table) error {
	t.held.add(op.route.key())
	if op.replace {
		return t.nl.RouteReplace(t.kernelRoute(op.route))
	}
	return t.nl.RouteAdd(t.kernelRoute(op.route))
}

func (op putRoute) holds(a Actual) bool { return slices.Contains(a.Routes, op.route) }
func (op putRoute) expose(Op) bool      { return false }

type delRoute struct{ route Route }

func (op delRoute) String() string { return fmt.Sprintf("delete %v", op.route) }

func (op delRoute) apply(t *Table) error {
	t.held.remove(op.route.key())
	r := t.kernelRoute(op.route)
	// NOWHERE stands for any scope, no source for any source.
	r.Scope, r.Src = unix.RT_SCOPE_NOWHERE, nil
	if op.route.Odd {
		r.Type, r.LinkIndex = unix.RTN_UNSPEC, 0
	}
	return t.nl.RouteDel(r)
}

func (op delRoute) holds(a Actual) bool { return !slices.Contains(a.Routes, op.route) }

func (op delRoute) expose(failed Op) bool {
	put, ok := failed.(putRoute)
	return ok && put.route.Unreachable && put.route.Dst.Overlaps(op.route.Dst)
}

type addRule struct{ rule Rule }

func (op addRule) String() string { return fmt.Sprintf("add %v", op.rule) }

func (op addRule) apply(t *Table) error {
	t.held.add(op.rule.key())
	return t.nl.RuleAdd(t.kernelRule(op.rule))
}

func (op addRule) holds(a Actual) bool { return slices.Contains(a.Rules, op.rule) }
func (op addRule) expose(Op) bool      { return false }

type delRule struct{ rule Rule }

func (op delRule) String() string { return fmt.Sprintf("delete %v", op.rule) }

func (op delRule) apply(t *Table) error {
	t.held.remove(op.rule.key())
	return t.nl.RuleDel(t.kernelRule(op.rule))
}

func (op delRule) holds(a Actual) bool { return !slices.Contains(a.Rules, op.rule) }

func (op delRule) expose(failed Op) bool {
	add, ok := failed.(addRule)
	return ok && add.rule.Family == op.rule.Family
}

type linkUp struct {
	name  string
	index int
}

func (op linkUp) String() string { return fmt.Sprintf("bring up %s", op.name) }

func (op linkUp) apply(t *Table) error {
	return t.nl.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: op.name, Index: op.index}})
}

func (op linkUp) holds(a Actual) bool { return a.LinkIndex == op.index && a.LinkUp }
func (op linkUp) expose(Op) bool      { return false }

type addAddr struct {
	addr netip.Prefix
	link int
}

func (op addAddr) String() string { return fmt.Sprintf("add address %v", op.addr) }

func (op addAddr) apply(t *Table) error {
	t.held.add(op.addr)
	a := &netlink.Addr{IPNet: ipNet(op.addr), LinkIndex: op.link}
	if op.addr.Addr().Is6() {
		// A tunnel has no neighbours to ask, and a tentative address is no source.
		a.Flags = unix.IFA_F_NODAD
	}
	return t.nl.AddrAdd(nil, a)
}

func (op addAddr) holds(a Actual) bool { return slices.Contains(a.Addrs, op.addr) }
func (op addAddr) expose(Op) bool      { return false }

type delAddr struct {
	addr netip.Prefix
	link int
}

func (op delAddr) String() string { return fmt.Sprintf("delete address %v", op.addr) }

func (op delAddr) apply(t *Table) error {
	t.held.remove(op.addr)
	return t.nl.AddrDel(nil, &netlink.Addr{IPNet: ipNet(op.addr), LinkIndex: op.link})
}

func (op delAddr) holds(a Actual) bool { return !slices.Contains(a.Addrs, op.addr) }
func (op delAddr) expose(Op) bool      { return false }

func (t *Table) kernelRoute(r Route) *netlink.Route {
	k := &netlink.Route{
		Dst: ipNet(r.Dst), Table: t.o.Table, Protocol: netlink.RouteProtocol(t.o.Protocol), Priority: r.Metric,
	}
	if r.Unreachable {
		k.Type = unix.RTN_UNREACHABLE
		return k
	}
	k.Type, k.LinkIndex = unix.RTN_UNICAST, r.Link
	if r.Dst.Addr().Is4() {
		k.Scope = unix.RT_SCOPE_LINK // IPv6 knows no scopes
	}
	if r.Src.IsValid() {
		k.Src = r.Src.AsSlice()
	}
	return k
}

func (t *Table) kernelRule(r Rule) *netlink.Rule {
	k := netlink.NewRule()
	k.Family, k.Priority, k.Table, k.Protocol = kernelFamily(r.Family), r.Priority, t.o.Table, uint8(t.o.Protocol)
	k.Mark, k.Mask, k.Invert = r.Mark, &r.Mask, r.Invert
	return k
}

func kernelFamily(f mesh.Family) int {
	if f == mesh.IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
