package route

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// where says where a packet goes.
type where string

const (
	toTunnel where = "tunnel"
	refusal  where = "refused"
	toMain   where = "main table"
)

// model is a kernel, as far as Diff knows it.
type model struct {
	Actual
	o Options
}

func newModel(o Options) *model {
	m := &model{o: o}
	m.IPv6, m.LinkIndex = true, 7
	m.Settings = map[string]string{}
	for _, s := range settingsFor(o, true) {
		m.Settings[s.path] = "default"
	}
	return m
}

func (m *model) apply(t testing.TB, op Op) {
	t.Helper()
	switch op := op.(type) {
	case putRoute:
		i := slices.IndexFunc(m.Routes, func(r Route) bool { return r.key() == op.route.key() })
		if i >= 0 && !op.replace {
			t.Fatalf("%v: there is %v", op, m.Routes)
		}
		if i >= 0 {
			m.Routes = slices.Delete(m.Routes, i, i+1)
		}
		if !op.route.Unreachable && (op.route.Link != m.LinkIndex || !m.LinkUp) {
			t.Fatalf("%v: the interface is %d, up %v", op, m.LinkIndex, m.LinkUp)
		}
		if src := op.route.Src; src.IsValid() && !slices.Contains(m.Addrs, mesh.HostPrefix(src)) {
			t.Fatalf("%v: addresses are %v", op, m.Addrs)
		}
		m.Routes = append(m.Routes, op.route)
	case delRoute:
		// By its key: which source it has does not matter.
		i := slices.IndexFunc(m.Routes, func(r Route) bool { return r.key() == op.route.key() })
		if i >= 0 {
			m.Routes = slices.Delete(m.Routes, i, i+1)
		} else if !op.route.Src.Is4() { // those went with their source
			t.Fatalf("%v: there is %v", op, m.Routes)
		}
	case addRule:
		if slices.Contains(m.Rules, op.rule) {
			t.Fatalf("%v: is there", op)
		}
		m.Rules = append(m.Rules, op.rule)
	case delRule:
		m.Rules = remove(t, m.Rules, op.rule, op)
	case addAddr:
		if slices.ContainsFunc(m.Addrs, func(p netip.Prefix) bool { return p.Addr() == op.addr.Addr() }) {
			t.Fatalf("%v: addresses are %v", op, m.Addrs)
		}
		m.Addrs = append(m.Addrs, op.addr)
	case delAddr:
		m.Addrs = remove(t, m.Addrs, op.addr, op)
		// IPv4 drops routes from the address, IPv6 drops the source from them.
		m.Routes = slices.DeleteFunc(m.Routes, func(r Route) bool { return r.Src.Is4() && r.Src == op.addr.Addr() })
		for i := range m.Routes {
			if m.Routes[i].Src == op.addr.Addr() {
				m.Routes[i].Src = netip.Addr{}
			}
		}
	case linkUp:
		m.LinkUp = true
	case setting:
		m.Settings[op.path] = op.value
	default:
		t.Fatalf("unknown operation %T", op)
	}
}

func remove[T comparable](t testing.TB, list []T, x T, op Op) []T {
	t.Helper()
	i := slices.Index(list, x)
	if i < 0 {
		t.Fatalf("%v: there is %v", op, list)
	}
	return slices.Delete(slices.Clone(list), i, i+1)
}

// downLink is what the kernel does when the interface goes down or away.
func (m *model) downLink(index int) {
	m.LinkUp, m.LinkIndex = false, index
	m.Routes = slices.DeleteFunc(m.Routes, func(r Route) bool { return !r.Unreachable })
	if index == 0 {
		m.Addrs, m.Settings = nil, nil
	}
}

// route says where a packet to addr without the mark goes.
func (m *model) route(addr netip.Addr) where {
	if !slices.ContainsFunc(m.Rules, func(r Rule) bool { return r == ruleFor(mesh.FamilyOf(addr), m.o) }) {
		return toMain
	}
	return lookup(m.Routes, addr)
}

// lookup is the longest match, then the lowest metric.
func lookup(routes []Route, addr netip.Addr) where {
	var best *Route
	for _, r := range routes {
		if r.Dst.Contains(addr) && (best == nil || r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric) {
			best = &r
		}
	}
	switch {
	case best == nil:
		return toMain
	case best.Unreachable:
		return refusal
	default:
		return toTunnel
	}
}

// oracle says where Desired wants a packet to go.
func oracle(d Desired, link bool, addr netip.Addr) where {
	bits, w := -1, toMain
	for _, p := range d.Unreachable {
		if p.Contains(addr) && p.Bits() > bits {
			bits, w = p.Bits(), refusal
		}
	}
	source := slices.ContainsFunc(d.Addrs, func(a netip.Addr) bool { return a.Is4() == addr.Is4() })
	for _, p := range d.Via {
		if link && source && p.Contains(addr) && p.Bits() >= bits {
			bits, w = p.Bits(), toTunnel
		}
	}
	return w
}

