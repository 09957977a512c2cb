package probe

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// Active tunnels that are all cut at once are all Down within the bound, whatever
// the idle ones do and wherever in a round it happens.
func TestActiveDetection(t *testing.T) {
	for _, c := range []struct {
		active, idle int
		rtt          time.Duration
		idleCut      bool
	}{
		{1, 0, 1 * ms, false},
		{1, 0, 150 * ms, false},
		{1, 0, 190 * ms, false},
		{10, 0, 250 * ms, false},
		{60, 0, 250 * ms, false},
		{60, 20, 100 * ms, false},
		{80, 0, 90 * ms, false},
		{90, 100, 50 * ms, true},
		{100, 0, 90 * ms, false},
		{100, 1000, 90 * ms, true},
		{150, 300, 50 * ms, true},
		{400, 0, 20 * ms, false},
		{400, 1600, 20 * ms, true},
		{1000, 0, 20 * ms, false},
		{1000, 4000, 20 * ms, true},
		{5000, 0, 20 * ms, false},
	} {
		t.Run(fmt.Sprintf("%d active, %d idle, cut too: %v, %v", c.active, c.idle, c.idleCut, c.rtt), func(t *testing.T) {
			w := settled(t, c.active+c.idle, c.active, c.rtt)
			phases := 3
			if c.active+c.idle > 1000 {
				phases = 1
			}
			for phase := range phases {
				if phase > 0 { // let all heal first
					w.cut = never
					w.run(time.Duration(c.active+c.idle)*17*time.Second/Budget + 30*time.Second)
					w.worst(w.upAt, w.now, 0, c.active)
				}
				w.run(time.Duration(phase) * 67 * ms)
				w.forget()
				at := w.now
				w.cut = func(i int) bool { return i < c.active || c.idleCut }
				w.run(detection(c.active) + time.Second)
				got := w.worst(w.downAt, at, 0, c.active)
				if got > detection(c.active) {
					t.Errorf("the last of %d was Down after %v, want %v", c.active, got, detection(c.active))
				}
				w.forget()
			}
		})
	}
}

// While the budget can, active tunnels keep their pace, whatever the others want.
func TestActiveFirst(t *testing.T) {
	const n = 58
	w := settled(t, 3000, n, 20*ms)
	w.run(10 * time.Second)
	for i := range n {
		if got := w.probes[i]; got < 48 {
			t.Fatalf("active tunnel %d was probed %d times in 10s, want 50", i, got)
		}
	}
}

// One that is active from its first packet on is Down a second after it, even if
// the path was cut before.
func TestActivatedAfterTheCut(t *testing.T) {
	w := settled(t, 1000, 0, 20*ms)
	w.cut = func(i int) bool { return i == 5 }
	at := w.now
	w.tracker.busy(simID(5), w.now)
	w.run(2 * time.Second)
	if got := w.worst(w.downAt, at, 5, 6); got > time.Second {
		t.Errorf("Down %v after the first packet", got)
	}
}

func TestIdleDetection(t *testing.T) {
	for _, c := range []struct{ idle, active, cut int }{
		{1, 0, 1}, {100, 0, 1}, {100, 0, 100}, {400, 0, 400}, {1000, 0, 1}, {1000, 0, 1000},
		{2000, 0, 10}, {3000, 0, 1}, {500, 100, 1}, {600, 400, 1}, {500, 1000, 1}, {1000, 40, 100},
	} {
		t.Run(fmt.Sprintf("%d of %d idle, %d active", c.cut, c.idle, c.active), func(t *testing.T) {
			w := settled(t, c.active+c.idle, c.active, 20*ms)
			at := w.now
			w.cut = func(i int) bool { return i >= c.active && i < c.active+c.cut }
			w.run(60 * time.Second)
			got := w.worst(w.downAt, at, c.active, c.active+c.cut)
			if got > 10*time.Second {
				t.Errorf("the last was Down after %v, want 10s", got)
			}
			if len(w.downAt) != c.cut {
				t.Errorf("%d went Down, %d were cut", len(w.downAt), c.cut)
			}
		})
	}
}

// Where three probes of each take longer than ten seconds, all are Down within
// four times what one round takes.
func TestIdleDetectionBeyondTheBudget(t *testing.T) {
	w := settled(t, 5000, 0, 20*ms)
	at := w.now
	w.cut = always
	w.run(4 * 5000 * time.Second / Budget)
	w.worst(w.downAt, at, 0, 5000)
}

// Down tunnels share what is left alike, find out soon that they healed, and keep
// no active one waiting.
func TestManyDown(t *testing.T) {
	for _, c := range []struct{ down, active, idle int }{{10, 0, 0}, {100, 10, 100}, {1000, 10, 100}, {2000, 10, 0}, {1000, 300, 500}} {
		t.Run(fmt.Sprintf("%d down, %d active, %d idle", c.down, c.active, c.idle), func(t *testing.T) {
			n := c.active + c.idle + c.down
			w := settled(t, n, c.active, 20*ms)
			isDown := func(i int) bool { return i >= c.active+c.idle }
			w.cut = isDown
			w.run(4*time.Duration(n)*time.Second/Budget*5 + 10*time.Second)
			w.worst(w.downAt, w.now, c.active+c.idle, n)
			w.forget()

			span := 4*time.Duration(c.down)*time.Second/Budget*5 + 20*time.Second
			w.run(span)
			least, most := 1<<30, 0
			for i := c.active + c.idle; i < n; i++ {
				least, most = min(least, w.probes[i]), max(most, w.probes[i])
			}
			if least == 0 || most > least+least/4+2 {
				t.Errorf("probes of those that are down: %d to %d, want alike", least, most)
			}
			for i := range c.active {
				if got, want := w.probes[i], int(span/(detection(c.active)/3)); got < want {
					t.Fatalf("active tunnel %d was probed %d times, want at least %d", i, got, want)
				}
			}
			if len(w.downAt) > 0 {
				t.Errorf("%d more went Down", len(w.downAt))
			}

			// One of them heals.
			healed, at := n-1, w.now
			w.cut = func(i int) bool { return isDown(i) && i != healed }
			w.forget()
			w.run(span)
			w.worst(w.upAt, at, healed, n)
		})
	}
}

