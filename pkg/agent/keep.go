package agent

import (
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// keep adds to a plan what the node has beyond it: peers, their routes, and what
// closes remote ranges. It is for an agent that has started and knows only what
// an earlier run wrote to disk: that may be older than what that run last did,
// and nothing is removed before the control plane has told everything once.
func (p *plan) keep(device wg.Actual, kernel route.Actual) {
	planned := map[mesh.PublicKey]bool{}
	var taken []netip.Prefix
	for _, q := range p.device.Peers {
		planned[q.Key] = true
		taken = append(taken, q.AllowedIPs...)
	}
	for _, a := range device.Peers {
		if planned[a.Key] {
			continue
		}
		allowed := slices.DeleteFunc(slices.Clone(a.AllowedIPs), func(x netip.Prefix) bool {
			return slices.ContainsFunc(taken, x.Overlaps)
		})
		kept := wg.Peer{Name: "kept " + a.Key.String(), Key: a.Key, AllowedIPs: allowed, Keepalive: a.Keepalive}
		if a.Endpoint.IsValid() {
			kept.Candidates = []netip.AddrPort{a.Endpoint}
		}
		p.device.Peers = append(p.device.Peers, kept)
		for _, x := range allowed {
			if x.IsSingleIP() {
				p.owner[x.Addr()] = mesh.Digest(a.Key, allowed)
			}
		}
	}
	slices.SortFunc(p.device.Peers, func(a, b wg.Peer) int { return slices.Compare(a.Key[:], b.Key[:]) })

	add := func(to []netip.Prefix, x netip.Prefix) []netip.Prefix {
		if slices.Contains(to, x) {
			return to
		}
		return append(to, x)
	}
	for _, r := range kernel.Routes {
		if r.Unreachable {
			p.route.Unreachable = add(p.route.Unreachable, r.Dst)
		} else {
			p.route.Via = add(p.route.Via, r.Dst)
		}
	}
	for _, a := range kernel.Addrs {
		family := mesh.FamilyOf(a.Addr())
		if !slices.ContainsFunc(p.route.Addrs, func(b netip.Addr) bool { return mesh.FamilyOf(b) == family }) {
			p.route.Addrs = append(p.route.Addrs, a.Addr())
		}
	}
	slices.SortFunc(p.route.Via, mesh.ComparePrefix)
	slices.SortFunc(p.route.Unreachable, mesh.ComparePrefix)
}