// The world that the random walks live in: remote ranges, nodes' prefixes in
// them, and one prefix in no range.
var (
	worldRanges = prefixes("10.2.0.0/16 10.3.0.0/16 10.3.128.0/17 198.19.0.0/16 fd02::/48 fd03::/48 fd19::/64")
	worldVia    = prefixes("10.2.0.0/24 10.2.1.0/24 10.2.2.0/24 10.3.0.0/24 10.3.129.0/24 10.3.0.0/16 10.99.9.0/24 " +
		"198.19.0.11/32 198.19.0.12/32 fd02::/64 fd02:0:0:1::/64 fd03:0:0:1::/64 fd03::/48 fd19::11/128 fd19::12/128")
	worldAddrs  = [][]netip.Addr{addrs("198.19.0.1 fd19::1"), addrs("198.19.0.2 fd19::2"), addrs("198.19.0.1"), addrs("fd19::2"), nil}
	worldProbes = addrs("10.2.0.9 10.2.1.9 10.2.2.9 10.2.77.9 10.3.0.9 10.3.1.9 10.3.129.9 10.3.200.9 10.99.9.9 " +
		"198.19.0.11 198.19.0.12 198.19.0.13 192.0.2.77 fd02::9 fd02:0:0:1::9 fd02:0:0:7::9 fd03:0:0:1::9 fd03:0:0:8::9 " +
		"fd19::11 fd19::12 fd19::13 2001:db8:77::1")
)

func randomDesired(r *rand.Rand) Desired {
	some := func(list []netip.Prefix, share float64) (out []netip.Prefix) {
		for _, i := range r.Perm(len(list)) {
			if r.Float64() < share {
				out = append(out, list[i])
			}
		}
		return out
	}
	if r.IntN(12) == 0 {
		return Desired{}
	}
	return Desired{
		Addrs: worldAddrs[r.IntN(len(worldAddrs))], Via: some(worldVia, 0.6),
		Unreachable: some(worldRanges, 0.8), Forward: r.IntN(2) == 0,
	}
}

// guarded returns the probes that must not leave by the main table on the way to d:
// those that do not now, and lie in a range that stays.
func guarded(now func(netip.Addr) where, d Desired) (out []netip.Addr) {
	for _, a := range worldProbes {
		if now(a) != toMain && slices.ContainsFunc(d.Unreachable, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, a)
		}
	}
	return out
}

func TestDiffRandomWalk(t *testing.T) {
	o := Defaults()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		m := newModel(o)
		for range 100 {
			switch r.IntN(8) {
			case 0:
				m.downLink(m.LinkIndex)
			case 1:
				m.downLink(0)
			case 2:
				if m.LinkIndex == 0 {
					m.LinkIndex, m.Settings = 7+r.IntN(3), newModel(o).Settings
				}
			case 3: // as an earlier version of the agent, or a person, left it
				if m.LinkIndex != 0 && len(m.Addrs) > 0 {
					i := r.IntN(len(m.Addrs))
					m.Addrs[i] = netip.PrefixFrom(m.Addrs[i].Addr(), m.Addrs[i].Addr().BitLen()-8)
				}
			}
			d := randomDesired(r)
			ops := Diff(m.Actual, d, o)
			safe := guarded(m.route, d)
			if r.IntN(4) == 0 {
				ops = ops[:r.IntN(len(ops)+1)] // kill -9
			}
			interrupted := len(ops) != len(Diff(m.Actual, d, o))
			before := fmt.Sprint(m.Actual)
			for i, op := range ops {
				m.apply(t, op)
				for _, a := range safe {
					if m.route(a) == toMain {
						t.Fatalf("seed %d: %v leaks after %v of\n%v\nfrom %s\nto %+v", seed, a, op, ops[:i+1], before, d)
					}
				}
			}
			if interrupted {
				continue
			}
			if again := Diff(m.Actual, d, o); len(again) != 0 {
				t.Fatalf("seed %d: after\n%v\nthere is still\n%v", seed, ops, again)
			}
			for _, a := range worldProbes {
				if got, want := m.route(a), oracle(d, m.LinkIndex != 0, a); got != want {
					t.Fatalf("seed %d: %v goes to %v, want %v, by %+v", seed, a, got, want, d)
				}
			}
		}
	}
}

