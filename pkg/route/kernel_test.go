package route

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestKernelRandomWalk(t *testing.T) {
	n := newNode(t)
	before := n.dump()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	settled := 0
	for step := range 140 {
		a, _ := n.observe()
		switch r.IntN(8) {
		case 0:
			if n.hasLink() {
				n.delLink()
			}
		case 1, 2:
			if !n.hasLink() {
				n.addLink()
			}
		case 3:
			if n.hasLink() {
				if err := n.NL.LinkSetDown(n.Link(t, n.o.Link)); err != nil {
					t.Fatal(err)
				}
			}
		case 4: // someone else removes a route
			if len(a.Routes) > 0 {
				if err := n.apply(delRoute{a.Routes[r.IntN(len(a.Routes))]}); err != nil {
					t.Fatal(err)
				}
			}
		case 5: // an address gets another length
			if len(a.Addrs) > 0 {
				p := a.Addrs[0]
				wide := netip.PrefixFrom(p.Addr(), p.Addr().BitLen()-8)
				if err := n.apply(delAddr{p, a.LinkIndex}, addAddr{wide, a.LinkIndex}); err != nil {
					t.Fatal(err)
				}
			}
		}
		d := randomDesired(r)
		a, _ = n.observe()
		ops := Diff(a, d, n.o)
		killed := r.IntN(3) == 0
		if killed {
			ops = ops[:r.IntN(len(ops)+1)]
		}
		safe := guarded(n.unmarked, d)
		for _, op := range ops {
			if err := n.apply(op); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			for _, to := range safe {
				if n.unmarked(to) == toMain {
					t.Fatalf("step %d: %v leaks after %v of\n%v\nto %+v", step, to, op, ops, d)
				}
			}
		}
		if killed {
			continue
		}
		settled++
		a, _ = n.observe()
		if again := Diff(a, d, n.o); len(again) != 0 {
			t.Fatalf("step %d: after\n%v\nthere is still\n%v", step, ops, again)
		}
		n.check(d)
	}
	if settled == 0 {
		t.Fatal("no state was reached")
	}
	n.cleanup()
	n.unchanged(before)
}

var world = Desired{
	Addrs: worldAddrs[0], Via: worldVia, Unreachable: worldRanges, Forward: true,
}

// TestSockets asks with sockets what the walks ask with lookups.
func TestSockets(t *testing.T) {
	n := newNode(t)
	n.settle(world)
	dial := func(to string, mark int) (from netip.Addr, err error) {
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }), err)
		}}
		err = n.Do(func() error {
			c, err := d.DialContext(t.Context(), "udp", to)
			if err == nil {
				from = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
				err = c.Close()
			}
			return err
		})
		return from, err
	}
	for _, c := range []struct {
		to   string
		mark int
		from string
	}{
		{"10.2.0.9:9", 0, "198.19.0.1"},
		{"198.19.0.11:9", 0, "198.19.0.1"},
		{"[fd02::9]:9", 0, "fd19::1"},
		{"10.2.77.9:9", 0, ""},
		{"[fd02:0:0:7::9]:9", 0, ""},
		{"192.0.2.77:9", 0, "192.168.7.2"},
		{"10.2.77.9:9", int(n.o.Mark), "192.168.7.2"},
		{"10.2.0.9:9", int(n.o.Mark), "192.168.7.2"},
		{"[fd02::9]:9", int(n.o.Mark), "2001:db8:7::2"},
	} {
		from, err := dial(c.to, c.mark)
		if c.from == "" {
			if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("to %s mark %#x: from %v, %v", c.to, c.mark, from, err)
			}
		} else if err != nil || from != netip.MustParseAddr(c.from) {
			t.Errorf("to %s mark %#x: from %v, want %s, %v", c.to, c.mark, from, c.from, err)
		}
	}
}

func TestLinkGone(t *testing.T) {
	n := newNode(t)
	n.settle(world)
	n.check(world)
	n.delLink()
	n.check(world) // nobody has done anything yet
	n.settle(world)
	n.check(world)
	n.addLink()
	n.settle(world)
	n.check(world)
}

