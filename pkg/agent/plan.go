package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/probe"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// view is what the control plane told this node.
type view struct {
	node    mesh.NodeConfig
	cluster mesh.ClusterConfig
	peers   []mesh.Peer // sorted by node
}

// inputs is everything that a plan depends on.
type inputs struct {
	view  view
	local route.Local
	// rotate holds the nodes whose endpoint in use does not work.
	rotate map[mesh.NodeID]bool
	key    wg.PrivateKey
	port   uint16
	mark   uint32
}

// refusal is a prefix that was not routed, and whose it is; Node is empty for a
// remote range.
type refusal struct {
	Node mesh.NodeID
	route.Refusal
}

// plan is what the node should look like.
type plan struct {
	device  wg.Desired
	route   route.Desired
	targets []probe.Target
	refused []refusal
	// owner maps a tunnel address to what this node holds of its node.
	owner map[netip.Addr]uint64
}

// makePlan computes what the node should look like. It routes nothing that is
// unsafe, and no prefix to two peers, whatever the control plane says.
func makePlan(in inputs) plan {
	var p plan
	own := in.view.node.Takes
	var peers []mesh.Peer
	keys := map[mesh.PublicKey]bool{in.key.PublicKey(): true}
	for _, q := range in.view.peers {
		// The control plane lets nobody register another's key; if it ever serves
		// one twice, the first peer keeps it and all others are as they were.
		if q.Node == in.view.node.Node || keys[q.Key] {
			continue
		}
		if q, ok := q.Only(own); ok {
			keys[q.Key] = true
			peers = append(peers, q)
		}
	}
	refused := p.judge(in, peers)
	taken := duplicates(peers, refused)

	p.device = wg.Desired{PrivateKey: in.key, ListenPort: in.port, FirewallMark: in.mark}
	p.owner = map[netip.Addr]uint64{}
	for _, q := range peers {
		target := probe.Target{Node: q.Node, Addr: q.TunnelAddrs[0]}
		var allowed []netip.Prefix
		for _, a := range slices.Compact(q.AllowedIPs()) {
			holder, duplicate := taken[claim{q.Node, a}]
			switch {
			case refused[a]:
				target.Refused = mesh.ReasonUnsafeRange
			case duplicate && holder != q.Node:
				target.Refused = mesh.ReasonDuplicate
				p.refused = append(p.refused, refusal{Node: q.Node, Refusal: route.Refusal{
					Prefix: a, Reason: mesh.ReasonDuplicate, Detail: fmt.Sprintf("%v is already routed to %v", a, holder),
				}})
			case duplicate: // inside another prefix of the same peer
			default:
				allowed = append(allowed, a)
			}
		}
		p.device.Peers = append(p.device.Peers, wg.Peer{
			Name: q.Node.String(), Key: q.Key, Candidates: reachable(q.Endpoints, in.local.Addrs), AllowedIPs: allowed, Rotate: in.rotate[q.Node],
		})
		p.route.Via = append(p.route.Via, allowed...)
		target.Expect = mesh.Digest(in.key.PublicKey(), in.view.node.AllowedIPs(q.Has))
		for _, f := range mesh.Families {
			if q.Has(f) {
				target.Families = append(target.Families, f)
			}
		}
		p.targets = append(p.targets, target)
		for _, a := range q.TunnelAddrs {
			p.owner[a] = mesh.Digest(q.Key, allowed)
		}
	}
	slices.SortFunc(p.device.Peers, func(a, b wg.Peer) int { return slices.Compare(a.Key[:], b.Key[:]) })
	slices.SortFunc(p.route.Via, mesh.ComparePrefix)
	// A peer's prefix outside every closed range is closed by itself, so that it
	// does not fall to the default route when the interface goes.
	for _, v := range p.route.Via {
		if !slices.ContainsFunc(p.route.Unreachable, func(u netip.Prefix) bool { return u.Overlaps(v) && u.Bits() <= v.Bits() }) {
			p.route.Unreachable = append(p.route.Unreachable, v)
		}
	}
	slices.SortFunc(p.route.Unreachable, mesh.ComparePrefix)

	for _, a := range in.view.node.TunnelAddrs {
		if own(mesh.FamilyOf(a)) {
			p.route.Addrs = append(p.route.Addrs, a)
		}
	}
	p.route.Forward = true
	slices.SortFunc(p.refused, func(a, b refusal) int {
		return cmp.Or(a.Node.Compare(b.Node), mesh.ComparePrefix(a.Prefix, b.Prefix))
	})
	return p
}

