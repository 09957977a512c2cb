package mesh

import "fmt"

// TunnelState is what is known of a directed pair of nodes.
type TunnelState uint8

// The states of a tunnel.
const (
	Unknown TunnelState = iota
	Up
	Down
)

var tunnelStates = [...]string{Unknown: "Unknown", Up: "Up", Down: "Down"}

// String returns "Unknown", "Up" or "Down".
func (s TunnelState) String() string {
	if int(s) < len(tunnelStates) {
		return tunnelStates[s]
	}
	return fmt.Sprintf("TunnelState(%d)", s)
}

// MarshalText writes the name.
func (s TunnelState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *TunnelState) UnmarshalText(b []byte) error {
	for state, name := range tunnelStates {
		if name == string(b) {
			*s = TunnelState(state)
			return nil
		}
	}
	return fmt.Errorf("tunnel state %q: want Unknown, Up or Down", b)
}

// Reason says in one word why something is as it is. Every surface shows it.
type Reason string

// Why a tunnel is in its state.
const (
	// ReasonProbing: not yet judged.
	ReasonProbing Reason = "probing"
	// ReasonTunnel: echoes return and both ends hold each other.
	ReasonTunnel Reason = "tunnel"
	// ReasonAgentAway: the far kernel answers, its agent does not. Still Up.
	ReasonAgentAway Reason = "agent-away"
	// ReasonNoHandshake: WireGuard never shook hands with the peer.
	ReasonNoHandshake Reason = "no-handshake"
	// ReasonProbeLost: echoes used to return and no longer do.
	ReasonProbeLost Reason = "probe-lost"
	// ReasonForwardBlocked: the far node answers but does not forward to its pods.
	ReasonForwardBlocked Reason = "forward-blocked"
	// ReasonNotApplied: the far node answers but does not hold our key or prefixes.
	ReasonNotApplied Reason = "not-applied"
	// ReasonUnsafeRange: a route to the peer's pods would cover something local.
	ReasonUnsafeRange Reason = "unsafe-range"
	// ReasonNoAgent: no agent has registered on the far node.
	ReasonNoAgent Reason = "no-agent"
)

// Why a node's prefix or family takes no part.
const (
	ReasonOutsideRange Reason = "outside-range"
	ReasonDuplicate    Reason = "duplicate"
	ReasonNoPrefix     Reason = "no-prefix"
	ReasonOverlap      Reason = "overlap"
	ReasonNoTunnelAddr Reason = "no-tunnel-address"
)

// TunnelStatus is the judged state of one tunnel, seen from one node.
type TunnelStatus struct {
	State  TunnelState `json:"state"`
	Reason Reason      `json:"reason"`
}
