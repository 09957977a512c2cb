package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func show(list []netip.Prefix) string { return strings.Trim(fmt.Sprint(list), "[]") }

func TestRefusable(t *testing.T) {
	keep := addrs("198.19.0.1 198.19.7.9 fd19::7 ::ffff:10.5.0.9")
	for _, c := range []struct{ name, in, want, err string }{
		{"nothing", "", "", ""},
		{"pod prefixes, sorted", "fd02::/64 10.3.0.0/24 10.2.0.0/24", "10.2.0.0/24 10.3.0.0/24 fd02::/64", ""},
		{"twice", "10.2.0.0/24 10.2.0.0/24", "10.2.0.0/24", ""},
		{"one within another", "10.2.3.0/24 10.2.0.0/16 10.2.3.128/25 10.3.0.0/24", "10.2.0.0/16 10.3.0.0/24", ""},
		{"side by side", "10.2.1.0/24 10.2.0.0/24", "10.2.0.0/24 10.2.1.0/24", ""},
		{"a tunnel address", "198.19.7.9/32 10.2.0.0/24", "10.2.0.0/24", "refuse packets: 198.19.7.9/32 is 198.19.7.9, a tunnel address"},
		{"tunnel addresses", "198.19.0.0/16", "", "refuse packets: 198.19.0.0/16 covers 198.19.0.1, a tunnel address"},
		{"a tunnel address, IPv6", "fd19::/64 fd02::/64", "fd02::/64", "refuse packets: fd19::/64 covers fd19::7, a tunnel address"},
		{"a tunnel address, mapped", "10.5.0.0/24", "", "refuse packets: 10.5.0.0/24 covers 10.5.0.9, a tunnel address"},
		{"beside tunnel addresses", "198.19.0.2/31 198.20.0.0/16", "198.19.0.2/31 198.20.0.0/16", ""},
		{"not canonical", "10.2.0.1/24", "", "refuse packets: 10.2.0.1/24 has bits set behind its length; did you mean 10.2.0.0/24?"},
		{"everything", "0.0.0.0/0", "", "refuse packets: 0.0.0.0/0 covers 0.0.0.0/8, which cannot be routed between clusters"},
		{"what is wrong does not hide what it covers", "0.0.0.0/0 10.2.0.0/24", "10.2.0.0/24", "refuse packets: 0.0.0.0/0 covers 0.0.0.0/8, which cannot be routed between clusters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok, rejected := refusable(prefixes(c.in), keep)
			var text string
			if err := errors.Join(rejected...); err != nil {
				text = err.Error()
			}
			if show(ok) != c.want || text != c.err {
				t.Errorf("got %q, %q; want %q, %q", show(ok), text, c.want, c.err)
			}
		})
	}
}

func TestDiffFilter(t *testing.T) {
	there := func(list string) filter { return filter{exists: true, sound: true, refused: prefixes(list)} }
	for _, c := range []struct {
		name string
		have filter
		want string
		do   string
	}{
		{"nothing, and nothing wanted", filter{}, "", ""},
		{"first", filter{}, "10.2.0.0/24 fd02::/64", "make the table of refusals; refuse 10.2.0.0/24, fd02::/64"},
		{"as it should be", there("10.2.0.0/24 fd02::/64"), "10.2.0.0/24 fd02::/64", ""},
		{"one more", there("10.2.0.0/24"), "10.2.0.0/24 10.3.0.0/24", "refuse 10.3.0.0/24"},
		{"one less", there("10.2.0.0/24 10.3.0.0/24"), "10.3.0.0/24", "no longer refuse 10.2.0.0/24"},
		{"another", there("10.2.0.0/24"), "fd02::/64", "no longer refuse 10.2.0.0/24; refuse fd02::/64"},
		{"a wider one", there("10.2.1.0/24 10.2.3.0/24"), "10.2.0.0/16", "no longer refuse 10.2.1.0/24, 10.2.3.0/24; refuse 10.2.0.0/16"},
		{"the last goes", there("10.2.0.0/24"), "", "remove the table of refusals"},
		{"empty, and nothing wanted", there(""), "", "remove the table of refusals"},
		{"altered, and nothing wanted", filter{exists: true}, "", "remove the table of refusals"},
		{"altered", filter{exists: true}, "10.2.0.0/24", "remove the table of refusals; make the table of refusals; refuse 10.2.0.0/24"},
		{"many", filter{}, "10.1.0.0/24 10.2.0.0/24 10.3.0.0/24 10.4.0.0/24 10.5.0.0/24 10.6.0.0/24 10.7.0.0/24",
			"make the table of refusals; refuse 10.1.0.0/24, 10.2.0.0/24, 10.3.0.0/24, 10.4.0.0/24, 10.5.0.0/24, 2 more"},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := diffFilter(c.have, prefixes(c.want))
			if change.String() != c.do || change.empty() != (c.do == "") {
				t.Errorf("got %q, want %q", change, c.do)
			}
		})
	}
}