// judge fills in which remote ranges may be closed with an unreachable route,
// and returns the peers' prefixes that may not be routed.
func (p *plan) judge(in inputs, peers []mesh.Peer) map[netip.Prefix]bool {
	var all []netip.Prefix
	owner := map[netip.Prefix]mesh.NodeID{}
	for _, q := range peers {
		for _, a := range slices.Compact(q.AllowedIPs()) {
			all = append(all, a)
			owner[a] = q.Node
		}
	}
	_, refused := route.Safe(all, in.local)
	safe, refusedRemote := route.Safe(in.view.cluster.Remote, in.local)
	p.route.Unreachable = safe
	out := map[netip.Prefix]bool{}
	for _, r := range refused {
		out[r.Prefix] = true
		p.refused = append(p.refused, refusal{Node: owner[r.Prefix], Refusal: r})
	}
	for _, r := range refusedRemote {
		p.refused = append(p.refused, refusal{Refusal: r})
		// One address in a range must not open the whole of it.
		pieces, _ := route.Safe(mesh.Subtract(r.Prefix, localPrefixes(in.local)), in.local)
		p.route.Unreachable = append(p.route.Unreachable, pieces...)
	}
	return out
}

// localPrefixes lists what no route may overlap.
func localPrefixes(l route.Local) []netip.Prefix {
	out := slices.Concat(l.Connected, l.Routed, l.Protected)
	for _, a := range l.Addrs {
		out = append(out, mesh.HostPrefix(a))
	}
	for _, h := range l.Hosts {
		out = append(out, mesh.HostPrefix(h.Addr))
	}
	return out
}

// reachable leaves out the candidates of a family in which this node has no
// address: each would cost a try that cannot succeed. Where none is left all
// stay, since an address may come yet.
func reachable(candidates []netip.AddrPort, own []netip.Addr) []netip.AddrPort {
	out := slices.DeleteFunc(slices.Clone(candidates), func(c netip.AddrPort) bool {
		return !slices.ContainsFunc(own, func(a netip.Addr) bool {
			return mesh.FamilyOf(a) == mesh.FamilyOf(c.Addr()) && mesh.ValidateAddr(a) == nil
		})
	})
	if len(out) == 0 {
		return candidates
	}
	return out
}

// claim is a peer's claim to a prefix.
type claim struct {
	node   mesh.NodeID
	prefix netip.Prefix
}

// duplicates finds the prefixes that lie in one of another peer, or of the same
// one, and whose that is: the wider wins, of equals the peer that sorts first.
// The control plane never serves such peers; if it did, WireGuard would silently
// take the prefix from the one and give it to the other.
func duplicates(peers []mesh.Peer, refused map[netip.Prefix]bool) map[claim]mesh.NodeID {
	var all []claim
	for _, q := range peers {
		for _, a := range slices.Compact(q.AllowedIPs()) {
			if !refused[a] {
				all = append(all, claim{q.Node, a})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b claim) int { return cmp.Compare(a.prefix.Bits(), b.prefix.Bits()) })
	held := map[netip.Prefix]mesh.NodeID{}
	out := map[claim]mesh.NodeID{}
	for _, c := range all {
		if n, ok := holderOf(held, c.prefix); ok {
			out[c] = n
			continue
		}
		held[c.prefix] = c.node
	}
	return out
}

// holderOf returns who holds a prefix that p lies in. Lengths are walked rather
// than holders: there may be thousands of those.
func holderOf(held map[netip.Prefix]mesh.NodeID, p netip.Prefix) (mesh.NodeID, bool) {
	for bits := p.Bits(); bits >= 0; bits-- {
		if n, ok := held[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return n, true
		}
	}
	return mesh.NodeID{}, false
}
