package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
)

// ClaimKind says what a claimed prefix is for.
type ClaimKind uint8

// The kinds of claim.
const (
	PodRange ClaimKind = iota + 1
	ServiceRange
	NodeRange
	TunnelRange
)

var claimKinds = map[ClaimKind]string{
	PodRange: "pod", ServiceRange: "service", NodeRange: "node", TunnelRange: "tunnel",
}

// String returns "pod", "service", "node" or "tunnel".
func (k ClaimKind) String() string { return claimKinds[k] }

// MarshalText writes the name.
func (k ClaimKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *ClaimKind) UnmarshalText(b []byte) error {
	for kind, name := range claimKinds {
		if name == string(b) {
			*k = kind
			return nil
		}
	}
	return fmt.Errorf("claim kind %q: want pod, service, node or tunnel", b)
}

// Claim is a Cluster's claim to a prefix, or the mesh's to its tunnel range.
type Claim struct {
	// Cluster is empty for the mesh's own tunnel range.
	Cluster string    `json:"cluster,omitempty"`
	Kind    ClaimKind `json:"kind"`
	// Node is set where a node's own prefix or address is the claim, because its
	// cluster declares no range of that kind.
	Node   string       `json:"node,omitempty"`
	Prefix netip.Prefix `json:"prefix"`
	// Order is when the claim was first registered: smaller is earlier. It is
	// unique within one set of claims and survives restarts.
	Order uint64 `json:"order"`
}

// Owner names who claims, for messages.
func (c Claim) Owner() string {
	switch {
	case c.Cluster == "":
		return "the mesh"
	case c.Node != "":
		return c.Cluster + "/" + c.Node
	default:
		return c.Cluster
	}
}

// String reads "pod range 10.1.0.0/16 of east".
func (c Claim) String() string {
	return fmt.Sprintf("%v range %v of %s", c.Kind, c.Prefix, c.Owner())
}

// Compare orders by first registration; ties by content, so that a sort of
// claims that were never numbered is stable too.
func (c Claim) Compare(o Claim) int {
	return cmp.Or(
		cmp.Compare(c.Order, o.Order),
		cmp.Compare(c.Cluster, o.Cluster),
		cmp.Compare(c.Kind, o.Kind),
		ComparePrefix(c.Prefix, o.Prefix),
		cmp.Compare(c.Node, o.Node),
	)
}

// Effect is what follows from a Conflict.
type Effect uint8

// The effects, from harmless to widest.
const (
	// Listed: harmless, only shown (service × service, node × node, service × node).
	Listed Effect = iota + 1
	// Yields: the later claim, Second, yields; the nodes whose pod prefixes lie
	// in it have no tunnels for the family (pod × pod, tunnel × pod).
	Yields
	// PairApart: the two clusters have no peers, routes or Direct paths between
	// them for the family (pod × another cluster's service or node range).
	PairApart
	// NoTunnels: the cluster has no tunnels for the family (service or node
	// range × tunnel range).
	NoTunnels
)

var effects = map[Effect]string{
	Listed: "listed", Yields: "yields", PairApart: "pair-apart", NoTunnels: "no-tunnels",
}

// String returns the effect's name as the JSON output has it.
func (e Effect) String() string { return effects[e] }

// MarshalText writes the name.
func (e Effect) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (e *Effect) UnmarshalText(b []byte) error {
	for effect, name := range effects {
		if name == string(b) {
			*e = effect
			return nil
		}
	}
	return fmt.Errorf("effect %q: want listed, yields, pair-apart or no-tunnels", b)
}

// Conflict is two claims that overlap, of different clusters or of a cluster
// and the mesh.
type Conflict struct {
	Effect Effect `json:"effect"`
	// First was registered before Second.
	First  Claim `json:"first"`
	Second Claim `json:"second"`
}

// Family returns the family in which the two claims overlap.
func (c Conflict) Family() Family { return FamilyOf(c.Second.Prefix.Addr()) }

// String says what overlaps with what, and what follows.
func (c Conflict) String() string {
	s := fmt.Sprintf("%v overlaps %v: ", c.Second, c.First)
	switch {
	case c.Effect == Yields && c.Second.Kind == TunnelRange:
		return s + fmt.Sprintf("the later claim yields, so there are no %v tunnels at all", c.Family())
	case c.Effect == Yields:
		return s + fmt.Sprintf("the later claim yields, so nodes of %s with pods in it have no %v tunnels", c.Second.Cluster, c.Family())
	case c.Effect == PairApart:
		return s + fmt.Sprintf("no %v tunnels between %s and %s", c.Family(), c.First.Cluster, c.Second.Cluster)
	case c.Effect == NoTunnels:
		return s + fmt.Sprintf("%s has no %v tunnels", cmp.Or(c.Second.Cluster, c.First.Cluster), c.Family())
	default:
		return s + "harmless"
	}
}