// prefixesFrom makes a list of prefixes of what a fuzzer comes up with.
func prefixesFrom(b []byte) (out []netip.Prefix) {
	for ; len(b) >= 4; b = b[4:] {
		n := binary.BigEndian.Uint32(b)
		addr := netip.AddrFrom4([4]byte{10, byte(n >> 24), byte(n >> 16), byte(n >> 8)})
		p := netip.PrefixFrom(addr, 8+int(n%25)).Masked()
		if n%2 == 1 {
			wide := netip.AddrFrom16([16]byte{0xfd, byte(n >> 24), 15: byte(n >> 16)})
			p = netip.PrefixFrom(wide, 8+int(n%121)).Masked()
		}
		out = append(out, p)
	}
	return out
}

// FuzzFilter compares a kernel that holds intervals with the prefixes that were
// asked for, one change after another.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 20, 1, 2, 3, 16}, []byte{5, 6, 7, 8, 9, 9, 9, 9})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first)+len(second) > 1<<12 {
			return
		}
		var have filter
		for _, b := range [][]byte{first, second, nil} {
			asked := prefixesFrom(b)
			want, rejected := refusable(asked, nil)
			if len(rejected) > 0 {
				t.Fatal(rejected)
			}
			for _, p := range asked {
				if !slices.ContainsFunc(want, func(w netip.Prefix) bool { return w.Bits() <= p.Bits() && w.Contains(p.Addr()) }) {
					t.Errorf("%v is not covered by %v", p, want)
				}
			}
			for i, p := range want {
				if !slices.Contains(asked, p) {
					t.Errorf("%v was not asked for", p)
				}
				if i > 0 && (want[i-1].Overlaps(p) || mesh.ComparePrefix(want[i-1], p) >= 0) {
					t.Errorf("%v before %v", want[i-1], p)
				}
			}
			have = afterwards(t, have, diffFilter(have, want))
			if d := cmp.Diff(show(want), show(have.refused)); d != "" {
				t.Errorf("(-want +have):\n%s", d)
			}
			if again := diffFilter(have, want); !again.empty() {
				t.Errorf("there is still %v", again)
			}
		}
	})
}

// afterwards is the kernel, as far as diffFilter knows it.
func afterwards(t *testing.T, f filter, c filterChange) filter {
	t.Helper()
	if c.drop && !f.exists || c.create && f.exists && !c.drop {
		t.Fatalf("%v where %+v", c, f)
	}
	if c.drop {
		f = filter{}
	}
	if c.create {
		f = filter{exists: true, sound: true}
	}
	held := slices.Clone(f.refused)
	for _, p := range c.allow {
		i := slices.Index(held, p)
		if i < 0 {
			t.Fatalf("%v is not refused", p)
		}
		held = slices.Delete(held, i, i+1)
	}
	for _, p := range c.refuse {
		if slices.ContainsFunc(held, p.Overlaps) {
			t.Fatalf("%v overlaps one of %v", p, held)
		}
		held = append(held, p)
	}
	// As the kernel holds it: intervals, each family by itself.
	f.refused = nil
	for _, family := range mesh.Families {
		part, ok := prefixesOf(elementsOf(held, family))
		if !ok {
			t.Fatalf("%v are not read back", held)
		}
		f.refused = append(f.refused, part...)
	}
	return f
}

