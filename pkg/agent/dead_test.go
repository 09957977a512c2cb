package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/probe"
)

// TestDead: packets are refused once a tunnel has carried nothing for a while, to
// the pods behind it alone, and the moment of the next refusal is known.
func TestDead(t *testing.T) {
	in, west, north := testInputs(t)
	p := makePlan(in)
	began := time.Unix(1000, 0)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	const after = 2 * time.Second
	down := func(n mesh.NodeID, reason mesh.Reason, since, reply float64) probe.Result {
		return probe.Result{Target: probe.Target{Node: n}, Status: mesh.TunnelStatus{State: mesh.Down, Reason: reason}, Since: at(since), LastReply: at(reply)}
	}
	westPods := "[10.2.0.0/24 fd00:2::/64]"
	for _, c := range []struct {
		name    string
		now     float64
		after   time.Duration
		results []probe.Result
		want    string
		next    float64 // 0: never
	}{
		{"not yet", 1.9, after, []probe.Result{down(west.Node, mesh.ReasonProbeLost, 0, -1)}, "[]", 2},
		{"due", 2, after, []probe.Result{down(west.Node, mesh.ReasonProbeLost, 0, -1)}, westPods, 0},
		{"never", 60, -1, []probe.Result{down(west.Node, mesh.ReasonProbeLost, 0, -1)}, "[]", 0},
		{"up", 60, after, []probe.Result{{Target: probe.Target{Node: west.Node}, Status: mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}, Since: at(0)}}, "[]", 0},
		{"one of two", 3, after, []probe.Result{down(west.Node, mesh.ReasonProbeLost, 0, -1), down(north.Node, mesh.ReasonNoHandshake, 2.5, -1)}, westPods, 4.5},
		{"it answers again", 2.1, after, []probe.Result{down(west.Node, mesh.ReasonProbeLost, 0, 2)}, "[]", 4},
		{"silent again", 4, after, []probe.Result{down(west.Node, mesh.ReasonProbeLost, 0, 2)}, westPods, 0},
		{"answers that it passes nothing on", 2.1, after, []probe.Result{down(west.Node, mesh.ReasonForwardBlocked, 0, 2)}, westPods, 0},
		{"answers that it holds nothing of us", 2.1, after, []probe.Result{down(west.Node, mesh.ReasonNotApplied, 0, 2)}, westPods, 0},
	} {
		got, next := dead(p, c.results, c.after, at(c.now))
		var want time.Time
		if c.next != 0 {
			want = at(c.next)
		}
		if fmt.Sprint(got) != c.want || !next.Equal(want) {
			t.Errorf("%s: %v, next %v; want %s, next %v", c.name, got, next, c.want, want)
		}
	}
}
