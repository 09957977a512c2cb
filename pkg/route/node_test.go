package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
)

// node is a host with an underlay, default routes, and a link that stands for
// the WireGuard interface.
type node struct {
	*nstest.Host
	t    testing.TB
	wire *nstest.Host // the other end of its links
	o    Options
	tab  *Table
}

func newNode(t testing.TB) *node {
	n := &node{Host: nstest.New(t, "node"), t: t, wire: nstest.New(t, "wire"), o: Defaults()}
	nstest.Veth(t, n.Host, "up0", n.wire, "up0", 1500)
	n.Addr(t, "up0", netip.MustParsePrefix("192.168.7.2/24"))
	n.Addr(t, "up0", netip.MustParsePrefix("2001:db8:7::2/64"))
	n.Route(t, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.168.7.1"), "up0")
	n.Route(t, netip.MustParsePrefix("::/0"), netip.MustParseAddr("2001:db8:7::1"), "up0")
	n.ready("2001:db8:7::2/128")
	n.addLink()
	n.do(func() (err error) {
		n.tab, err = Open(n.o)
		return err
	})
	t.Cleanup(n.tab.Close)
	return n
}

// ready waits until the kernel has announced an IPv6 address and made its route,
// which it does when the link is ready: not in the middle of a test.
func (n *node) ready(addr string) {
	n.t.Helper()
	nstest.Eventually(n.t, "the route of "+addr, func() error {
		local, err := n.NL.RouteListFiltered(unix.AF_INET6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
		if !slices.ContainsFunc(local, func(r netlink.Route) bool { return prefixOf(r.Dst) == netip.MustParsePrefix(addr) }) {
			return fmt.Errorf("not in %v, %v", local, err)
		}
		return nil
	})
}

func (n *node) do(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatal(err)
	}
}

// addLink makes the interface, down.
func (n *node) addLink() {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.o.Link
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: n.o.Link, PeerNamespace: netlink.NsFd(n.wire.NS)}
	if err := n.NL.LinkAdd(veth); err != nil {
		n.t.Fatal(err)
	}
	n.wire.Up(n.t, n.o.Link)
}

func (n *node) delLink() {
	n.t.Helper()
	if err := n.NL.LinkDel(n.Link(n.t, n.o.Link)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) hasLink() bool {
	_, err := n.NL.LinkByName(n.o.Link)
	return err == nil
}

func (n *node) observe() (a Actual, l Local) {
	n.t.Helper()
	n.do(func() (err error) {
		a, l, err = n.tab.Observe(n.t.Context())
		return err
	})
	return a, l
}

func (n *node) apply(ops ...Op) error {
	return n.Do(func() error { return n.tab.Apply(n.t.Context(), ops) })
}

// settle applies d and checks that nothing is left to do.
func (n *node) settle(d Desired) {
	n.t.Helper()
	a, _ := n.observe()
	ops := Diff(a, d, n.o)
	if err := n.apply(ops...); err != nil {
		n.t.Fatal(err)
	}
	a, _ = n.observe()
	if again := Diff(a, d, n.o); len(again) != 0 {
		n.t.Fatalf("after\n%v\nthere is still\n%v", ops, again)
	}
}

// cleanup runs Cleanup.
func (n *node) cleanup() (removed []string) {
	n.t.Helper()
	n.do(func() (err error) {
		removed, err = n.tab.Cleanup(n.t.Context())
		return err
	})
	return removed
}

// goes asks the kernel where a packet goes.
func (n *node) goes(to netip.Addr, mark uint32) where {
	n.t.Helper()
	got, err := n.NL.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	switch {
	case errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH):
		return refusal
	case err != nil:
		n.t.Fatalf("look up %v: %v", to, err)
	case got[0].Type == unix.RTN_UNREACHABLE:
		return refusal
	case got[0].LinkIndex == n.Link(n.t, "up0").Attrs().Index:
		return toMain
	case n.hasLink() && got[0].LinkIndex == n.Link(n.t, n.o.Link).Attrs().Index:
		return toTunnel
	}
	n.t.Fatalf("look up %v: %v", to, got)
	return ""
}

func (n *node) unmarked(to netip.Addr) where { return n.goes(to, 0) }

// check compares the kernel's answers with what d wants.
func (n *node) check(d Desired) {
	n.t.Helper()
	link := n.hasLink()
	for _, to := range worldProbes {
		if got, want := n.unmarked(to), oracle(d, link, to); got != want {
			n.t.Fatalf("%v goes to %v, want %v, by %+v", to, got, want, d)
		}
		if got := n.goes(to, n.o.Mark); got != toMain {
			n.t.Fatalf("%v with the mark goes to %v", to, got)
		}
	}
}

// dump lists all rules and routes, but for those of the interface itself and
// link-local ones, which come when the kernel has looked for duplicates.
func (n *node) dump() (out []string) {
	n.t.Helper()
	link := -1
	if n.hasLink() {
		link = n.Link(n.t, n.o.Link).Attrs().Index
	}
	type raw netlink.Route // without its String, which leaves out half
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := n.NL.RuleList(f)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, r := range rules {
			r.Mask = nil // an address
			out = append(out, fmt.Sprintf("%+v mark %d proto %d", r, r.Mark, r.Protocol))
		}
		routes, err := n.NL.RouteListFiltered(f, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, r := range routes {
			if r.Dst.IP.IsLinkLocalUnicast() {
				continue
			}
			if r.LinkIndex != link || r.Table == n.o.Table {
				out = append(out, fmt.Sprintf("%+v", raw(r)))
			}
		}
	}
	slices.Sort(out)
	return out
}

// unchanged compares the dump with one from before.
func (n *node) unchanged(before []string) {
	n.t.Helper()
	if d := cmp.Diff(before, n.dump()); d != "" {
		n.t.Errorf("rules and routes changed (-before +after):\n%s", d)
	}
}
