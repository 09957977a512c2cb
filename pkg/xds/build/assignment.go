package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Assignment is what the clients of one view key get of one service port.
type Assignment struct {
	// Name is the name of the EDS resource.
	Name string
	// Direct are the pods that are reached at their own addresses.
	Direct []Direct
	// Remote are the clusters of which something is behind a gateway, or is direct
	// with a gateway as its standby.
	Remote []Remote
	// GatewayPriority is the level at which gateways take their share for the pods
	// behind them: 0, or the one after what a service prefers. It cannot lie before
	// that of any Direct: a gateway picks any pod of its cluster, so it never is
	// what is preferred.
	GatewayPriority uint8
}

// Direct is a pod that is reached at its own address.
type Direct struct {
	Addr netip.AddrPort
	Node mesh.NodeID
	// Region and Zone are those of its node; empty where it has none.
	Region, Zone string
	// Reason is why it is direct: local, native or tunnel.
	Reason mesh.Reason
	// Priority is 0 unless the service prefers the client's cluster or zone.
	Priority uint8
}

// Remote is what another cluster's gateways do for the clients.
type Remote struct {
	Cluster string
	// Pods counts the ready pods of the port that only the gateways reach: their
	// weight.
	Pods int
	// Standby: pods of the cluster are direct, and the gateways stand by for them.
	Standby bool
	// Serving and StandbyAddrs are the gateways' ports for each of the two uses.
	Serving, StandbyAddrs []netip.AddrPort
	// Reason is why there are no gateways; empty where Serving is not.
	Reason mesh.Reason
}

// maxLevel is the last level that Direct may have. Envoy takes priorities up to
// 128, and two may follow. Nobody has more than a few.
const maxLevel = 126

// maxPods bounds the weight of one cluster, so that weights can be computed in 64
// bits. Kubernetes supports 150,000 pods a cluster.
const maxPods = 1 << 24

// Normal returns the assignment in the one form that clients accept and that EDS
// encodes. Each address occurs once: a pod's earlier priority goes first, pods go
// before gateways, serving ports before standby ports, and clusters by name.
// Addresses that nobody can dial are dropped, so that no bad one withholds a
// service. Levels are contiguous from 0. A standby is only for a cluster of which
// something is direct. The receiver is not changed, and may share its pods.
func (a Assignment) Normal() Assignment {
	n := len(a.Direct)
	for i := range a.Remote {
		n += len(a.Remote[i].Serving) + len(a.Remote[i].StandbyAddrs)
	}
	seen := make(addrSet, n)
	var last uint8
	a.Direct, last = normalDirect(a.Direct, seen)
	behind := a.GatewayPriority > last
	a.GatewayPriority = 0
	if n := len(a.Direct); n > 0 {
		a.GatewayPriority = a.Direct[n-1].Priority
		if behind {
			a.GatewayPriority++
		}
	}
	a.Remote = normalRemote(a, seen)
	return a
}

// normalDirect returns the pods, and the last priority that was given.
func normalDirect(in []Direct, seen addrSet) (out []Direct, last uint8) {
	if isNormal(in, seen) {
		if len(in) > 0 {
			last = in[len(in)-1].Priority
		}
		return in, last
	}
	clear(seen)
	out = slices.Clone(in)
	for i := range out {
		out[i].Addr = unmap(out[i].Addr)
		out[i].Priority = min(out[i].Priority, maxLevel)
	}
	slices.SortFunc(out, func(a, b Direct) int { return compareDirect(&a, &b) })
	out = slices.DeleteFunc(out, func(d Direct) bool { return !seen.admit(d.Addr) })
	level := uint8(0)
	for i := range out {
		if i > 0 && out[i].Priority != last {
			level++
		}
		last, out[i].Priority = out[i].Priority, level
	}
	return out, last
}

