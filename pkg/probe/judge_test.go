package probe

import (
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Observations and statuses, short, for tables.
var (
	good     = Observation{Kind: Reply, RTT: 10 * time.Millisecond}
	unheld   = Observation{Kind: Reply, RTT: 10 * time.Millisecond, NotApplied: true}
	blocked  = Observation{Kind: Reply, RTT: 10 * time.Millisecond, NotForwarding: true}
	gone     = Observation{Kind: Lost}
	kernel   = Observation{Kind: ICMP}
	void     = Observation{}
	overdue  = Observation{Kind: Late, RTT: 700 * time.Millisecond}
	handshak = Observation{Kind: Handshake}

	probing     = mesh.TunnelStatus{State: mesh.Unknown, Reason: mesh.ReasonProbing}
	unknownHeld = mesh.TunnelStatus{State: mesh.Unknown, Reason: mesh.ReasonNotApplied}
	up          = mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}
	away        = mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonAgentAway}
	lost        = mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonProbeLost}
	noHandshake = mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonNoHandshake}
	notApplied  = mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonNotApplied}
	notForward  = mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonForwardBlocked}
)

// step is some observations, each after the same time, and the status after the
// last; the status before the last must differ from it where change is set.
type step struct {
	times  int // 0 means 1
	after  time.Duration
	o      Observation
	want   mesh.TunnelStatus
	change bool
}

const ms = time.Millisecond

func TestJudge(t *testing.T) {
	dead := []step{{o: good, want: up}, {times: 3, after: 200 * ms, o: gone, want: lost, change: true}}
	flap := func(need int) []step {
		return []step{
			{times: need, after: 200 * ms, o: good, want: up, change: true},
			{times: 3, after: 200 * ms, o: gone, want: lost, change: true},
		}
	}
	join := func(parts ...[]step) (out []step) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	for name, steps := range map[string][]step{
		"nothing seen":                       {{o: void, want: probing}},
		"first light":                        {{o: good, want: up, change: true}},
		"never answered":                     {{times: 3, o: gone, want: noHandshake, change: true}},
		"never answered, but shaken hands":   {{o: handshak, want: probing}, {times: 3, o: gone, want: lost, change: true}},
		"hands shaken later":                 {{times: 3, o: gone, want: noHandshake}, {o: handshak, want: lost}},
		"handshake makes nothing Up":         {{times: 9, o: handshak, want: probing}},
		"one and two lost are not enough":    {{o: good, want: up}, {times: 2, o: gone, want: up}, {o: good, want: up}, {times: 2, o: gone, want: up}},
		"three lost":                         dead,
		"void between does not count":        {{o: good, want: up}, {times: 2, o: gone, want: up}, {times: 9, o: void, want: up}, {o: gone, want: lost}},
		"void does not reset":                {{o: gone, want: probing}, {o: gone, want: probing}, {o: void, want: probing}, {o: gone, want: noHandshake}},
		"back after three good":              join(dead, []step{{times: 3, after: 500 * ms, o: good, want: up, change: true}}),
		"a loss starts the count of good":    join(dead, []step{{times: 2, o: good, want: lost}, {o: gone, want: lost}, {times: 3, o: good, want: up, change: true}}),
		"not applied from the start":         {{o: unheld, want: unknownHeld}, {after: 500 * ms, o: unheld, want: unknownHeld}, {after: 2 * time.Second, o: unheld, want: notApplied}},
		"not applied, then applied":          {{o: unheld, want: unknownHeld}, {o: good, want: up}},
		"not applied then lost":              {{o: unheld, want: unknownHeld}, {times: 3, o: gone, want: lost, change: true}},
		"skew is tolerated for two seconds":  {{o: good, want: up}, {o: unheld, want: up}, {after: 1900 * ms, o: unheld, want: up}, {o: good, want: up}, {after: 5 * time.Second, o: unheld, want: up}},
		"skew that stays":                    {{o: good, want: up}, {times: 11, after: 200 * ms, o: unheld, want: notApplied, change: true}, {times: 2, o: good, want: notApplied}, {o: good, want: up}},
		"a loss does not end skew":           {{o: good, want: up}, {o: unheld, want: up}, {after: time.Second, o: gone, want: up}, {after: time.Second, o: unheld, want: notApplied}},
		"not forwarding twice":               {{o: good, want: up}, {times: 2, o: blocked, want: notForward, change: true}},
		"not forwarding once":                {{o: good, want: up}, {o: blocked, want: up}, {o: good, want: up}, {o: blocked, want: up}},
		"not forwarding from the start":      {{o: blocked, want: probing}, {o: blocked, want: notForward}},
		"forwards again":                     {{times: 2, o: blocked, want: notForward}, {times: 3, o: good, want: up, change: true}},
		"blocked, then lost":                 {{times: 2, o: blocked, want: notForward}, {times: 3, o: gone, want: lost, change: true}},
		"lost, then not applied":             join(dead, []step{{o: unheld, want: notApplied}, {times: 3, o: gone, want: lost, change: true}}),
		"the far agent is away":              {{o: good, want: up}, {o: gone, want: up}, {o: kernel, want: up}, {o: kernel, want: away, change: true}, {times: 300, o: kernel, want: away}},
		"the agent comes back":               {{o: good, want: up}, {times: 3, o: kernel, want: away}, {o: good, want: up}},
		"away, then the path goes":           {{o: good, want: up}, {times: 9, o: kernel, want: away}, {times: 3, o: gone, want: lost, change: true}},
		"ICMP now and then keeps Up":         {{o: good, want: up}, {times: 2, o: gone, want: up}, {o: kernel, want: away}, {times: 2, o: gone, want: away}, {o: kernel, want: away}},
		"ICMP makes nothing Up":              join(dead, []step{{times: 20, o: kernel, want: lost}}),
		"ICMP is no first light":             {{times: 3, o: kernel, want: lost, change: true}},
		"late makes nothing Up":              join(dead, []step{{times: 20, o: overdue, want: lost}}),
		"late denies no-handshake":           {{times: 3, o: gone, want: noHandshake}, {o: overdue, want: lost}},
		"flapping doubles up to 16":          join(dead, flap(3), flap(6), flap(12), flap(16), flap(16)),
		"a minute Up ends flapping":          join(dead, flap(3), flap(6), []step{{times: 12, after: 200 * ms, o: good, want: up, change: true}, {after: time.Minute, o: good, want: up}, {times: 3, after: 200 * ms, o: gone, want: lost}}, flap(3)),
		"two Downs far apart do not flap":    join(dead, []step{{times: 60, after: time.Second, o: gone, want: lost}}, flap(3), flap(3)[:1]),
		"first light that fails is no flap":  {{times: 3, o: gone, want: noHandshake}, {times: 3, o: good, want: up, change: true}, {times: 3, o: gone, want: lost}, {times: 3, o: good, want: up, change: true}},
		"clock back while skewed":            {{o: good, want: up}, {o: unheld, want: up}, {after: -time.Hour, o: unheld, want: up}, {after: 2 * time.Second, o: unheld, want: notApplied}},
		"clock back while flapping":          join(dead, []step{{after: -time.Hour, o: good, want: lost}, {times: 2, o: good, want: up, change: true}, {times: 3, o: gone, want: lost}, {times: 6, o: good, want: up, change: true}}),
		"clock back, then a minute Up":       join(dead, flap(3), []step{{after: -time.Hour, o: void, want: lost}, {times: 6, o: good, want: up, change: true}, {after: time.Minute, o: good, want: up}, {times: 3, o: gone, want: lost}}, flap(3)),
		"agent back without us is tolerated": {{o: good, want: up}, {times: 3, o: kernel, want: away}, {o: unheld, want: away}, {o: good, want: up}},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1_800_000_000, 0)
			var s State
			for i, st := range steps {
				before := s.Status()
				for range max(st.times, 1) {
					now = now.Add(st.after)
					before = s.Status()
					s = Judge(s, st.o, now)
					if s.Since().After(now) || s.LastReply().After(now) {
						t.Fatalf("step %d: since %v or last reply %v is after now %v", i, s.Since(), s.LastReply(), now)
					}
				}
				if s.Status() != st.want {
					t.Fatalf("step %d: %v, want %v", i, s.Status(), st.want)
				}
				if st.change && before == st.want {
					t.Fatalf("step %d: was %v before the last observation already", i, before)
				}
			}
		})
	}
}

