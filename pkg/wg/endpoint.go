package wg

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// RejectAfterTime is how long a session lasts after its handshake
	// (REJECT_AFTER_TIME, WireGuard whitepaper section 6.1).
	RejectAfterTime = 180 * time.Second
	// EndpointTrial is how long an endpoint that was set is left to prove itself
	// before the next candidate has its turn: three of WireGuard's attempts to
	// shake hands (REKEY_TIMEOUT, 5 s). Without it every pass of a busy loop would
	// take the next, and none would ever be tried.
	EndpointTrial = 15 * time.Second
)

// chooseEndpoint returns the endpoint that an existing peer should have.
//
// While the handshake is fresh the endpoint in use works, also one that the
// peer has moved to and that is no candidate, and it stays. A peer that does
// not answer there gets the next candidate, in turn. Rotate overrules a fresh
// handshake, since packets may be lost on a session that still lives.
//
// A handshake later than now, which a clock set back leaves, counts as fresh;
// Rotate is what gets out of that.
func chooseEndpoint(p Peer, a ActualPeer, now time.Time) netip.AddrPort {
	if len(p.Candidates) == 0 {
		return a.Endpoint
	}
	i := slices.Index(p.Candidates, a.Endpoint) // -1 makes the first the next
	fresh := !a.LastHandshake.IsZero() && now.Sub(a.LastHandshake) < RejectAfterTime
	onTrial := i >= 0 && !a.EndpointSince.IsZero() && now.Sub(a.EndpointSince) < EndpointTrial
	if a.Endpoint.IsValid() && (fresh && !p.Rotate || onTrial) {
		return a.Endpoint
	}
	return p.Candidates[(i+1)%len(p.Candidates)]
}
