package probe

import (
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Counters are what WireGuard says of one peer.
type Counters struct {
	// Sent is how many bytes were sent to it since it was added, as WireGuard
	// counts them: UDP payloads, its own messages included.
	Sent uint64
	// Shaken: hands were shaken with it at some time.
	Shaken bool
}

// Sizes of WireGuard's messages (its white paper, section 5.4).
const (
	initiationSize = 148
	responseSize   = 92
	keepaliveSize  = 32
)

// How often WireGuard sends them at most (section 6.1).
const (
	rekeyTimeout     = 5 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// sealedSize returns how many bytes WireGuard counts for a packet of n bytes.
func sealedSize(n int) uint64 { return uint64((n+15)/16*16 + keepaliveSize) }

// surplus follows a counter that also counts packets of our own. Ours are counted
// when they are sent and may show in the counter a reading later, so what goes
// beyond both of the last two differences is not ours.
type surplus struct{ last, before int64 }

// over returns by how much the difference exceeds the last two.
func (s *surplus) over(counted, own uint64) uint64 {
	d := int64(counted - own)
	over := d - max(s.last, s.before)
	s.last, s.before = d, s.last
	return uint64(max(over, 0))
}

// meter finds which peers get packets other than our own, from counters alone.
type meter struct {
	link   surplus
	linked bool
	peers  map[mesh.NodeID]*peerMeter
	read   time.Time
}

type peerMeter struct {
	surplus
	sent uint64
}

// linkBusy reports whether the tunnel device was given packets beyond our own
// since it was last asked. tx and own count from any beginning.
func (m *meter) linkBusy(tx, own uint64) bool {
	over := m.link.over(tx, own)
	if !m.linked {
		m.linked = true
		m.link.before = m.link.last
		return false
	}
	return over > 0
}

// busy returns the peers that were sent data beyond our own since the last call.
// A peer that is new, or whose counter began anew, is only noted.
func (m *meter) busy(now time.Time, counters map[mesh.NodeID]Counters, own func(mesh.NodeID) uint64) []mesh.NodeID {
	var out []mesh.NodeID
	age := now.Sub(m.read)
	peers := make(map[mesh.NodeID]*peerMeter, len(counters))
	for id, c := range counters {
		p := m.peers[id]
		if p == nil || c.Sent < p.sent {
			d := int64(c.Sent - own(id))
			p = &peerMeter{surplus: surplus{last: d, before: d}}
		} else if over := p.over(c.Sent, own(id)); over > 0 && !chatter(over, age) {
			out = append(out, id)
		}
		p.sent = c.Sent
		peers[id] = p
	}
	m.peers, m.read = peers, now
	return out
}

// chatter reports whether n bytes may be nothing but handshakes and keepalives of
// one peer, sent within the time given.
func chatter(n uint64, within time.Duration) bool {
	handshakes := min(uint64(within/rekeyTimeout), 8) + 1
	keepalives := min(uint64(within/keepaliveTimeout), 4) + 1
	if n > handshakes*initiationSize+keepalives*keepaliveSize {
		return false
	}
	for i := range handshakes + 1 {
		for r := range handshakes - i + 1 {
			for k := range keepalives + 1 {
				if n == i*initiationSize+r*responseSize+k*keepaliveSize {
					return true
				}
			}
		}
	}
	return false
}