// A healed path is Up within a few seconds, also after it flapped.
func TestHealing(t *testing.T) {
	w := settled(t, 20, 10, 20*ms)
	for range 8 {
		w.cut = func(i int) bool { return i == 3 }
		w.run(2 * time.Second)
		w.cut = never
		w.forget()
		at := w.now
		w.run(10 * time.Second)
		got := w.worst(w.upAt, at, 3, 4)
		if got > 5*time.Second {
			t.Errorf("Up %v after the path healed", got)
		}
	}
}

// The agents of many go away while their kernels answer: nothing goes Down, until
// the paths are cut, and then the bound holds.
func TestAgentsAway(t *testing.T) {
	for _, rtt := range []time.Duration{1 * ms, 90 * ms, 240 * ms, 300 * ms} {
		for _, n := range []int{1, 60} {
			t.Run(fmt.Sprintf("%d, %v", n, rtt), func(t *testing.T) {
				w := settled(t, 2*n, n, rtt)
				w.away = always
				w.run(30 * time.Second)
				if len(w.downAt) > 0 {
					t.Fatalf("%d of %d went Down", len(w.downAt), 2*n)
				}
				for _, r := range w.tracker.results(w.now) {
					if r.Status != away {
						t.Fatalf("%v is %v", r.Node, r.Status)
					}
				}
				w.forget()
				w.cut = always
				at := w.now
				w.run(20 * time.Second)
				bound := detection(n)
				if rtt > 260*ms { // where three deadlines do not fit a second
					bound = lostForDown*fast(timeoutFor(rtt)) + timeoutFor(rtt) + slack
				}
				if got := w.worst(w.downAt, at, 0, n); got > bound {
					t.Errorf("cut while away: Down after %v, want %v", got, bound)
				}
				w.worst(w.downAt, at, n, 2*n)
			})
		}
	}
}

// With one probe in twenty lost at random nothing goes Down for long, and most
// never do.
func TestRandomLoss(t *testing.T) {
	w := settled(t, 40, 20, 20*ms)
	r := rand.New(rand.NewPCG(3, 4))
	w.cut = func(int) bool { return r.IntN(40) == 0 } // asked on each way
	w.run(10 * time.Minute)
	w.cut = never
	if len(w.downAt) > 4 {
		t.Errorf("%d of 40 went Down at some time", len(w.downAt))
	}
	w.run(10 * time.Second)
	for _, r := range w.tracker.results(w.now) {
		if r.Status != up {
			t.Errorf("%v is %v", r.Node, r.Status)
		}
	}
}

// A path whose round trip jumps to twice the deadline is not taken to be
// cut: the first late reply lengthens the deadlines of those that follow.
func TestRoundTripGrows(t *testing.T) {
	w := settled(t, 1, 1, 20*ms)
	w.rtt = 430 * ms
	w.run(10 * time.Second)
	if len(w.downAt) > 0 {
		t.Error("it went Down")
	}
	if got := w.tracker.results(w.now)[0]; got.Status != up || got.Loss > 0.5 {
		t.Errorf("%+v", got)
	}
}

func TestTimeout(t *testing.T) {
	for rtt, want := range map[time.Duration]time.Duration{
		0: time.Second, ms: 200 * ms, 100 * ms: 200 * ms, 150 * ms: 300 * ms, 500 * ms: time.Second, time.Minute: time.Second,
	} {
		if got := timeoutFor(rtt); got != want {
			t.Errorf("Timeout(%v) = %v, want %v", rtt, got, want)
		}
	}
}

func BenchmarkTick(b *testing.B) {
	const n = 2000
	t := newTracker(rand.New(rand.NewPCG(1, 1)))
	now := time.Unix(1_800_000_000, 0)
	targets := make([]Target, n)
	for i := range targets {
		targets[i] = Target{Node: simID(i), Addr: simAddr(i), Expect: 7}
	}
	t.setTargets(targets, now)
	var out []probe
	var probes int
	b.ReportAllocs()
	start := now
	for b.Loop() {
		out = t.poll(now, true, out[:0])
		for _, p := range out {
			probes++
			t.replied(p.to, answer{seq: p.seq, applied: 7}, now.Add(ms))
		}
		now = now.Add(t.wait(now))
	}
	// What a second of the real loop costs, sockets left out.
	b.ReportMetric(b.Elapsed().Seconds()/now.Sub(start).Seconds()*1e6, "µs/virtual-s")
	b.ReportMetric(float64(probes)/now.Sub(start).Seconds(), "probes/virtual-s")
}
