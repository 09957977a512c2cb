package route

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// randomBlocks are of many lengths, side by side and within each other.
func randomBlocks(r *rand.Rand) []netip.Prefix {
	var out []netip.Prefix
	for range r.IntN(12) {
		if r.IntN(2) == 0 {
			a := netip.AddrFrom4([4]byte{10, 2, byte(r.IntN(3)), byte(r.IntN(4) * 64)})
			out = append(out, netip.PrefixFrom(a, 20+r.IntN(13)).Masked())
		} else {
			a := netip.AddrFrom16([16]byte{0xfd, 2, 13: byte(r.IntN(3)), 15: byte(r.IntN(4) * 64)})
			out = append(out, netip.PrefixFrom(a, 100+r.IntN(29)).Masked())
		}
	}
	return out
}

// TestRefuseRandomWalk goes from one list to the next, while others tamper with
// the table, and asks the kernel what it refuses.
func TestRefuseRandomWalk(t *testing.T) {
	n := newNode(t)
	n.settle(Desired{Addrs: addrs("198.19.0.1 fd19::1"), Via: prefixes("10.2.0.0/16 fd02::/16")})
	n.ready("fd19::1/128")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	for step := range 120 {
		if r.IntN(3) == 0 {
			n.tamper(r)
		}
		if r.IntN(4) == 0 { // the agent was restarted
			n.reopen()
		}
		list := randomBlocks(r)
		n.do(func() error { return n.tab.Refuse(t.Context(), list, nil) })
		if d := cmp.Diff(show(widest(list)), show(n.refused())); d != "" {
			t.Fatalf("step %d: (-want +refused):\n%s", step, d)
		}
		n.do(func() error {
			f, err := n.tab.observeFilter(t.Context())
			if change := diffFilter(f, widest(list)); !change.empty() {
				return fmt.Errorf("step %d: there is still %v: %w", step, change, err)
			}
			return err
		})
		for range 20 {
			to := randomBlocks(r)
			if len(to) == 0 {
				continue
			}
			for _, addr := range []netip.Addr{to[0].Addr(), behind(to[0]), behind(to[0]).Prev()} {
				want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
				if got := n.refuses(addr); got != want {
					t.Fatalf("step %d: %v is refused: %v, want %v, by %v", step, addr, got, want, list)
				}
			}
		}
	}
}

// reopen is what a new process does.
func (n *node) reopen() {
	n.t.Helper()
	n.do(func() error {
		tab, err := Open(n.o)
		if err == nil {
			n.tab.Close()
			n.tab = tab
		}
		return err
	})
}

// refuses asks the kernel by sending a packet.
func (n *node) refuses(to netip.Addr) (refused bool) {
	n.t.Helper()
	n.do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte{0}); errors.Is(err, unix.EPERM) {
			refused, err = true, nil
		}
		return err
	})
	return refused
}

// tamper changes what is there as somebody else might.
func (n *node) tamper(r *rand.Rand) {
	n.t.Helper()
	kind := r.IntN(7)
	n.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := filterTable(n.o)
		if _, err := c.ListTableOfFamily(table.Name, table.Family); errors.Is(err, unix.ENOENT) {
			return nil
		}
		chain := &nftables.Chain{Name: "forward", Table: table}
		set := filterSet(table, mesh.Families[r.IntN(2)])
		switch kind {
		case 0:
			c.DelTable(table)
		case 1:
			c.FlushTable(table) // its rules
		case 2:
			c.FlushSet(set)
		case 3:
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
		case 4: // as another version might hook it
			c.DelTable(table)
			c.CreateTable(table)
			for _, f := range mesh.Families {
				if err := c.AddSet(filterSet(table, f), nil); err != nil {
					return err
				}
			}
			for _, w := range filterChains(n.o) {
				h := c.AddChain(&nftables.Chain{
					Name: w.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: w.hook, Priority: nftables.ChainPriorityFilter,
				})
				for _, exprs := range w.rules {
					c.AddRule(&nftables.Rule{Table: table, Chain: h, Exprs: exprs})
				}
			}
		case 5:
			first, end := netip.MustParseAddr("10.99.0.3"), netip.MustParseAddr("10.99.0.9")
			return errors.Join(c.SetAddElements(filterSet(table, mesh.IPv4), []nftables.SetElement{
				{Key: first.AsSlice()}, {Key: end.AsSlice(), IntervalEnd: true},
			}), c.Flush())
		case 6:
			rules, err := c.GetRules(table, chain)
			if err != nil || len(rules) == 0 {
				return err
			}
			if err := c.DelRule(rules[r.IntN(len(rules))]); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

func TestRefuseThousands(t *testing.T) {
	n := newNode(t)
	var list []netip.Prefix
	for i := range 5000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 2, byte(i >> 8), byte(i)}), 64))
	}
	for _, part := range [][]netip.Prefix{list, list[7:], list[:3001], list, nil} {
		n.do(func() error { return n.tab.Refuse(t.Context(), part, addrs("198.19.0.1")) })
		if got := n.refused(); !slices.Equal(got, widest(part)) {
			t.Fatalf("refused are %d, want %d", len(got), len(part))
		}
	}
}

