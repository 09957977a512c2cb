package probe

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// world runs a tracker in virtual time against paths that answer or do not.
type world struct {
	t       *testing.T
	tracker *tracker
	now     time.Time
	rtt     time.Duration
	// cut says whether the path to target i drops everything, away whether only
	// its agent is gone.
	cut, away func(i int) bool

	replies  arrivals
	sends    []time.Time
	pings    int
	probes   map[int]int // by target
	downAt   map[int]time.Time
	upAt     map[int]time.Time
	activity func() // called before each step
}

type arrival struct {
	at   time.Time
	i    int
	seq  uint64
	icmp bool
}

type arrivals []arrival

func (a arrivals) Len() int           { return len(a) }
func (a arrivals) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a arrivals) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *arrivals) Push(x any)        { *a = append(*a, x.(arrival)) }
func (a *arrivals) Pop() any {
	x := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return x
}

func never(int) bool  { return false }
func always(int) bool { return true }

func simID(i int) mesh.NodeID { return mesh.NodeID{Cluster: "east", Name: fmt.Sprintf("n%04d", i)} }

func simAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}) }

func simIndex(a netip.Addr) int { b := a.As4(); return int(b[2])<<8 | int(b[3]) }

// newWorld has n targets of which all answer.
func newWorld(t *testing.T, n int, rtt time.Duration) *world {
	w := &world{
		t: t, tracker: newTracker(rand.New(rand.NewPCG(1, uint64(n)))), now: time.Unix(1_800_000_000, 0), rtt: rtt,
		cut: never, away: never, activity: func() {},
	}
	w.forget()
	targets := make([]Target, n)
	for i := range targets {
		targets[i] = Target{Node: simID(i), Addr: simAddr(i), Expect: 7, Families: []mesh.Family{mesh.IPv4}}
	}
	w.tracker.setTargets(targets, w.now)
	return w
}

func (w *world) forget() {
	w.sends, w.pings = nil, 0
	w.probes, w.downAt, w.upAt = map[int]int{}, map[int]time.Time{}, map[int]time.Time{}
}

// run goes on for d, as the Prober's loop would.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	poll := w.now
	var out []probe
	for !w.now.After(end) {
		w.activity()
		for len(w.replies) > 0 && !w.replies[0].at.After(w.now) {
			a := heap.Pop(&w.replies).(arrival)
			switch {
			case w.cut(a.i):
			case a.icmp:
				w.tracker.ponged(simAddr(a.i), a.seq)
			default:
				w.tracker.replied(simAddr(a.i), answer{seq: a.seq, applied: 7}, w.now)
			}
		}
		if w.tracker.sooner || !poll.After(w.now) {
			out = w.tracker.poll(w.now, true, out[:0])
			w.tracker.sooner = false
			for _, p := range out {
				w.send(p)
			}
			poll = w.now.Add(w.tracker.wait(w.now))
		}
		for _, c := range w.tracker.takeChanges() {
			var i int
			fmt.Sscanf(c.Node.Name, "n%d", &i)
			switch c.New.State {
			case mesh.Down:
				w.downAt[i] = w.now
			case mesh.Up:
				w.upAt[i] = w.now
			}
		}
		next := poll
		if len(w.replies) > 0 && w.replies[0].at.Before(next) {
			next = w.replies[0].at
		}
		w.now = next
	}
	w.now = end
	w.checkBudget()
}

func (w *world) send(p probe) {
	i := simIndex(p.to)
	w.sends = append(w.sends, w.now)
	w.probes[i]++
	if p.ping {
		w.pings++
	}
	if w.cut(i) {
		return
	}
	if !w.away(i) {
		heap.Push(&w.replies, arrival{at: w.now.Add(w.rtt), i: i, seq: p.seq})
	}
	if p.ping {
		heap.Push(&w.replies, arrival{at: w.now.Add(w.rtt), i: i, seq: p.seq, icmp: true})
	}
}

func (w *world) checkBudget() {
	w.t.Helper()
	const most = Budget + burst
	for i := most; i < len(w.sends); i++ {
		if d := w.sends[i].Sub(w.sends[i-most]); d < time.Second {
			w.t.Fatalf("%d probes within %v", most+1, d)
		}
	}
}

// traffic makes the first n targets active from now on.
func (w *world) traffic(n int) {
	var last time.Time
	w.activity = func() {
		if w.now.Sub(last) >= activeFor/2 {
			last = w.now
			for i := range n {
				w.tracker.busy(simID(i), w.now)
			}
		}
	}
}

// worst returns the longest time from since to a target's entry in at, for
// targets from to to, and fails if one has none.
func (w *world) worst(at map[int]time.Time, since time.Time, from, to int) time.Duration {
	w.t.Helper()
	var worst time.Duration
	for i := from; i < to; i++ {
		when, ok := at[i]
		if !ok {
			w.t.Fatalf("target %d of %d to %d: nothing within %v", i, from, to, w.now.Sub(since))
		}
		worst = max(worst, when.Sub(since))
	}
	return worst
}

// settled has every target Up and the schedule in its stride.
func settled(t *testing.T, n, withTraffic int, rtt time.Duration) *world {
	t.Helper()
	w := newWorld(t, n, rtt)
	w.run(time.Duration(n)*time.Second/Budget + 2*time.Second)
	w.worst(w.upAt, w.now, 0, n)
	w.traffic(withTraffic)
	w.run(20 * time.Second)
	if len(w.downAt) > 0 {
		t.Fatalf("%d targets went Down with every path whole", len(w.downAt))
	}
	w.forget()
	return w
}
