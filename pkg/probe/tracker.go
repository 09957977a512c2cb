package probe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// probe is one to send: an echo, and beside it an ICMP echo if ping is set.
type probe struct {
	to   netip.Addr
	seq  uint64
	ping bool
}

// answer is what a reply said.
type answer struct {
	seq           uint64
	applied       uint64
	notForwarding []uint32
	version       string
}

// flight is a probe that was sent.
type flight struct {
	entry    *entry
	seq      uint64
	sent     time.Time
	deadline time.Time
	pos      int  // among the open flights, -1 once it is over
	lost     bool // over without a reply: one may still come late
	alive    bool // an ICMP echo sent no earlier was answered
}

func (f *flight) dueAt() time.Time { return f.deadline }
func (f *flight) place() *int      { return &f.pos }

// entry is a target with its state.
type entry struct {
	task
	Target
	state   State
	status  mesh.TunnelStatus // what state and Refused come to
	since   time.Time
	added   time.Time
	sent    time.Time // last probe
	traffic time.Time // counts as active until then
	version string
	// flights is a ring of the last probes. The shortest interval leaves at most
	// six open, and what is overwritten can no longer come late.
	flights [8]flight
	next    int
}

func (e *entry) active(now time.Time) bool { return e.traffic.After(now) }

func (e *entry) flight(seq uint64) *flight {
	for i := range e.flights {
		if f := &e.flights[i]; f.seq == seq && f.entry != nil {
			return f
		}
	}
	return nil
}

// tracker holds the targets, their states and the probes on their way. It has no
// clock, no socket and no lock: whoever holds it passes the time, which must not
// go backwards, and sends what poll returns.
type tracker struct {
	entries  map[mesh.NodeID]*entry
	byAddr   map[netip.Addr]*entry
	schedule schedule
	open     minHeap[*flight]
	seq      uint64
	jitter   *rand.Rand
	// pings are ICMP echoes that may go out now, at most burst.
	pings   float64
	pinged  time.Time
	changes map[mesh.NodeID]Change
	sooner  bool // a tunnel's next probe was moved: wait may be shorter
}

func newTracker(r *rand.Rand) *tracker {
	return &tracker{
		entries: map[mesh.NodeID]*entry{},
		byAddr:  map[netip.Addr]*entry{},
		seq:     r.Uint64(),
		jitter:  r,
		changes: map[mesh.NodeID]Change{},
	}
}

// setTargets makes ts the targets. Those that stay keep their state.
func (t *tracker) setTargets(ts []Target, now time.Time) {
	stay := make(map[mesh.NodeID]bool, len(ts))
	clear(t.byAddr)
	for _, target := range ts {
		stay[target.Node] = true
		e := t.entries[target.Node]
		if e == nil {
			e = &entry{added: now, since: now, task: task{pos: -1}, status: State{}.Status()}
			for i := range e.flights {
				e.flights[i].pos = -1
			}
			t.entries[target.Node] = e
		} else if e.Addr != target.Addr {
			t.ground(e)
		}
		e.Target = target
		if t.byAddr[target.Addr] == nil {
			t.byAddr[target.Addr] = e
		}
		t.settle(e, e.state, now)
	}
	for id, e := range t.entries {
		if !stay[id] {
			t.ground(e)
			t.schedule.remove(e)
			delete(t.entries, id)
			delete(t.changes, id)
		}
	}
}

// ground forgets the open probes of a target.
func (t *tracker) ground(e *entry) {
	for i := range e.flights {
		t.land(&e.flights[i])
		e.flights[i].lost = false
	}
}

func (t *tracker) land(f *flight) {
	if f.pos >= 0 {
		t.open.remove(f)
	}
}

// settle gives a target its new state, notes a change, and moves it in the
// schedule where its pace is another than before.
func (t *tracker) settle(e *entry, s State, now time.Time) {
	e.state = s
	status := s.Status()
	if e.Refused != "" {
		status = mesh.TunnelStatus{State: mesh.Down, Reason: e.Refused}
	}
	if status != e.status {
		if status.State != e.status.State {
			e.since = now
		}
		t.note(Change{Node: e.Node, Old: e.status, New: status})
		e.status = status
	}
	c, every := pace(s, e.active(now), now.Sub(e.added))
	switch {
	case e.sent.IsZero():
		t.schedule.put(e, c, e.added)
	case e.class != c:
		t.schedule.put(e, c, e.sent.Add(every))
		t.sooner = true
	}
}

func (t *tracker) note(c Change) {
	if before, ok := t.changes[c.Node]; ok {
		c.Old = before.Old
	}
	if c.Old == c.New {
		delete(t.changes, c.Node)
		return
	}
	t.changes[c.Node] = c
}

// takeChanges returns what changed since it was last called, by node. What
// changed back meanwhile is left out.
func (t *tracker) takeChanges() []Change {
	out := make([]Change, 0, len(t.changes))
	for _, c := range t.changes {
		out = append(out, c)
	}
	clear(t.changes)
	slices.SortFunc(out, func(a, b Change) int { return a.Node.Compare(b.Node) })
	return out
}

// poll judges the probes whose deadlines have passed and appends to out those to
// send now. canPing says whether ICMP echoes can be sent.
func (t *tracker) poll(now time.Time, canPing bool, out []probe) []probe {
	for {
		f, ok := t.open.dueBy(now)
		if !ok {
			break
		}
		t.expire(f, now)
	}
	for {
		e := t.schedule.next(now)
		if e == nil {
			return out
		}
		out = append(out, t.launch(e, canPing, now))
	}
}