func TestAlteredIntervals(t *testing.T) {
	whole := func() []element { return intervals("10.2.0.0", "10.2.1.0", "10.2.1.0", "10.2.2.0") }
	if got, ok := prefixesOf(kernelElements(whole())); !ok || show(got) != "10.2.0.0/24 10.2.1.0/24" {
		t.Fatalf("side by side: %v, %v", got, ok)
	}
	for name, list := range map[string][]element{
		"one end is missing":   whole()[:3],
		"one start is missing": whole()[1:],
		"no prefix":            intervals("10.2.0.0", "10.2.1.1"),
		"not aligned":          intervals("10.2.0.128", "10.2.1.128"),
		"backwards":            intervals("10.2.1.0", "10.2.0.0"),
		"two starts":           {{"10.2.0.0", false}, {"10.2.1.0", false}},
	} {
		if got, ok := prefixesOf(kernelElements(list)); ok {
			t.Errorf("%s: read as %v", name, got)
		}
	}
}

func TestHookedAsItShouldBe(t *testing.T) {
	for _, w := range filterChains(Defaults()) {
		policy := nftables.ChainPolicyAccept
		sound := nftables.Chain{Type: nftables.ChainTypeFilter, Hooknum: w.hook, Priority: nftables.ChainPriorityRef(filterPriority), Policy: &policy}
		if !w.is(&sound) {
			t.Errorf("%s: what is made is not accepted", w.name)
		}
		drop := nftables.ChainPolicyDrop
		for what, alter := range map[string]func(*nftables.Chain){
			"no hook":        func(h *nftables.Chain) { h.Hooknum, h.Priority, h.Policy = nil, nil, nil },
			"another hook":   func(h *nftables.Chain) { h.Hooknum = nftables.ChainHookInput },
			"another place":  func(h *nftables.Chain) { h.Priority = nftables.ChainPriorityFilter },
			"another policy": func(h *nftables.Chain) { h.Policy = &drop },
			"another type":   func(h *nftables.Chain) { h.Type = nftables.ChainTypeRoute },
		} {
			altered := sound
			alter(&altered)
			if w.is(&altered) {
				t.Errorf("%s: %s is accepted", w.name, what)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.EPROTONOSUPPORT, "modprobe"},
		{fmt.Errorf("conn.Receive: %w", errors.Join(unix.ENOENT, unix.ENOENT)), "modprobe"},
		{unix.EINVAL, "modprobe"},
		{unix.EPERM, "CAP_NET_ADMIN"},
		{unix.EBUSY, ""},
	} {
		err := explain(c.err)
		if errors.Is(err, ErrCannotRefuse) != (c.want == "modprobe") || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.err) && c.err != err {
			t.Errorf("%v: %v", c.err, err)
		}
	}
	if explain(nil) != nil {
		t.Error("nothing is an error")
	}
}

// element is an element of a set: the first address of an interval, or the end.
type element struct {
	addr string
	end  bool
}

func intervals(bounds ...string) (out []element) {
	for i, b := range bounds {
		out = append(out, element{b, i%2 == 1})
	}
	return out
}

func kernelElements(list []element) (out []nftables.SetElement) {
	for _, e := range list {
		out = append(out, nftables.SetElement{Key: netip.MustParseAddr(e.addr).AsSlice(), IntervalEnd: e.end})
	}
	return out
}
