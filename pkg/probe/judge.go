package probe

import (
	"math/bits"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// What it takes to change a tunnel's state.
const (
	lostForDown    = 3
	blockedForDown = 2
	goodForUp      = 3
	goodForUpMax   = 16
	flapWindow     = time.Minute
	// skewTolerated is how long the far end may hold something else of us than we
	// expect: both ends apply a change within it.
	skewTolerated = 2 * time.Second
	historyLen    = 20
)

// Kind says what was seen of a tunnel.
type Kind uint8

// The kinds of Observation.
const (
	// Void: the round says nothing (a late timer, a send that failed locally).
	Void Kind = iota
	// Reply: the echo came back within its deadline.
	Reply
	// Late: the echo came back after its probe was judged Lost (or ICMP).
	Late
	// Lost: the probe's deadline passed, and nothing came back.
	Lost
	// ICMP: the echo's deadline passed, but the far kernel answered an ICMP echo
	// that was sent with it or after it.
	ICMP
	// Handshake: WireGuard has shaken hands with the peer at some time.
	Handshake
)

// Observation is one thing seen of a tunnel. A probe ends in exactly one of
// Void, Reply, Lost and ICMP; a Late may follow a Lost or an ICMP.
type Observation struct {
	Kind Kind
	// RTT is set with Reply and Late.
	RTT time.Duration
	// NotApplied: the reply says that the far end holds nothing of us, or not
	// what it should. NotForwarding: it does not forward a family that we need.
	NotApplied, NotForwarding bool
}

// State is what is known of one tunnel. It is a small value; the zero State is
// that of a tunnel of which nothing was seen yet. Only Judge makes new ones.
type State struct {
	state  mesh.TunnelState
	reason mesh.Reason

	since      time.Time // of state
	lastReply  time.Time
	lastDown   time.Time // last change from Up to Down
	notApplied time.Time // first of the present run of NotApplied replies

	rtt     time.Duration
	history uint32 // one bit a probe, the newest lowest; set: no echo
	probes  uint8  // how many bits of history count

	missed  uint8 // probes in a row without an echo
	dead    uint8 // probes in a row without any answer, ICMP included
	blocked uint8 // replies in a row with NotForwarding
	good    uint8 // good replies in a row while Down
	need    uint8 // good replies that Down → Up takes; 0 means goodForUp

	shaken bool // something once came through the tunnel, or hands were shaken
}

// Status returns the judged state and its reason.
func (s State) Status() mesh.TunnelStatus {
	if s.reason == "" {
		return mesh.TunnelStatus{State: s.state, Reason: mesh.ReasonProbing}
	}
	return mesh.TunnelStatus{State: s.state, Reason: s.reason}
}

// RTT returns the smoothed round-trip time; zero until an echo came back.
func (s State) RTT() time.Duration { return s.rtt }

// Loss returns the part of the last 20 probes that brought no echo in time, 0 to 1.
func (s State) Loss() float64 {
	if s.probes == 0 {
		return 0
	}
	return float64(bits.OnesCount32(s.history)) / float64(s.probes)
}

// Since returns when the tunnel last changed between Unknown, Up and Down, a new
// reason alone not counted; zero if it never did.
func (s State) Since() time.Time { return s.since }

// LastReply returns when an echo last came back; zero if none ever did.
func (s State) LastReply() time.Time { return s.lastReply }

// undecided reports whether a few more probes will settle something, so that
// they should be quick.
func (s State) undecided() bool {
	running := func(n uint8) bool { return n > 0 && n < lostForDown }
	switch s.state {
	case mesh.Up:
		return running(s.missed) || running(s.dead) || s.blocked > 0 || !s.notApplied.IsZero()
	case mesh.Down:
		return s.good > 0
	default:
		return true
	}
}

// Judge returns the state after an observation.
//
// An Unknown tunnel is Up with the first good reply: first light. An Up one is
// Down after three probes lost in a row, two replies in a row that do not
// forward, or two seconds of replies of a peer that does not hold us. A Down one
// is Up after three good replies in a row; each Down within a minute of the last
// doubles that up to 16, until it stays Up for a minute. An answer by ICMP keeps
// Up what is Up (agent-away) and makes nothing Up.
//
// A late reply only teaches the round-trip time, and with it a longer deadline
// for the next probes: a path that stays slower than the longest deadline is
// lost, while one that became slower is not lost for long.
//
// now may go backwards: what then lies in the future is taken to be now.
func Judge(s State, o Observation, now time.Time) State {
	for _, t := range []*time.Time{&s.since, &s.lastReply, &s.lastDown, &s.notApplied} {
		if t.After(now) {
			*t = now
		}
	}
	switch o.Kind {
	case Void:
	case Reply:
		s.replied(o, now)
	case Late:
		s.lastReply = now
		s.rtt = max(s.rtt, min(o.RTT, maxTimeout))
		s.heard()
	case Lost:
		s.lost(false, now)
	case ICMP:
		s.lost(true, now)
	case Handshake:
		s.heard()
	}
	return s
}

func (s *State) replied(o Observation, now time.Time) {
	s.record(0)
	s.smooth(o.RTT)
	s.heard()
	s.lastReply = now
	s.missed, s.dead = 0, 0
	switch {
	case !o.NotApplied:
		s.notApplied = time.Time{}
	case s.notApplied.IsZero():
		s.notApplied = now
	}
	if o.NotForwarding {
		s.blocked = saturate(s.blocked)
	} else {
		s.blocked = 0
	}

	switch {
	case o.NotApplied && (s.state == mesh.Down || now.Sub(s.notApplied) >= skewTolerated):
		s.become(mesh.Down, mesh.ReasonNotApplied, now)
	case o.NotForwarding && s.blocked >= blockedForDown:
		s.become(mesh.Down, mesh.ReasonForwardBlocked, now)
	case o.NotApplied && s.state == mesh.Unknown:
		s.reason = mesh.ReasonNotApplied
	case o.NotApplied || o.NotForwarding:
	case s.state == mesh.Down && s.good+1 < max(s.need, goodForUp):
		s.good++
		return
	default:
		s.become(mesh.Up, mesh.ReasonTunnel, now)
	}
	s.good = 0
}

func (s *State) lost(icmp bool, now time.Time) {
	s.record(1)
	s.good = 0
	s.missed = saturate(s.missed)
	s.dead = saturate(s.dead)
	if icmp {
		s.dead = 0
		s.heard()
	}
	switch {
	case s.dead >= lostForDown, s.missed >= lostForDown && s.state == mesh.Unknown:
		s.become(mesh.Down, s.silence(), now)
	case s.missed >= lostForDown && s.state == mesh.Up:
		s.reason = mesh.ReasonAgentAway
	}
}

func (s *State) silence() mesh.Reason {
	if s.shaken {
		return mesh.ReasonProbeLost
	}
	return mesh.ReasonNoHandshake
}

// heard notes that WireGuard works between the two, which a reason given before
// may have denied.
func (s *State) heard() {
	s.shaken = true
	if s.reason == mesh.ReasonNoHandshake {
		s.reason = mesh.ReasonProbeLost
	}
}

func (s *State) become(to mesh.TunnelState, reason mesh.Reason, now time.Time) {
	if s.state == mesh.Up && to == mesh.Down {
		need := max(s.need, goodForUp)
		switch {
		case now.Sub(s.since) >= flapWindow:
			need = goodForUp
		case !s.lastDown.IsZero() && now.Sub(s.lastDown) < flapWindow:
			need = min(2*need, goodForUpMax)
		}
		s.need = need
		s.lastDown = now
	}
	if s.state != to {
		s.since = now
	}
	s.state, s.reason = to, reason
}

func (s *State) record(bit uint32) {
	s.history = (s.history<<1 | bit) & (1<<historyLen - 1)
	s.probes = min(s.probes+1, historyLen)
}

// smooth averages as TCP does (RFC 6298, section 2).
func (s *State) smooth(rtt time.Duration) {
	rtt = max(rtt, 1)
	if s.rtt == 0 {
		s.rtt = rtt
		return
	}
	s.rtt += (rtt - s.rtt) / 8
}

func saturate(n uint8) uint8 {
	if n == 1<<8-1 {
		return n
	}
	return n + 1
}