func TestForeignIsLeftAlone(t *testing.T) {
	n := newNode(t)
	up := n.Link(t, "up0").Attrs().Index
	inOurTable := func(dst string, metric int) {
		t.Helper()
		err := n.NL.RouteAdd(&netlink.Route{
			Dst: ipNet(netip.MustParsePrefix(dst)), Table: n.o.Table, Priority: metric, LinkIndex: up, Protocol: unix.RTPROT_STATIC,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	inOurTable("10.77.0.0/16", 0)
	inOurTable("10.2.0.0/24", viaMetric) // the place of one of ours
	inOurTable("fd77::/48", 5)
	inOurTable("fd02::/64", viaMetric)
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		same := netlink.NewRule() // as ours, of another protocol
		same.Family, same.Table, same.Priority, same.Mark, same.Invert, same.Protocol = f, n.o.Table, n.o.RulePriority, n.o.Mark, true, unix.RTPROT_STATIC
		other := netlink.NewRule()
		other.Family, other.Table, other.Priority = f, 100, n.o.RulePriority
		for _, r := range []*netlink.Rule{same, other} {
			if err := n.NL.RuleAdd(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := n.dump()

	a, _ := n.observe()
	for _, want := range []string{
		"table 51830 is also used by others: 10.77.0.0/16 of protocol static",
		"table 51830 is also used by others: fd77::/48 of protocol static",
		"IPv4 rule 5183, not of flatmesh's, leads to table 51830",
		"an IPv6 rule to table 100 has priority 5183 too; which of the two goes first is chance",
	} {
		if !slices.Contains(a.Foreign, want) {
			t.Errorf("no %q in %q", want, a.Foreign)
		}
	}
	if len(a.Routes)+len(a.Rules) != 0 {
		t.Errorf("others' taken for ours: %v, %v", a.Routes, a.Rules)
	}

	d := Desired{Addrs: worldAddrs[0], Via: prefixes("10.2.0.0/24 10.2.1.0/24 fd02::/64"), Unreachable: prefixes("10.2.0.0/16 fd02::/48")}
	err := n.apply(Diff(a, d, n.o)...)
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "add route 10.2.0.0/24") || !strings.Contains(err.Error(), "add route fd02::/64") {
		t.Fatalf("Apply over a foreign route: %v", err)
	}
	if strings.Contains(err.Error(), "10.2.1.0/24") {
		t.Errorf("one failure took others along: %v", err)
	}
	a, _ = n.observe()
	if got := fmt.Sprint(Diff(a, d, n.o)); strings.Contains(got, "10.2.1.0/24") || !strings.Contains(got, "10.2.0.0/24") {
		t.Errorf("left to do: %v", got)
	}
	n.cleanup()
	n.unchanged(before)
}

func TestCleanup(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("link gone %v", gone), func(t *testing.T) {
			n := newNode(t)
			before := n.dump()
			n.settle(world)
			if gone {
				n.delLink()
			}
			removed := n.cleanup()
			for _, want := range []string{"route unreachable 10.2.0.0/16", "route unreachable fd02::/48", "IPv4 rule 5183: not fwmark 0x2030", "IPv6 rule 5183: not fwmark 0x2030"} {
				if !slices.Contains(removed, want) {
					t.Errorf("no %q in %q", want, removed)
				}
			}
			n.unchanged(before)
			if again := n.cleanup(); len(again) != 0 {
				t.Errorf("the second time: %q", again)
			}
		})
	}
}

func TestApplyTwice(t *testing.T) {
	n := newNode(t)
	a, _ := n.observe()
	up := Diff(a, world, n.o)
	for range 2 {
		if err := n.apply(up...); err != nil {
			t.Fatal(err)
		}
	}
	n.check(world)
	a, _ = n.observe()
	down := Diff(a, Desired{}, n.o)
	for range 2 {
		if err := n.apply(down...); err != nil {
			t.Fatal(err)
		}
	}
	n.check(Desired{})
}

func TestNothingIsExposedByAFailure(t *testing.T) {
	n := newNode(t)
	from := Desired{Addrs: worldAddrs[0], Via: prefixes("10.2.0.0/24 10.3.0.0/24")}
	n.settle(from)
	// Someone has the place of the unreachable route, and lets everything through.
	err := n.NL.RouteAdd(&netlink.Route{
		Dst: ipNet(netip.MustParsePrefix("10.2.0.0/16")), Table: n.o.Table, Priority: unreachableMetric, Type: unix.RTN_THROW, Protocol: unix.RTPROT_STATIC,
	})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := n.observe()
	err = n.apply(Diff(a, Desired{Addrs: from.Addrs, Unreachable: prefixes("10.2.0.0/16 10.3.0.0/16")}, n.o)...)
	if err == nil || !strings.Contains(err.Error(), "delete route 10.2.0.0/24") || !strings.Contains(err.Error(), "withheld") {
		t.Errorf("got %v", err)
	}
	if got := n.unmarked(netip.MustParseAddr("10.2.0.9")); got != toTunnel {
		t.Errorf("10.2.0.9 goes to %v", got)
	}
	if got := n.unmarked(netip.MustParseAddr("10.3.0.9")); got != refusal {
		t.Errorf("10.3.0.9 goes to %v", got)
	}
}

func TestApplyEndsWithItsContext(t *testing.T) {
	n := newNode(t)
	a, _ := n.observe()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := n.Do(func() error { return n.tab.Apply(ctx, Diff(a, world, n.o)) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if a, _ := n.observe(); len(a.Routes) != 0 {
		t.Errorf("went on: %v", a.Routes)
	}
}

func TestSettings(t *testing.T) {
	n := newNode(t)
	n.Sysctl(t, "net/ipv6/conf/flatmesh0/disable_ipv6", "1")
	n.Sysctl(t, "net/ipv4/conf/flatmesh0/rp_filter", "1")
	n.Sysctl(t, "net/ipv4/conf/up0/rp_filter", "1")
	n.Sysctl(t, "net/ipv4/ip_forward", "0")
	if a, _ := n.observe(); a.Forwarding4 || a.Forwarding6 {
		t.Errorf("forwards: %+v", a)
	}
	n.settle(world)
	n.check(world)
	a, _ := n.observe()
	want := map[string]string{
		"net/ipv4/conf/flatmesh0/rp_filter":    "0",
		"net/ipv4/conf/flatmesh0/forwarding":   "1",
		"net/ipv6/conf/flatmesh0/forwarding":   "1",
		"net/ipv6/conf/flatmesh0/disable_ipv6": "0",
	}
	for path, value := range want {
		if a.Settings[path] != value {
			t.Errorf("%s is %q, want %q", path, a.Settings[path], value)
		}
	}
	if a.Forwarding4 || a.Forwarding6 {
		t.Error("the interface's own setting counts as the node's")
	}
	n.do(func() error {
		if v, _, err := readSetting("net/ipv4/conf/up0/rp_filter"); err != nil || v != "1" {
			t.Errorf("another interface's rp_filter is %q, %v", v, err)
		}
		return nil
	})
	n.Sysctl(t, "net/ipv4/ip_forward", "1")
	n.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	if a, _ := n.observe(); !a.Forwarding4 || !a.Forwarding6 {
		t.Errorf("does not forward: %+v", a)
	}
}

func TestWithoutIPv6(t *testing.T) {
	n := newNode(t)
	// What a kernel without IPv6 looks like from here.
	n.do(func() error { return unix.Mount("tmpfs", "/proc/sys/net", "tmpfs", 0, "") })
	n.settle(world)
	a, _ := n.observe()
	if a.IPv6 || len(a.Rules) != 1 || a.Rules[0].Family != mesh.IPv4 {
		t.Errorf("IPv6 %v, rules %v", a.IPv6, a.Rules)
	}
	if got := n.unmarked(netip.MustParseAddr("10.2.77.9")); got != refusal {
		t.Errorf("10.2.77.9 goes to %v", got)
	}
}

// TestManyRoutes is the size that one agent is made for.
func TestManyRoutes(t *testing.T) {
	n := newNode(t)
	d := Desired{Addrs: worldAddrs[0], Unreachable: prefixes("10.0.0.0/8 fd00::/16")}
	for i := range 2500 {
		d.Via = append(d.Via,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 4: byte(i >> 8), 5: byte(i)}), 64))
	}
	n.settle(d)
	a, l := n.observe()
	if len(a.Routes) != 5002 {
		t.Errorf("%d routes", len(a.Routes))
	}
	if _, refused := Safe(d.Via, l); len(refused) != 0 {
		t.Errorf("the node's own routes stand in its way: %v", refused[0])
	}
	if removed := n.cleanup(); len(removed) != 5004 {
		t.Errorf("removed %d", len(removed))
	}
}

func BenchmarkObserveDiff(b *testing.B) {
	n := newNode(b)
	d := Desired{Addrs: worldAddrs[0], Unreachable: prefixes("10.0.0.0/8")}
	for i := range 5000 {
		d.Via = append(d.Via, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	n.settle(d)
	for b.Loop() {
		a, _ := n.observe()
		if len(Diff(a, d, n.o)) != 0 {
			b.Fatal("not settled")
		}
	}
}
