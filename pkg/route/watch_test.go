package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestWatchSeesWhatOthersDo(t *testing.T) {
	n := newNode(t)
	n.settle(world)
	w, s := n.subscribe()
	link := n.Link(t, n.o.Link)
	ours := func(list string, unreachable bool) *netlink.Route {
		r := Route{Dst: prefixes(list)[0], Metric: viaMetric, Link: link.Attrs().Index}
		if unreachable {
			r = Route{Dst: r.Dst, Metric: unreachableMetric, Unreachable: true}
		}
		return n.tab.kernelRoute(r)
	}
	theirs := ours("10.2.0.0/24", false)
	theirs.Protocol = unix.RTPROT_STATIC
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"a route goes", func() error { return n.NL.RouteDel(ours("10.2.1.0/24", false)) }},
		{"an IPv6 route goes", func() error { return n.NL.RouteDel(ours("fd02::/64", false)) }},
		{"an unreachable route goes", func() error { return n.NL.RouteDel(ours("10.2.0.0/16", true)) }},
		{"an IPv6 unreachable route goes", func() error { return n.NL.RouteDel(ours("fd02::/48", true)) }},
		{"a route is replaced", func() error { return n.NL.RouteReplace(theirs) }},
		{"a rule goes", func() error { return n.NL.RuleDel(n.tab.kernelRule(ruleFor(mesh.IPv4, n.o))) }},
		{"an IPv6 rule goes", func() error { return n.NL.RuleDel(n.tab.kernelRule(ruleFor(mesh.IPv6, n.o))) }},
		{"a foreign rule comes", func() error {
			r := netlink.NewRule()
			r.Family, r.Table, r.Priority = unix.AF_INET, 100, n.o.RulePriority
			return n.NL.RuleAdd(r)
		}},
		{"a foreign route comes", func() error {
			return n.NL.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.77.0.0/16")), Table: n.o.Table, LinkIndex: link.Attrs().Index})
		}},
		{"an address comes", func() error {
			n.Addr(t, "up0", netip.MustParsePrefix("192.168.8.2/24"))
			return nil
		}},
		{"an address goes", func() error {
			return n.NL.AddrDel(n.Link(t, "up0"), &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.168.8.2/24"))})
		}},
		{"a tunnel address goes", func() error {
			return n.NL.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("198.19.0.1/32"))})
		}},
		{"the interface goes down", func() error { return n.NL.LinkSetDown(link) }},
		{"the interface goes", func() error { return n.NL.LinkDel(link) }},
		{"the interface comes", func() error {
			n.addLink()
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.do(); err != nil {
				t.Fatal(err)
			}
			if _, mattered := n.feed(w, s); len(mattered) == 0 {
				t.Error("not noticed")
			}
		})
	}
}

// feed gives the watcher what the kernel has told so far, and returns how many
// messages that was and those that mattered. A change of main, which is not
// watched, marks the end.
func (n *node) feed(w *watcher, s *nl.NetlinkSocket) (seen int, mattered []string) {
	n.t.Helper()
	end := ipNet(netip.MustParsePrefix("203.0.113.1/32"))
	r := &netlink.Route{Dst: end, LinkIndex: n.Link(n.t, "up0").Attrs().Index}
	if err := errors.Join(n.NL.RouteAdd(r), n.NL.RouteDel(r)); err != nil {
		n.t.Fatal(err)
	}
	for {
		msgs, _, err := s.Receive()
		if err != nil {
			n.t.Fatal(err)
		}
		for _, m := range msgs {
			seen++
			if w.matters(m) {
				mattered = append(mattered, fmt.Sprintf("message %d of type %d: % x", seen, m.Header.Type, m.Data))
			}
			if m.Header.Type != unix.RTM_DELROUTE {
				continue
			}
			if attrs, _ := attributes(m.Data, unix.SizeofRtMsg); end.IP.Equal(attrs[unix.RTA_DST]) {
				return seen, mattered
			}
		}
	}
}

func TestWatch(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var changed <-chan struct{}
	n.do(func() (err error) {
		changed, err = n.tab.Watch(ctx)
		return err
	})
	n.Addr(t, "up0", netip.MustParsePrefix("192.168.8.2/24"))
	if _, open := <-changed; !open {
		t.Fatal("the subscription broke")
	}
	cancel()
	for range changed { // until it is closed
	}
}

// subscribe returns a watcher and a socket to feed it from.
func (n *node) subscribe() (*watcher, *nl.NetlinkSocket) {
	n.t.Helper()
	var s *nl.NetlinkSocket
	n.do(func() (err error) {
		s, err = subscribe()
		return err
	})
	n.t.Cleanup(s.Close)
	return newWatcher(n.tab), s
}

func (w *watcher) marked() bool {
	select {
	case <-w.changed:
		return true
	default:
		return false
	}
}

func TestWatchLeavesOutEchoes(t *testing.T) {
	n := newNode(t)
	// So that the interface and its addresses are there already.
	n.settle(Desired{Addrs: world.Addrs})
	n.ready("fd19::1/128")
	w, s := n.subscribe()
	seen := 0
	for _, d := range []Desired{
		world,
		{Addrs: addrs("198.19.0.2 fd19::1"), Via: world.Via[:3], Unreachable: world.Unreachable},
		{Addrs: world.Addrs},
	} {
		n.settle(d)
		more, mattered := n.feed(w, s)
		seen += more
		for _, m := range mattered {
			t.Errorf("counts as a change: %s", m)
		}
	}
	if seen < 50 {
		t.Errorf("only %d messages", seen)
	}
}

func TestWatchSurvivesALostMessage(t *testing.T) {
	n := newNode(t)
	w, s := n.subscribe()
	if err := s.SetReceiveBufferSize(1, false); err != nil { // as small as the kernel goes
		t.Fatal(err)
	}
	for i := range 100 {
		n.Route(t, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, byte(i), 0}), 24), netip.MustParseAddr("192.168.7.1"), "up0")
	}
	for lost := false; !lost; {
		msgs, from, err := s.Receive()
		lost = errors.Is(err, unix.ENOBUFS)
		if !w.step(msgs, from, err) {
			t.Fatalf("gave up: %v", err)
		}
	}
	if !w.marked() {
		t.Error("a loss is not a change")
	}
	if w.step(nil, nil, unix.EBADF) {
		t.Error("goes on without a socket")
	}
	if !w.marked() {
		t.Error("the end is not a change")
	}
}

func TestWatchIgnoresOtherSenders(t *testing.T) {
	n := newNode(t)
	w, s := n.subscribe()
	n.Addr(t, "up0", netip.MustParsePrefix("192.168.8.2/24"))
	msgs, from, err := s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	w.step(msgs, &unix.SockaddrNetlink{Pid: 4711}, nil)
	if w.marked() {
		t.Error("another process's message counts")
	}
	w.step(msgs, from, nil)
	if !w.marked() {
		t.Error("the kernel's does not")
	}
	w.step(msgs, from, nil)
	if w.marked() {
		t.Error("an address announced again counts as a change")
	}
}