// isNormal reports whether pods are in their normal form, as those of a Normal or
// a ParseEDS are, and adds their addresses.
func isNormal(ds []Direct, seen addrSet) bool {
	level := uint8(0)
	for i := range ds {
		d := &ds[i]
		if i > 0 && d.Priority == level+1 {
			level++
		}
		if d.Priority != level || level > maxLevel || d.Addr.Addr().Is4In6() || !seen.admit(d.Addr) || i > 0 && compareDirect(&ds[i-1], d) > 0 {
			return false
		}
	}
	return true
}

// compareDirect orders by priority, locality and address. cmp.Or would compare
// all of it, and nearly always the address decides.
func compareDirect(a, b *Direct) int {
	if c := cmp.Compare(a.Priority, b.Priority); c != 0 {
		return c
	}
	if c := strings.Compare(a.Region, b.Region); c != 0 {
		return c
	}
	if c := strings.Compare(a.Zone, b.Zone); c != 0 {
		return c
	}
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	return cmp.Or(a.Node.Compare(b.Node), strings.Compare(string(a.Reason), string(b.Reason)))
}

// unmap writes an IPv4 address in its own form: clients compare text.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// addrSet holds the addresses that an assignment has so far.
type addrSet map[netip.AddrPort]struct{}

// admit adds an address, and reports whether it can be dialed and is new.
func (s addrSet) admit(a netip.AddrPort) bool {
	if ip := a.Addr(); !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" || a.Port() == 0 {
		return false
	}
	n := len(s)
	s[a] = struct{}{}
	return len(s) > n
}

func normalRemote(a Assignment, seen addrSet) []Remote {
	if len(a.Remote) == 0 {
		return nil
	}
	direct := make(map[string]bool)
	for i := range a.Direct {
		direct[a.Direct[i].Node.Cluster] = true
	}
	out := slices.Clone(a.Remote)
	slices.SortStableFunc(out, func(x, y Remote) int { return strings.Compare(x.Cluster, y.Cluster) })
	for i := range out {
		r := &out[i]
		r.Pods = min(max(r.Pods, 0), maxPods)
		given := len(r.Serving) > 0
		r.Serving = normalAddrs(r.Serving, seen)
		switch {
		case len(r.Serving) > 0:
			r.Reason = ""
		case given:
			// All of its addresses are taken.
			r.Reason = mesh.ReasonGatewayUnroutable
		default:
			r.Reason = cmp.Or(r.Reason, mesh.ReasonNoGateway)
		}
	}
	for i := range out {
		r := &out[i]
		if r.Standby = r.Standby && direct[r.Cluster]; r.Standby {
			r.StandbyAddrs = normalAddrs(r.StandbyAddrs, seen)
		} else {
			r.StandbyAddrs = nil
		}
	}
	return out
}

func normalAddrs(in []netip.AddrPort, seen addrSet) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(in))
	for _, a := range in {
		if a = unmap(a); seen.admit(a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// Demote returns the assignment, in its normal form, as it is where the tunnels
// to some nodes are down: each pod on them that a tunnel reached becomes one more
// behind its cluster's gateways, or is withheld where there are none. Nothing
// becomes Direct.
func (a Assignment) Demote(down func(mesh.NodeID) bool) Assignment {
	a = a.Normal()
	behind := map[string]int{}
	kept := a.Direct[:0:0]
	for _, d := range a.Direct {
		if d.Reason == mesh.ReasonTunnel && down(d.Node) {
			behind[d.Node.Cluster]++
			continue
		}
		kept = append(kept, d)
	}
	if len(behind) == 0 {
		return a
	}
	a.Direct = kept
	a.Remote = slices.Clone(a.Remote)
	for i := range a.Remote {
		r := &a.Remote[i]
		r.Pods += behind[r.Cluster]
		delete(behind, r.Cluster)
	}
	for cluster, pods := range behind {
		a.Remote = append(a.Remote, Remote{Cluster: cluster, Pods: pods, Reason: mesh.ReasonNoGateway})
	}
	return a.Normal()
}
