package controlplane

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// came begins a stream of a gateway's process, "east/p1", at addresses.
func (p *plane) came(process string, addrs ...string) error {
	cluster, name, _ := strings.Cut(process, "/")
	var at []netip.Addr
	for _, a := range addrs {
		at = append(at, netip.MustParseAddr(a))
	}
	return p.turn1(func(l *loop) error { return l.gatewayCame(gatewayID{cluster, name}, at) })
}

func (p *plane) left(process string) {
	p.t.Helper()
	cluster, name, _ := strings.Cut(process, "/")
	if err := p.turn1(func(l *loop) error { l.gatewayLeft(gatewayID{cluster, name}); return nil }); err != nil {
		p.t.Fatal(err)
	}
}

// lets time pass, after which the gateways are judged anew.
func (p *plane) judge(after time.Duration) {
	p.dirty = true
	p.after(after)
}

// gatewayList reads "1 -2": the last numbers of the addresses in the topology, of
// those that are lost with a dash.
func (p *plane) gatewayList() string {
	var out []string
	for _, g := range p.topology.Gateways {
		s := fmt.Sprint(g.Addr.AsSlice()[3])
		if g.Lost {
			s = "-" + s
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func (p *plane) processes() string {
	var out []string
	for id := range maps.Keys(p.gatewayStates) {
		out = append(out, id.cluster+"/"+id.name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

const at1, at2 = "203.0.113.1", "203.0.113.2"

func newGateways(t *testing.T) *plane {
	p := twoClusters(t)
	p.say("A", true, "gateway g=203.0.113.1, gateway h=203.0.113.2")
	if got := p.gatewayList(); got != "1 2" {
		t.Fatalf("gateways %s", got)
	}
	return p
}

// A gateway is lost when the last stream of the last process that speaks for its
// address has been gone for the grace; one for which nobody ever spoke is not.
func TestGatewaysAreLost(t *testing.T) {
	p := newGateways(t)
	expect := func(what, want string) {
		t.Helper()
		if got := p.gatewayList(); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	come := func(process string, addrs ...string) {
		t.Helper()
		if err := p.came(process, addrs...); err != nil {
			t.Fatal(err)
		}
	}
	come("east/p1", at1)
	come("east/p1", at1)
	p.left("east/p1")
	p.judge(time.Hour)
	expect("one of two streams ended", "1 2")
	p.left("east/p1")
	p.judge(gatewayGrace - 1)
	expect("within the grace", "1 2")
	p.judge(1)
	expect("after it", "-1 2")
	come("east/p1", at1)
	expect("back", "1 2")
	come("east/p2", at1, at2)
	p.left("east/p1")
	p.judge(time.Hour)
	expect("another process speaks for it", "1 2")
	p.left("east/p2")
	p.judge(time.Hour)
	expect("both are gone", "-1 -2")
	// Clients are given them all the same: that all are silent says more of the
	// control plane.
	if got, reason := mesh.NewResolver(p.topology).Gateways(id("west/n1"), "east"); len(got) != 2 {
		t.Errorf("clients have %v, %s", got, reason)
	}
	come("east/p3", at2)
	expect("one is back", "-1 2")
	if got, _ := mesh.NewResolver(p.topology).Gateways(id("west/n1"), "east"); len(got) != 1 || got[0].Addr.String() != at2 {
		t.Errorf("clients have %v", got)
	}
	// A stream that says no address keeps what the process said before, and speaks
	// for nothing else; another cluster's speaks for none of ours.
	come("east/p3")
	come("west/p1", at1)
	expect("others", "-1 2")
}

// Processes come and go with new names, and are not kept for ever; those on which
// it hangs that an address is lost are.
func TestGatewayProcessesAreForgotten(t *testing.T) {
	p := newGateways(t)
	for i := range 50 {
		process := fmt.Sprint("east/p", i)
		if err := p.came(process, at1); err != nil {
			t.Fatal(err)
		}
		p.left(process)
		p.clock = p.clock.Add(time.Minute)
	}
	p.judge(time.Minute)
	if got := p.processes(); got != "east/p49" || p.gatewayList() != "-1 2" {
		t.Errorf("kept %s; gateways %s", got, p.gatewayList())
	}
	// Another cluster's process speaks for another address of the same digits.
	if err := p.came("west/w", at1); err != nil {
		t.Fatal(err)
	}
	p.judge(time.Minute)
	if got := p.processes(); got != "east/p49 west/w" || p.gatewayList() != "-1 2" {
		t.Errorf("kept %s; gateways %s", got, p.gatewayList())
	}
	p.left("west/w")
	for _, x := range [][]string{{"east/nowhere"}, {"east/elsewhere", "203.0.113.9"}, {"east/two", at1, at2}} {
		if err := p.came(x[0], x[1:]...); err != nil {
			t.Fatal(err)
		}
		p.left(x[0])
	}
	p.judge(time.Minute)
	if got := p.processes(); got != "east/two" || p.gatewayList() != "-1 -2" {
		t.Errorf("kept %s; gateways %s", got, p.gatewayList())
	}
	// While nobody has read the source its addresses are not known.
	p.clusters["east"].spoken = false
	p.say("A", false, "-gateway g")
	p.say("A", false, "-gateway h, service other")
	p.judge(time.Minute)
	if got := p.processes(); got != "east/two" {
		t.Errorf("kept %s", got)
	}
	p.clusters["east"].spoken = true
	p.after(testHold)
	p.judge(time.Minute)
	if got := p.processes(); got != "" {
		t.Errorf("kept %s; gateways %s", got, p.gatewayList())
	}
}

func TestGatewayRefused(t *testing.T) {
	p := newGateways(t)
	expect(t, p.came("north/p"), codes.FailedPrecondition, "declare it first")
	p.synced = false
	expect(t, p.came("north/p"), codes.Unavailable, "not read its sources")
	p.synced = true
	for range maxStreams {
		if err := p.came("east/p", at1); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, p.came("east/p", at1), codes.ResourceExhausted, "streams open already")
	for range maxStreams {
		p.left("east/p")
	}
	if err := p.came("east/p", at1); err != nil {
		t.Error(err)
	}
}

// The loop looks anew by itself when the grace is over.
func TestGatewayGraceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newGateways(t)
		p.now = time.Now
		defer p.background()()
		lost := func() (got string) {
			_ = p.do(t.Context(), func(*loop) error { got = p.gatewayList(); return nil })
			return got
		}
		if err := p.do(t.Context(), func(l *loop) error {
			return l.gatewayCame(gatewayID{"east", "p"}, []netip.Addr{netip.MustParseAddr(at1)})
		}); err != nil {
			t.Fatal(err)
		}
		_ = p.do(t.Context(), func(l *loop) error { l.gatewayLeft(gatewayID{"east", "p"}); return nil })
		wait(gatewayGrace - time.Millisecond)
		if got := lost(); got != "1 2" {
			t.Errorf("before: %s", got)
		}
		wait(2 * time.Millisecond)
		synctest.Wait()
		if got := lost(); got != "-1 2" {
			t.Errorf("after: %s", got)
		}
	})
}

// wait lets the time of a synctest bubble pass.
func wait(d time.Duration) { <-time.NewTimer(d).C }