func TestRefuseWhatIsWrong(t *testing.T) {
	n := newNode(t)
	refuse := func(list string) (err error) {
		n.do(func() error {
			err = n.tab.Refuse(t.Context(), prefixes(list), addrs("198.19.0.2"))
			return nil
		})
		return err
	}
	if err := refuse("198.19.0.0/24 10.2.0.0/24"); err == nil {
		t.Error("a tunnel address is refused")
	}
	if got := show(n.refused()); got != "10.2.0.0/24" {
		t.Errorf("refused are %q", got)
	}
}

func TestCanRefuse(t *testing.T) {
	n := newNode(t)
	before := n.ruleset()
	n.do(func() error { return n.tab.CanRefuse(t.Context()) })
	n.do(func() error { return n.tab.CanRefuse(t.Context()) })
	if d := cmp.Diff(before, n.ruleset()); d != "" {
		t.Errorf("(-before +after):\n%s", d)
	}
}

// ruleset prints all tables with what is in them.
func (n *node) ruleset() (out []string) {
	n.t.Helper()
	n.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			out = append(out, fmt.Sprintf("table %d %s", t.Family, t.Name))
			sets, err := c.GetSets(t)
			if err != nil {
				return err
			}
			for _, s := range sets {
				elements, err := c.GetSetElements(s)
				if err != nil {
					return err
				}
				out = append(out, fmt.Sprintf("table %s set %s %v", t.Name, s.Name, elements))
			}
		}
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, h := range chains {
			rules, err := c.GetRules(h.Table, h)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("table %s chain %s", h.Table.Name, h.Name))
			for _, r := range rules {
				out = append(out, fmt.Sprintf("table %s chain %s rule %d of %d expressions", h.Table.Name, h.Name, r.Handle, len(r.Exprs)))
			}
		}
		return nil
	})
	slices.Sort(out)
	return out
}

// TestRefuseLeavesOthersAlone looks at tables of others, one of which is much
// like flatmesh's, while packets are refused and no more, and cleaned up.
func TestRefuseLeavesOthersAlone(t *testing.T) {
	n := newNode(t)
	other := n.o
	other.Link = "other0"
	n.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		ip := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: filterTable(n.o).Name})
		c.AddRule(&nftables.Rule{Table: ip, Chain: c.AddChain(&nftables.Chain{Name: "forward", Table: ip}), Exprs: []expr.Any{&expr.Counter{}}})
		if err := makeFilter(c, filterTable(other), other); err != nil {
			return err
		}
		return errors.Join(c.SetAddElements(filterSet(filterTable(other), mesh.IPv4), elementsOf(prefixes("10.2.0.0/24"), mesh.IPv4)), c.Flush())
	})
	before := n.ruleset()
	unchanged := func(when string) {
		t.Helper()
		if d := cmp.Diff(before, n.ruleset()); d != "" {
			t.Errorf("%s (-before +after):\n%s", when, d)
		}
	}
	refuse := func(list string) {
		t.Helper()
		n.do(func() error { return n.tab.Refuse(t.Context(), prefixes(list), nil) })
	}
	refuse("")
	unchanged("with nothing to refuse")
	refuse("10.2.0.0/24 fd02::/64")
	refuse("10.3.0.0/24")
	if d := cmp.Diff(before, n.ruleset()); d == "" {
		t.Error("refusing changes nothing")
	}
	refuse("")
	unchanged("with nothing refused any more")
	refuse("10.2.0.0/24")
	if got := n.cleanup(); !slices.Equal(got, []string{"nftables table inet flatmesh-flatmesh0"}) {
		t.Errorf("cleaned up %q", got)
	}
	unchanged("after a cleanup")
	if got := n.cleanup(); len(got) != 0 {
		t.Errorf("cleaned up again: %q", got)
	}
}

// TestWithoutNftables runs on a thread whose kernel seems to have no netfilter.
func TestWithoutNftables(t *testing.T) {
	n := newNode(t)
	n.do(forbidNetfilter)
	n.do(func() error {
		for what, err := range map[string]error{
			"CanRefuse": n.tab.CanRefuse(t.Context()),
			"Refuse":    n.tab.Refuse(t.Context(), prefixes("10.2.0.0/24"), nil),
		} {
			if !errors.Is(err, ErrCannotRefuse) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := n.tab.Refused(t.Context()); !errors.Is(err, ErrCannotRefuse) {
			t.Errorf("Refused: %v", err)
		}
		return n.tab.Refuse(t.Context(), nil, nil)
	})
	n.settle(world)
	n.check(world)
	if got := n.cleanup(); len(got) == 0 {
		t.Error("nothing was cleaned up")
	}
}

// forbidNetfilter has socket(2) tell the calling thread that the kernel was built
// without NETLINK_NETFILTER, until the thread ends.
func forbidNetfilter() error {
	const nr, family, protocol = 0, 16, 32 // in struct seccomp_data, little-endian
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: family},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_NETLINK, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: protocol},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.NETLINK_NETFILTER, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return errors.Join(
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0),
	)
}

func TestRefuseWithoutCapability(t *testing.T) {
	n := newNode(t)
	n.do(func() error { // for good: the thread ends with the host
		var none [2]unix.CapUserData
		return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
	})
	n.do(func() error {
		err := n.tab.Refuse(t.Context(), prefixes("10.2.0.0/24"), nil)
		if !errors.Is(err, unix.EPERM) || errors.Is(err, ErrCannotRefuse) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("got %v", err)
		}
		return nil
	})
}
