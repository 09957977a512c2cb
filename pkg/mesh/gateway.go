package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// Gateway is an address that admits traffic into one Cluster.
type Gateway struct {
	Cluster string `json:"cluster"`
	// Name is where it was declared, "namespace/name" of a Service.
	Name string     `json:"name"`
	Addr netip.Addr `json:"address"`
	// Ports serve; StandbyPorts admit the same and are kept for the standby
	// priority, since an address may occur once in an assignment. Both are
	// sorted; StandbyPorts may be empty.
	Ports        []uint16 `json:"ports"`
	StandbyPorts []uint16 `json:"standbyPorts,omitempty"`
	// Lost: the gateway's process was connected to the control plane and has not
	// been for a while.
	Lost bool `json:"lost,omitempty"`
}

// Compare orders by cluster, address and name.
func (g Gateway) Compare(o Gateway) int {
	return cmp.Or(cmp.Compare(g.Cluster, o.Cluster), g.Addr.Compare(o.Addr), cmp.Compare(g.Name, o.Name))
}

// Equal reports whether two gateways say the same.
func (g Gateway) Equal(o Gateway) bool {
	return g.Cluster == o.Cluster && g.Name == o.Name && g.Addr == o.Addr && g.Lost == o.Lost &&
		slices.Equal(g.Ports, o.Ports) && slices.Equal(g.StandbyPorts, o.StandbyPorts)
}
