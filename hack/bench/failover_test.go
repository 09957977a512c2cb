package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	echo "github.com/flatmesh/flatmesh/hack/meshecho/report"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// at is a moment of an event, in milliseconds after it began.
func at(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

// call is one that began and ended at a moment; way is "direct" or "gateway" if it
// was answered, and else empty.
func call(n, begin, end int, peer string, way echo.Via) echo.Call {
	c := echo.Call{N: n, Start: at(begin), LatencySeconds: float64(end-begin) / 1000, Peer: peer, OK: way != "", Via: way}
	if c.OK {
		c.Pod, c.Cluster = "west/n1/p1", "west"
	}
	return c
}

const farPod, farGateway = "10.2.1.2:50051", "100.64.2.1:15443"

// TestToll counts what calls came to around a silent tunnel.
func TestToll(t *testing.T) {
	addr := netip.MustParseAddrPort(farPod).Addr()
	near := &caller{host: "east/n1/p1"}
	i := incident{
		what: "east/n1 – west/n1", began: at(0),
		lost: map[string]loss{near.host: {addr, at(900)}},
		silent: []silence{{
			user: user{caller: near, far: mesh.NodeID{Cluster: "west", Name: "n1"}, pod: "west/n1/p1", addr: addr},
			cut:  at(10), down: at(700), healed: at(4000),
		}},
	}
	calls := []echo.Call{
		call(1, -100, -90, farPod, echo.Direct),
		call(2, -5, 3200, farPod, ""),           // in flight: lost with the tunnel
		call(3, 650, 3300, farPod, ""),          // begun before it was known
		call(4, 680, 5000, farPod, echo.Direct), // one that the heal still answered
		call(5, 690, 800, farPod, ""),           // failed early
		call(6, 720, 760, farGateway, echo.Gateway),
		call(7, 2000, 3300, farPod, ""),     // nobody should have sent it there
		call(8, 2000, 2001, farGateway, ""), // the gateway was well
		call(9, 2000, 2001, "", ""),         // never sent
		call(10, 4500, 4501, farPod, echo.Direct),
		call(11, -100, -50, farPod, ""), // before anything was wrong
	}
	var c toll
	c.add("silence", i, near.host, calls)
	c.add("silence", i, "south/n1/p1", []echo.Call{call(1, 500, 600, farPod, "")}) // a client that is not concerned
	if c.calls != 12 || c.failed != 8 || c.excused != 3 || c.unexplained() != 5 || c.slow != 1 || c.slowElse != 0 {
		t.Errorf("%+v", c)
	}
	if len(c.strange) != 5 || !strings.Contains(c.strange[0], "call 7 of east/n1/p1") || !strings.Contains(c.strange[4], "south") {
		t.Errorf("told: %q", c.strange)
	}
	for _, s := range []struct {
		name string
		got  series
		want series
	}{
		{"down", c.down, series{0.7}}, {"good", c.good, series{0.76}}, {"same", c.same, series{0.76}},
		{"last", c.last, series{2}}, {"ended", c.ended, series{3.2, 3.3, 0.8}},
	} {
		if !slices.EqualFunc(s.got, s.want, func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 }) {
			t.Errorf("%s: %v, want %v", s.name, s.got, s.want)
		}
	}
	var sum toll
	sum.join(c)
	sum.join(c)
	if sum.calls != 24 || sum.unexplained() != 10 || len(sum.ended) != 6 {
		t.Errorf("joined: %+v", sum)
	}
}

// TestCaller follows which calls have ended, in whatever order they do.
func TestCaller(t *testing.T) {
	c := &caller{beyond: map[int]bool{}}
	c.add(call(2, 20, 25, farPod, echo.Direct))
	c.add(call(4, 40, 45, farPod, echo.Direct))
	if c.ended(at(30)) {
		t.Error("call 1 has not ended")
	}
	c.add(call(1, 10, 50, farPod, echo.Direct))
	if c.ended(at(30)) {
		t.Error("call 3 may have begun before: nobody knows yet")
	}
	c.add(call(3, 30, 50, farPod, echo.Direct))
	if !c.ended(at(30)) || c.ended(at(41)) {
		t.Error("want 1 and 2 known to have ended, and nothing of what began after 4")
	}
	if got := c.since(at(20)); len(got) != 2 {
		t.Errorf("after 2: %v", got)
	}
	if got := c.take(at(30)); len(got) != 2 || len(c.since(at(0))) != 2 {
		t.Errorf("taken: %v", got)
	}
	if got := c.take(at(100)); len(got) != 2 || c.low != 4 {
		t.Errorf("taken: %v, all up to %d", got, c.low)
	}
}
