package probe

import (
	"net/netip"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Target is a tunnel to probe: the node at its far end.
type Target struct {
	Node mesh.NodeID
	// Addr is its tunnel address. A target whose tunnel address is that of one
	// before it is never answered.
	Addr netip.Addr
	// Expect is the mesh.Digest that the far end should hold of us.
	Expect uint64
	// Families are those that the tunnel carries; the far end must forward each.
	Families []mesh.Family
	// Refused, if set, is why the tunnel is Down whatever the echoes say, such as
	// mesh.ReasonUnsafeRange. It is probed all the same.
	Refused mesh.Reason
}

// Change is a tunnel's change from one status to another. A change of the reason
// alone is one too.
type Change struct {
	Node     mesh.NodeID
	Old, New mesh.TunnelStatus
}

// Result is what is known of one target.
type Result struct {
	Target
	Status mesh.TunnelStatus
	// Since is when it came to be Unknown, Up or Down.
	Since time.Time
	// LastReply is when an echo last came back; zero if none ever did.
	LastReply time.Time
	// RTT is smoothed, and zero until an echo came back. Loss is the part of the
	// last 20 probes that was lost, 0 to 1.
	RTT  time.Duration
	Loss float64
	// Active: it had traffic within the last ten seconds.
	Active bool
	// Version is what the far agent said that it is.
	Version string
}