func (t *tracker) expire(f *flight, now time.Time) {
	// A late reply to an earlier probe may have taught a longer deadline.
	if d := f.sent.Add(timeoutFor(f.entry.state.rtt)); d.After(now) {
		f.deadline = d
		t.open.fix(f)
		return
	}
	kind := Lost
	if f.alive {
		kind = ICMP
	}
	t.lose(f, kind, now)
}

func (t *tracker) lose(f *flight, kind Kind, now time.Time) {
	t.land(f)
	f.lost = true
	e := f.entry
	t.settle(e, Judge(e.state, Observation{Kind: kind}, now), now)
	// The first loss may be the far agent alone: find out at once.
	if e.state.state == mesh.Up && e.state.missed == 1 && e.due.After(now) {
		t.schedule.put(e, e.class, now)
	}
}

func (t *tracker) launch(e *entry, canPing bool, now time.Time) probe {
	t.seq++
	if t.seq == 0 {
		t.seq++
	}
	f := &e.flights[e.next]
	e.next = (e.next + 1) % len(e.flights)
	t.land(f)
	*f = flight{entry: e, seq: t.seq, sent: now, deadline: now.Add(timeoutFor(e.state.rtt)), pos: -1}
	t.open.push(f)
	e.sent = now

	c, every := pace(e.state, e.active(now), now.Sub(e.added))
	if c >= idle {
		// Shorter only, so that no bound suffers.
		every -= time.Duration(t.jitter.Int64N(int64(every) / 10))
	}
	t.schedule.put(e, c, now.Add(every))
	ping := canPing && e.state.state == mesh.Up && e.state.missed > 0 && t.takePing(now)
	return probe{to: e.Addr, seq: f.seq, ping: ping}
}

func (t *tracker) takePing(now time.Time) bool {
	if t.pinged.IsZero() {
		t.pings = burst
	}
	t.pings = min(burst, t.pings+max(0, now.Sub(t.pinged).Seconds())*Budget)
	t.pinged = now
	if t.pings < 1 {
		return false
	}
	t.pings--
	return true
}

// wait returns how long poll need not be called, up to a second.
func (t *tracker) wait(now time.Time) time.Duration {
	wait := time.Second
	if d, ok := t.schedule.wait(now); ok {
		wait = min(wait, d)
	}
	if f, ok := t.open.first(); ok {
		wait = min(wait, f.deadline.Sub(now))
	}
	return max(wait, t.schedule.grain())
}

// replied takes an echo that came from an address, and reports whether it
// answers a probe that was sent there and not answered before.
func (t *tracker) replied(from netip.Addr, a answer, now time.Time) bool {
	e := t.byAddr[from]
	if e == nil {
		return false
	}
	f := e.flight(a.seq)
	if f == nil || f.pos < 0 && !f.lost {
		return false
	}
	o := Observation{
		Kind:          Reply,
		RTT:           now.Sub(f.sent),
		NotApplied:    a.applied == 0 || a.applied != e.Expect,
		NotForwarding: slices.ContainsFunc(e.Families, func(f mesh.Family) bool { return slices.Contains(a.notForwarding, uint32(f)) }),
	}
	if f.lost {
		o = Observation{Kind: Late, RTT: o.RTT}
	}
	t.land(f)
	f.lost = false
	e.version = a.version
	t.settle(e, Judge(e.state, o, now), now)
	return true
}

// ponged takes an answer to the ICMP echo that was sent beside probe seq. It
// speaks for that probe and those before it, not for later ones: these may have
// met a path that was cut meanwhile.
func (t *tracker) ponged(from netip.Addr, seq uint64) {
	e := t.byAddr[from]
	if e == nil {
		return
	}
	with := e.flight(seq)
	if with == nil {
		return
	}
	for i := range e.flights {
		if f := &e.flights[i]; f.pos >= 0 && !f.sent.After(with.sent) {
			f.alive = true
		}
	}
}

// failed takes back a probe that could not be sent. lost says whether that tells
// of the tunnel (no route, no key) or of ourselves only.
func (t *tracker) failed(p probe, lost bool, now time.Time) {
	e := t.byAddr[p.to]
	if e == nil {
		return
	}
	f := e.flight(p.seq)
	if f == nil || f.pos < 0 {
		return
	}
	if lost {
		t.lose(f, Lost, now)
		return
	}
	t.land(f)
}

// void discards all open probes: we ourselves were away, not the tunnels.
func (t *tracker) void() {
	for {
		f, ok := t.open.first()
		if !ok {
			return
		}
		t.land(f)
	}
}

// busy notes that a tunnel has traffic. One that is not Up is left at its pace:
// what was queued for it meanwhile is no sign.
func (t *tracker) busy(node mesh.NodeID, now time.Time) {
	e := t.entries[node]
	if e == nil || e.state.state != mesh.Up {
		return
	}
	e.traffic = now.Add(activeFor)
	t.settle(e, e.state, now)
}

// shaken notes that WireGuard has shaken hands with a node.
func (t *tracker) shaken(node mesh.NodeID, now time.Time) {
	if e := t.entries[node]; e != nil && !e.state.shaken {
		t.settle(e, Judge(e.state, Observation{Kind: Handshake}, now), now)
	}
}

// results returns what is known of every target, by node.
func (t *tracker) results(now time.Time) []Result {
	out := make([]Result, 0, len(t.entries))
	for _, e := range t.entries {
		out = append(out, Result{
			Target: e.Target, Status: e.status, Since: e.since, LastReply: e.state.lastReply,
			RTT: e.state.rtt, Loss: e.state.Loss(), Active: e.active(now), Version: e.version,
		})
	}
	slices.SortFunc(out, func(a, b Result) int { return a.Node.Compare(b.Node) })
	return out
}