func TestDiff(t *testing.T) {
	o := Defaults()
	d := Desired{
		Addrs: addrs("198.19.0.1 fd19::1"), Via: prefixes("10.2.1.0/24 10.2.0.0/24 fd02::/64"),
		Unreachable: prefixes("10.2.0.0/16 fd02::/48"), Forward: true,
	}
	settled := func(d Desired, change func(*model)) Actual {
		m := newModel(o)
		for _, op := range Diff(m.Actual, d, o) {
			m.apply(t, op)
		}
		m.Settings = maps.Clone(m.Settings)
		if change != nil {
			change(m)
		}
		return m.Actual
	}
	for _, c := range []struct {
		name    string
		actual  Actual
		desired Desired
		want    []string
	}{
		{"from nothing", newModel(o).Actual, d, []string{
			"set net/ipv4/conf/flatmesh0/rp_filter to 0",
			"set net/ipv6/conf/flatmesh0/disable_ipv6 to 0",
			"set net/ipv4/conf/flatmesh0/forwarding to 1",
			"set net/ipv6/conf/flatmesh0/forwarding to 1",
			"add route unreachable 10.2.0.0/16",
			"add route unreachable fd02::/48",
			"add IPv4 rule 5183: not fwmark 0x2030",
			"add IPv6 rule 5183: not fwmark 0x2030",
			"bring up flatmesh0",
			"add address 198.19.0.1/32",
			"add address fd19::1/128",
			"add route 10.2.0.0/24 dev 7 src 198.19.0.1",
			"add route 10.2.1.0/24 dev 7 src 198.19.0.1",
			"add route fd02::/64 dev 7 src fd19::1",
		}},
		{"settled", settled(d, nil), d, nil},
		{"no interface", Actual{IPv6: true}, d, []string{
			"add route unreachable 10.2.0.0/16",
			"add route unreachable fd02::/48",
			"add IPv4 rule 5183: not fwmark 0x2030",
			"add IPv6 rule 5183: not fwmark 0x2030",
		}},
		{"no IPv6", Actual{LinkIndex: 7, LinkUp: true}, d, []string{
			"add route unreachable 10.2.0.0/16",
			"add IPv4 rule 5183: not fwmark 0x2030",
			"add address 198.19.0.1/32",
			"add route 10.2.0.0/24 dev 7 src 198.19.0.1",
			"add route 10.2.1.0/24 dev 7 src 198.19.0.1",
		}},
		{"a cluster goes", settled(d, nil), Desired{Addrs: d.Addrs, Forward: true}, []string{
			"delete route 10.2.0.0/24 dev 7 src 198.19.0.1",
			"delete route 10.2.1.0/24 dev 7 src 198.19.0.1",
			"delete route fd02::/64 dev 7 src fd19::1",
			"delete route unreachable 10.2.0.0/16",
			"delete route unreachable fd02::/48",
			"delete IPv4 rule 5183: not fwmark 0x2030",
			"delete IPv6 rule 5183: not fwmark 0x2030",
		}},
		{"a peer comes, another goes", settled(d, nil),
			Desired{Addrs: d.Addrs, Via: prefixes("10.2.0.0/24 10.2.9.0/24 fd02::/64"), Unreachable: d.Unreachable}, []string{
				"add route 10.2.9.0/24 dev 7 src 198.19.0.1",
				"delete route 10.2.1.0/24 dev 7 src 198.19.0.1",
			}},
		{"a tunnel address changes", settled(d, nil),
			Desired{Addrs: addrs("198.19.0.2 fd19::1"), Via: d.Via, Unreachable: d.Unreachable}, []string{
				"add address 198.19.0.2/32",
				"replace route 10.2.0.0/24 dev 7 src 198.19.0.2",
				"replace route 10.2.1.0/24 dev 7 src 198.19.0.2",
				"delete address 198.19.0.1/32",
			}},
		{"an address has another length", settled(d, func(m *model) {
			m.Addrs[1] = netip.MustParsePrefix("fd19::1/64")
		}), d, []string{
			"delete address fd19::1/64",
			"add address fd19::1/128",
			"replace route fd02::/64 dev 7 src fd19::1",
		}},
		{"the interface came back with another index", settled(d, func(m *model) {
			m.downLink(0)
			m.LinkIndex, m.LinkUp = 9, true
		}), d, []string{
			"add address 198.19.0.1/32",
			"add address fd19::1/128",
			"add route 10.2.0.0/24 dev 9 src 198.19.0.1",
			"add route 10.2.1.0/24 dev 9 src 198.19.0.1",
			"add route fd02::/64 dev 9 src fd19::1",
		}},
		{"altered by hand", settled(d, func(m *model) {
			m.Routes[2].Odd = true // 10.2.0.0/24
			m.Rules[0].Priority = 100
			m.Settings["net/ipv4/conf/flatmesh0/rp_filter"] = "1"
		}), d, []string{
			"set net/ipv4/conf/flatmesh0/rp_filter to 0",
			"add IPv4 rule 5183: not fwmark 0x2030",
			"replace route 10.2.0.0/24 dev 7 src 198.19.0.1",
			"delete IPv4 rule 100: not fwmark 0x2030",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, op := range Diff(c.actual, c.desired, o) {
				got = append(got, fmt.Sprint(op))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%q\nwant\n%q", got, c.want)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	if err := Defaults().validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Options){
		"no link":         func(o *Options) { o.Link = "" },
		"a path":          func(o *Options) { o.Link = "../all" },
		"too long":        func(o *Options) { o.Link = "flatmesh01234567" },
		"main table":      func(o *Options) { o.Table = 254 },
		"after main":      func(o *Options) { o.RulePriority = 32766 },
		"before local":    func(o *Options) { o.RulePriority = 0 },
		"no mark":         func(o *Options) { o.Mark = 0 },
		"kernel protocol": func(o *Options) { o.Protocol = 2 },
		"wide protocol":   func(o *Options) { o.Protocol = 256 },
	} {
		o := Defaults()
		change(&o)
		if o.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