func TestJudgeMeasures(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var s State
	if s.RTT() != 0 || s.Loss() != 0 || !s.Since().IsZero() || !s.LastReply().IsZero() {
		t.Fatalf("the zero State says %v %v %v %v", s.RTT(), s.Loss(), s.Since(), s.LastReply())
	}
	s = Judge(s, Observation{Kind: Reply, RTT: 80 * ms}, now)
	if s.RTT() != 80*ms || !s.Since().Equal(now) || !s.LastReply().Equal(now) {
		t.Fatalf("after one reply: %v %v %v", s.RTT(), s.Since(), s.LastReply())
	}
	s = Judge(s, Observation{Kind: Reply, RTT: 160 * ms}, now.Add(time.Second))
	if s.RTT() != 90*ms {
		t.Errorf("RTT = %v, want an eighth of the way: 90ms", s.RTT())
	}
	if !s.Since().Equal(now) {
		t.Errorf("Since moved without a change")
	}
	s = Judge(s, gone, now.Add(2*time.Second))
	s = Judge(s, kernel, now.Add(2*time.Second))
	if s.Loss() != 0.5 {
		t.Errorf("Loss = %v of 2 replies, a loss and an ICMP answer, want 0.5", s.Loss())
	}
	for range historyLen - 1 {
		s = Judge(s, good, now)
	}
	if s.Loss() != 1.0/historyLen {
		t.Errorf("Loss = %v, want the last %d probes to count", s.Loss(), historyLen)
	}
	s = Judge(s, Observation{Kind: Late, RTT: time.Hour}, now)
	if timeoutFor(s.RTT()) != maxTimeout || s.RTT() != maxTimeout {
		t.Errorf("a very late reply makes RTT %v", s.RTT())
	}
	if b := Judge(s, void, now); b != s {
		t.Errorf("Void changed %+v to %+v", s, b)
	}
}

// However it goes, a path that heals is Up again after at most 16 good replies,
// and no run of observations without a good reply makes a tunnel Up.
func FuzzJudge(f *testing.F) {
	f.Add([]byte{1, 1, 3, 3, 3, 1, 1, 1, 3, 3, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		now := time.Unix(1_800_000_000, 0)
		all := []Observation{void, good, overdue, gone, kernel, handshak, unheld, blocked}
		var s State
		for _, b := range script {
			o := all[int(b)%len(all)]
			now = now.Add(time.Duration(int(b)/len(all)-8) * 300 * ms)
			was := s.Status().State
			s = Judge(s, o, now)
			if s.Status().State == mesh.Up && was != mesh.Up && o != good {
				t.Fatalf("Up by %+v", o)
			}
			if l := s.Loss(); l < 0 || l > 1 {
				t.Fatalf("loss %v", l)
			}
		}
		for range goodForUpMax {
			now = now.Add(200 * ms)
			s = Judge(s, good, now)
		}
		if s.Status() != up {
			t.Fatalf("%v after %d good replies", s.Status(), goodForUpMax)
		}
	})
}
