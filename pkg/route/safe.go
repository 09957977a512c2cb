package route

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Local is what no route of flatmesh's may take away from a node.
type Local struct {
	// Addrs are the node's own addresses, those on Options.Link aside.
	Addrs []netip.Addr
	// Connected are the prefixes that the node reaches without a next hop, by
	// interfaces other than Options.Link: bridges, attached subnets, and ranges
	// that the local table holds.
	Connected []netip.Prefix
	// Routed are the prefixes that the main table sends to a next hop or refuses.
	// Such a route counts where it lies inside a range, as those to the cluster's
	// other nodes do; one that covers a range is to it as the default route is.
	Routed []netip.Prefix
	// Protected are the own Cluster's and Network's claims.
	Protected []netip.Prefix
	// Hosts are addresses that must be reached outside every tunnel: peers'
	// endpoints, the control plane, gateways.
	Hosts []Host
}

// Host is an address on the underlay, and whose it is.
type Host struct {
	Addr netip.Addr
	// What is a phrase for messages: "the endpoint of west/n1".
	What string
}

// Refusal is a prefix that is not routed, and why.
type Refusal struct {
	Prefix netip.Prefix `json:"prefix"`
	Reason mesh.Reason  `json:"reason"`
	// Detail says what it overlaps: "10.9.0.0/24 covers 10.9.0.5, the endpoint of west/n1".
	Detail string `json:"detail"`
}

// Safe splits prefixes into those that may be routed into the mesh, or made
// unreachable, and those that overlap something local, in the order given. The
// detail names one overlap: of the claims, else of the hosts, else of the node's
// addresses, else of the connected prefixes, else of the routed ones; among
// those the lowest by address and length.
//
// It costs O((n+m) log m) for n prefixes and m local things.
func Safe(prefixes []netip.Prefix, l Local) (ok []netip.Prefix, refused []Refusal) {
	things := l.index()
	for _, p := range prefixes {
		if detail := overlap(p, things); detail != "" {
			refused = append(refused, Refusal{Prefix: p, Reason: mesh.ReasonUnsafeRange, Detail: detail})
		} else {
			ok = append(ok, p)
		}
	}
	return ok, refused
}

func overlap(p netip.Prefix, things []things) string {
	if err := mesh.ValidatePrefix(p); err != nil {
		return err.Error()
	}
	for i := range things {
		if t, ok := things[i].first(p); ok {
			return describe(p, t)
		}
	}
	return ""
}

func describe(p netip.Prefix, t thing) string {
	verb := "covers"
	switch {
	case t.prefix == p:
		verb = "is"
	case t.prefix.Bits() < p.Bits():
		verb = "lies in"
	}
	if t.prefix.IsSingleIP() {
		return fmt.Sprintf("%v %s %v, %s", p, verb, t.prefix.Addr(), t.what)
	}
	return fmt.Sprintf("%v %s %v, %s", p, verb, t.prefix, t.what)
}

// thing is something local.
type thing struct {
	prefix netip.Prefix
	what   string
}

func (t thing) compare(o thing) int {
	return cmp.Or(mesh.ComparePrefix(t.prefix, o.prefix), cmp.Compare(t.what, o.what))
}

// things is one kind of thing, sorted.
type things struct {
	sorted []thing
	// lengths are the prefix lengths that occur, ascending: few, as a rule, so that
	// a look for what covers a prefix does not try all 128.
	lengths []int
	// insideOnly: those that cover a prefix do not count.
	insideOnly bool
}

func (l Local) index() []things {
	claims := prefixThings(l.Protected, "a range of the own cluster or network")
	var hosts things
	for _, h := range l.Hosts {
		hosts.add(mesh.HostPrefix(h.Addr.Unmap().WithZone("")), h.What)
	}
	var addrs things
	for _, a := range l.Addrs {
		addrs.add(mesh.HostPrefix(a.Unmap().WithZone("")), "an address of this node")
	}
	connected := prefixThings(l.Connected, "which this node is connected to")
	routed := prefixThings(l.Routed, "which this node routes elsewhere")
	routed.insideOnly = true
	all := []things{claims, hosts, addrs, connected, routed}
	for i := range all {
		all[i].sort()
	}
	return all
}

func prefixThings(prefixes []netip.Prefix, what string) (t things) {
	for _, p := range prefixes {
		t.add(p.Masked(), what)
	}
	return t
}

func (t *things) add(p netip.Prefix, what string) {
	if p.IsValid() {
		t.sorted = append(t.sorted, thing{p, what})
	}
}

func (t *things) sort() {
	slices.SortFunc(t.sorted, thing.compare)
	for _, x := range t.sorted {
		t.lengths = append(t.lengths, x.prefix.Bits())
	}
	slices.Sort(t.lengths)
	t.lengths = slices.Compact(t.lengths)
}

// first returns the lowest thing that overlaps p. Whatever covers p sorts before
// it, the widest first; whatever p covers follows it at once.
func (t *things) first(p netip.Prefix) (thing, bool) {
	if !t.insideOnly {
		for _, bits := range t.lengths {
			if bits >= p.Bits() {
				break
			}
			wider := netip.PrefixFrom(p.Addr(), bits).Masked()
			if i := t.search(wider); i < len(t.sorted) && t.sorted[i].prefix == wider {
				return t.sorted[i], true
			}
		}
	}
	if i := t.search(p); i < len(t.sorted) && p.Overlaps(t.sorted[i].prefix) {
		return t.sorted[i], true
	}
	return thing{}, false
}

// search returns the index of the first thing that is not lower than p.
func (t *things) search(p netip.Prefix) int {
	i, _ := slices.BinarySearchFunc(t.sorted, p, func(t thing, p netip.Prefix) int { return mesh.ComparePrefix(t.prefix, p) })
	return i
}
