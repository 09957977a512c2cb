package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// Pod is a pod as its node's agent is told of it, for its certificate.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID tells a pod from an earlier one of the same name; empty where the source
	// has none.
	UID string `json:"uid,omitempty"`
	// Node is the name of its node in its cluster.
	Node           string       `json:"node"`
	ServiceAccount string       `json:"serviceAccount"`
	Addresses      []netip.Addr `json:"addresses,omitempty"`
}

// Compare orders by namespace, name and UID.
func (p Pod) Compare(o Pod) int {
	return cmp.Or(cmp.Compare(p.Namespace, o.Namespace), cmp.Compare(p.Name, o.Name), cmp.Compare(p.UID, o.UID))
}

// Equal reports whether two pods say the same.
func (p Pod) Equal(o Pod) bool {
	return p.Compare(o) == 0 && p.Node == o.Node && p.ServiceAccount == o.ServiceAccount && slices.Equal(p.Addresses, o.Addresses)
}
