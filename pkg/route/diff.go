package route

import (
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// plan is Desired in the kernel's terms, as far as the node can hold it.
type plan struct {
	settings []setting
	addrs    []netip.Prefix
	routes   []Route
	rules    []Rule
}

func planOf(a Actual, d Desired, o Options) plan {
	var p plan
	source := map[mesh.Family]netip.Addr{}
	for _, addr := range d.Addrs {
		f := mesh.FamilyOf(addr)
		if _, dup := source[f]; dup || !a.has(f) {
			continue
		}
		source[f] = addr
		if a.LinkIndex != 0 {
			p.addrs = append(p.addrs, mesh.HostPrefix(addr))
		}
	}
	lead := map[mesh.Family]bool{}
	for _, dst := range d.Unreachable {
		if f := mesh.FamilyOf(dst.Addr()); a.has(f) {
			lead[f] = true
			p.routes = append(p.routes, Route{Dst: dst, Metric: unreachableMetric, Unreachable: true})
		}
	}
	for _, dst := range d.Via {
		f := mesh.FamilyOf(dst.Addr())
		if src, ok := source[f]; ok && a.LinkIndex != 0 {
			lead[f] = true
			p.routes = append(p.routes, Route{Dst: dst, Metric: viaMetric, Link: a.LinkIndex, Src: src})
		}
	}
	slices.SortFunc(p.routes, Route.compare)
	p.routes = slices.CompactFunc(p.routes, func(a, b Route) bool { return a.key() == b.key() })
	for _, f := range mesh.Families {
		if lead[f] {
			p.rules = append(p.rules, ruleFor(f, o))
		}
	}
	p.settings = settingsFor(o, d.Forward)
	return p
}

func (a Actual) has(f mesh.Family) bool { return f == mesh.IPv4 || a.IPv6 }

func ruleFor(f mesh.Family, o Options) Rule {
	return Rule{Family: f, Priority: o.RulePriority, Mark: o.Mark, Mask: ^uint32(0), Invert: true}
}

// Diff returns what to do, in order, to come from what the kernel holds to what
// it should: nothing where the two agree. Every prefix of the list, applied
// alone, leaves each remote range covered that was covered before and is still
// wanted: unreachable routes come before the rule, the rule before the routes
// into the interface, and whatever is added before anything is removed.
//
// Without the interface there are only unreachable routes and rules to hold; its
// other parts follow when it is there.
func Diff(a Actual, d Desired, o Options) []Op {
	want := planOf(a, d, o)
	var ops []Op
	for _, s := range want.settings {
		if v, exists := a.Settings[s.path]; exists && v != s.value {
			ops = append(ops, s)
		}
	}

	addrAdds, addrDels, moved := diffAddrs(a, want)
	have := make(map[routeKey]Route, len(a.Routes))
	for _, r := range a.Routes {
		have[r.key()] = r
	}
	var unreachable, via []Op
	wanted := make(map[routeKey]bool, len(want.routes))
	for _, r := range want.routes {
		wanted[r.key()] = true
		old, exists := have[r.key()]
		if exists && old == r && !slices.Contains(moved, r.Src) {
			continue
		}
		op := putRoute{r, exists}
		if r.Unreachable {
			unreachable = append(unreachable, op)
		} else {
			via = append(via, op)
		}
	}
	ops = append(ops, unreachable...)
	for _, r := range want.rules {
		if !slices.Contains(a.Rules, r) {
			ops = append(ops, addRule{r})
		}
	}
	if a.LinkIndex != 0 && !a.LinkUp {
		ops = append(ops, linkUp{o.Link, a.LinkIndex})
	}
	ops = append(ops, addrAdds...)
	ops = append(ops, via...)

	// What lies in an unreachable range goes before the range does.
	for _, unreachable := range []bool{false, true} {
		for _, r := range a.Routes {
			if r.Unreachable == unreachable && !wanted[r.key()] {
				ops = append(ops, delRoute{r})
			}
		}
	}
	for _, r := range a.Rules {
		if !slices.Contains(want.rules, r) {
			ops = append(ops, delRule{r})
		}
	}
	return append(ops, addrDels...)
}

// diffAddrs returns the operations on addresses. An address with another prefix
// length has to go before it can come back, and the kernel then takes it out of
// routes that had it as their source: those addresses are returned as moved.
func diffAddrs(a Actual, want plan) (adds, dels []Op, moved []netip.Addr) {
	for _, p := range want.addrs {
		if slices.Contains(a.Addrs, p) {
			continue
		}
		for _, old := range a.Addrs {
			if old.Addr() == p.Addr() {
				adds = append(adds, delAddr{old, a.LinkIndex})
				moved = append(moved, p.Addr())
			}
		}
		adds = append(adds, addAddr{p, a.LinkIndex})
	}
	for _, old := range a.Addrs {
		if !slices.Contains(want.addrs, old) && !slices.Contains(moved, old.Addr()) {
			dels = append(dels, delAddr{old, a.LinkIndex})
		}
	}
	return adds, dels, moved
}
