package probe

import (
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Budget is how many probes a second a node sends, over all its tunnels. The
// ICMP echoes sent beside probes while tunnels are being lost have a budget of
// the same size of their own.
const Budget = 400

// How often a tunnel is probed while the budget lasts.
const (
	activeEvery = 200 * time.Millisecond
	idleEvery   = 4 * time.Second
	newEvery    = time.Second
	downEvery   = 500 * time.Millisecond
	// newFor is how long a new tunnel is probed as fast as an active one.
	newFor = 5 * time.Second
	// activeFor is how long a tunnel counts as active after a packet.
	activeFor = 10 * time.Second

	minTimeout = 200 * time.Millisecond
	maxTimeout = time.Second
	// slack is what timers and queues may cost a detection bound.
	slack = 20 * time.Millisecond
	// grain is the shortest sleep while a verdict is due within a second, and
	// coarse the shortest otherwise: waking up costs more than a probe.
	grain  = 5 * time.Millisecond
	coarse = 25 * time.Millisecond
	// burst is how many probes may go out at once after a pause.
	burst = 20
)

// timeoutFor returns after which time a probe counts as lost, by the smoothed
// round-trip time of its tunnel (zero: unknown).
func timeoutFor(rtt time.Duration) time.Duration {
	if rtt == 0 {
		return maxTimeout
	}
	return min(max(2*rtt, minTimeout), maxTimeout)
}

// fast returns how often a tunnel is probed of which a verdict is due within a
// second. On a long path probes follow each other faster, since each takes longer to be
// lost; but not so fast that three are lost before an ICMP echo, sent when the first
// is, can return (half a timeout is one round trip).
func fast(timeout time.Duration) time.Duration {
	return max(min((time.Second-slack-timeout)/lostForDown, activeEvery), timeout/4+slack)
}

// detection returns within which time n active tunnels that are all lost at once
// are all Down, for round trips of up to 100 ms; with n ≤ 60 of up to 260 ms. Longer
// ones take what their timeouts take more.
func detection(n int) time.Duration {
	return max(time.Second, 4*time.Duration(n)*time.Second/Budget)
}

// class is a queue of tunnels, in the order of precedence.
type class uint8

const (
	active   class = iota // with traffic
	deciding              // a few more probes will settle something
	idle
	down
	classes
)

// pace returns the queue of a tunnel and how often it is probed.
func pace(s State, traffic bool, age time.Duration) (class, time.Duration) {
	switch s.state {
	case mesh.Up:
		switch {
		case traffic:
			return active, fast(timeoutFor(s.rtt))
		case s.undecided():
			return deciding, fast(timeoutFor(s.rtt))
		default:
			return idle, idleEvery
		}
	case mesh.Down:
		if s.undecided() {
			return deciding, activeEvery
		}
		return down, downEvery
	default:
		if age < newFor {
			return deciding, activeEvery
		}
		return idle, newEvery
	}
}

// task is a tunnel's place in the schedule.
type task struct {
	class class
	due   time.Time
	pos   int // in its class's heap, -1 if in none
}

func (t *task) dueAt() time.Time { return t.due }
func (t *task) place() *int      { return &t.pos }

// schedule picks whose turn it is, within the budget. Where the budget is short,
// the tunnels of a class take turns and their intervals grow alike; there is
// nothing to scale. Active tunnels come first, up to what their detection bound
// needs; what the others are left is theirs, and of it each fourth turn goes to
// whoever waits longest, so that no class starves another.
type schedule struct {
	queues   [classes]minHeap[*entry]
	tokens   float64
	refilled time.Time
	credit   float64 // of the other classes against active, in turns
	turn     uint
}

// put enters a task, or moves it if it is in already.
func (s *schedule) put(e *entry, c class, due time.Time) {
	if e.pos >= 0 && e.class == c {
		e.due = due
		s.queues[c].fix(e)
		return
	}
	s.remove(e)
	e.class, e.due = c, due
	s.queues[c].push(e)
}

func (s *schedule) remove(e *entry) {
	if e.pos >= 0 {
		s.queues[e.class].remove(e)
	}
}

// next returns the tunnel whose turn it is, or nil if none is due or the budget
// is used up. The caller puts it back with its next due time.
func (s *schedule) next(now time.Time) *entry {
	s.refill(now)
	if s.tokens < 1 {
		return nil
	}
	e, ok := s.queues[active].dueBy(now)
	if other := s.nextOther(now); other != nil {
		if ok {
			s.credit += s.reserve()
		}
		if !ok || s.credit >= 1 {
			s.credit = max(0, s.credit-1)
			s.turn++
			e, ok = other, true
		}
	}
	if !ok {
		return nil
	}
	s.tokens--
	return e
}

func (s *schedule) nextOther(now time.Time) *entry {
	var pick *entry
	for c := deciding; c < classes; c++ {
		e, ok := s.queues[c].dueBy(now)
		switch {
		case !ok:
		case s.turn%4 != 0:
			return e
		case pick == nil || e.due.Before(pick.due):
			pick = e
		}
	}
	return pick
}

// reserve returns the part of the budget that active tunnels leave to the others
// when both want all of it: what their detection bound can spare.
func (s *schedule) reserve() float64 {
	n := s.queues[active].len()
	every := (detection(n) - minTimeout - slack) / lostForDown
	needed := float64(n) / every.Seconds()
	return min(max(1-needed/Budget, 0.05), 0.25)
}

func (s *schedule) refill(now time.Time) {
	if s.refilled.IsZero() {
		s.tokens = burst
	}
	s.tokens = min(burst, s.tokens+max(0, now.Sub(s.refilled).Seconds())*Budget)
	s.refilled = now
}

// grain returns the shortest sleep that is fine enough for what is scheduled.
func (s *schedule) grain() time.Duration {
	if s.queues[active].len()+s.queues[deciding].len() > 0 {
		return grain
	}
	return coarse
}

// wait returns how long after now, when next returned nil, it will return a
// tunnel again, if nothing is put meanwhile; false means never.
func (s *schedule) wait(now time.Time) (time.Duration, bool) {
	var first *entry
	for c := range s.queues {
		if e, ok := s.queues[c].first(); ok && (first == nil || e.due.Before(first.due)) {
			first = e
		}
	}
	if first == nil {
		return 0, false
	}
	lack := time.Duration((1 - s.tokens) / Budget * float64(time.Second))
	return max(first.due.Sub(now), lack, 0), true
}
