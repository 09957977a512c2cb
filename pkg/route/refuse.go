package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// ErrCannotRefuse is wrapped by errors that say that this kernel cannot refuse
// packets: it lacks nftables or a part of it. Everything else of a Table works
// without.
var ErrCannotRefuse = errors.New("this kernel cannot refuse packets")

// Refuse has the node answer packets to the prefixes, and to no others, instead
// of sending them into Options.Link: TCP with a reset, all else with "port
// unreachable" (ICMP or ICMPv6). It is for the pod prefixes of peers whose
// tunnels are Down, where the packets would be lost in silence.
//
// Established connections break at their next transmission or retransmission,
// from then on new ones are refused at once, and a socket that only waits is told
// nothing. That holds for packets of the node's pods and of the node itself.
// Those with Options.Mark, WireGuard's own, pass.
//
// keep are the tunnel addresses of the node and of all peers: what shows that a
// tunnel is Up again must pass. A prefix that covers one of them, or that could
// never be routed, is not refused; the error says so, and the others are.
//
// The rules lie in an nftables table of their own, which is there while something
// is refused. It is the kernel's, stays when the Table is closed, and a later
// Refuse, of another process too, changes what differs, in one transaction: no
// packet meets a state in between. Refuse of the same prefixes changes nothing.
//
// It does not use what Observe and Apply use, so it may run beside them, but
// neither beside itself nor beside Cleanup.
func (t *Table) Refuse(ctx context.Context, prefixes []netip.Prefix, keep []netip.Addr) error {
	want, rejected := refusable(prefixes, keep)
	return errors.Join(append(rejected, t.refuse(ctx, want))...)
}

func (t *Table) refuse(ctx context.Context, want []netip.Prefix) error {
	have, err := t.observeFilter(ctx)
	if errors.Is(err, ErrCannotRefuse) && len(want) == 0 {
		return nil // nor does it refuse anything
	}
	if err != nil {
		return err
	}
	return t.applyFilter(ctx, diffFilter(have, want))
}

// Refused returns the prefixes to which the kernel refuses packets, sorted,
// whoever asked for them. A table that somebody has altered counts as if it
// refused nothing; the next Refuse replaces it.
func (t *Table) Refused(ctx context.Context) ([]netip.Prefix, error) {
	f, err := t.observeFilter(ctx)
	if err != nil || !f.sound {
		return nil, err
	}
	return f.refused, nil
}

// CanRefuse reports whether the kernel has all that Refuse needs: nil, or an
// error that wraps ErrCannotRefuse where it is the kernel's fault. It loads the
// modules that are missing, so that a later Refuse need not, and changes nothing
// else.
func (t *Table) CanRefuse(ctx context.Context) error {
	if _, err := t.observeFilter(ctx); err != nil {
		return err
	}
	return t.tryFilter(ctx)
}

// refusable returns the prefixes that may be refused, sorted and none within
// another, and why the rest may not.
func refusable(prefixes []netip.Prefix, keep []netip.Addr) (ok []netip.Prefix, rejected []error) {
	var kept things
	for _, a := range keep {
		kept.add(mesh.HostPrefix(a.Unmap().WithZone("")), "a tunnel address")
	}
	kept.sort()
	for _, p := range prefixes {
		if detail := overlap(p, []things{kept}); detail != "" {
			rejected = append(rejected, fmt.Errorf("refuse packets: %s", detail))
			continue
		}
		ok = append(ok, p)
	}
	return widest(ok), rejected
}

// widest sorts prefixes and leaves out those that another covers: a set of
// intervals takes no two that overlap.
func widest(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.SortedFunc(slices.Values(prefixes), mesh.ComparePrefix)
	var out []netip.Prefix
	for _, p := range sorted {
		// Whatever covers p sorts before it, and so does all that lies between.
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// filter is what the kernel holds of the table that refuses packets.
type filter struct {
	exists bool
	// sound: its chains, rules and sets are those that this version makes, for
	// these options.
	sound bool
	// refused is sorted, and no prefix lies within another.
	refused []netip.Prefix
}

// filterChange is one transaction: all of it happens, or nothing. Its parts are
// done in the order of its fields.
type filterChange struct {
	drop, create bool
	// allow goes before refuse, which may overlap it.
	allow, refuse []netip.Prefix
}

// diffFilter returns how to come from what the kernel holds to what it should: the
// zero value where the two agree. want is as refusable returns it.
func diffFilter(have filter, want []netip.Prefix) filterChange {
	switch {
	case len(want) == 0:
		return filterChange{drop: have.exists}
	case !have.exists || !have.sound:
		return filterChange{drop: have.exists, create: true, refuse: want}
	}
	return filterChange{allow: without(have.refused, want), refuse: without(want, have.refused)}
}

// without returns what of sorted is not in other, which is sorted too.
func without(sorted, other []netip.Prefix) (out []netip.Prefix) {
	for _, p := range sorted {
		if _, found := slices.BinarySearchFunc(other, p, mesh.ComparePrefix); !found {
			out = append(out, p)
		}
	}
	return out
}

func (c filterChange) empty() bool {
	return !c.drop && !c.create && len(c.allow) == 0 && len(c.refuse) == 0
}

// maxNamed is how many prefixes an error names one by one.
const maxNamed = 5

// String reads "no longer refuse 10.2.0.0/24; refuse 10.3.0.0/24, 10.4.0.0/24".
func (c filterChange) String() string {
	var parts []string
	if c.drop {
		parts = append(parts, "remove the table of refusals")
	}
	if c.create {
		parts = append(parts, "make the table of refusals")
	}
	for _, list := range []struct {
		verb     string
		prefixes []netip.Prefix
	}{{"no longer refuse ", c.allow}, {"refuse ", c.refuse}} {
		if n := len(list.prefixes); n > 0 {
			var names []string
			for _, p := range list.prefixes[:min(n, maxNamed)] {
				names = append(names, p.String())
			}
			if n > maxNamed {
				names = append(names, fmt.Sprintf("%d more", n-maxNamed))
			}
			parts = append(parts, list.verb+strings.Join(names, ", "))
		}
	}
	return strings.Join(parts, "; ")
}
