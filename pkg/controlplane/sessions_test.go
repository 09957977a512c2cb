package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// far is a certificate's end that does not come.
func far(context.Context) (time.Time, error) { return time.Now().Add(time.Hour), nil }

// attached is a report stream of a node.
type attached struct {
	*session
	ctx context.Context
}

// attach begins a report stream; the plane's loop must not run on its own.
func (p *plane) attach(node string) attached {
	p.t.Helper()
	svc := &service{loop: p.loop, expiry: far}
	stop := p.background()
	defer stop()
	s, ctx, err := svc.Attach(p.t.Context(), id(node))
	if err != nil {
		p.t.Fatal(err)
	}
	return attached{s.(*session), ctx}
}

func (p *plane) close(s attached) {
	stop := p.background()
	defer stop()
	s.Close()
}

// report hands a session "west/n1=Up" and so on; "west/n1=" takes one off.
func (p *plane) report(s attached, full bool, list ...string) error {
	stop := p.background()
	defer stop()
	tunnels := map[mesh.NodeID]*mesh.TunnelStatus{}
	for _, x := range list {
		node, state, _ := strings.Cut(x, "=")
		if state == "" {
			tunnels[id(node)] = nil
			continue
		}
		st := &mesh.TunnelStatus{}
		if err := st.State.UnmarshalText([]byte(state)); err != nil {
			p.t.Fatal(err)
		}
		tunnels[id(node)] = st
	}
	return s.Report(context.Background(), full, tunnels)
}

// seen is what the status says of a node's tunnels.
func (p *plane) seen(node string) string {
	for _, n := range p.status("v").NodeList {
		if n.Node == id(node) {
			return fmt.Sprintf("connected=%t up=%d down=%d unknown=%d %v", n.Connected, n.Up, n.Down, n.Unknown, p.tunnels(n.Node))
		}
	}
	return "not there"
}

func (p *plane) see(node, want string) {
	p.t.Helper()
	if got := p.seen(node); got != want {
		p.t.Errorf("%s: got %s, want %s", node, got, want)
	}
}

func TestReports(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1", "east/n2", "east/n3", "west/n1")
	p.see("west/n1", "connected=false up=0 down=0 unknown=0 map[]")
	s := p.attach("west/n1")
	p.see("west/n1", "connected=true up=0 down=0 unknown=0 map[]")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	must(p.report(s, true, "east/n1=Up", "east/n2=Down", "east/n3=Unknown"))
	p.see("west/n1", "connected=true up=1 down=1 unknown=1 map[east/n1:{Up } east/n2:{Down } east/n3:{Unknown }]")
	must(p.report(s, false, "east/n2=Up", "east/n3="))
	p.see("west/n1", "connected=true up=2 down=0 unknown=0 map[east/n1:{Up } east/n2:{Up }]")
	// Nodes that are not there take no memory.
	must(p.report(s, false, "east/n9=Up", "north/n1=Up", "east/n1=Down"))
	p.see("west/n1", "connected=true up=1 down=1 unknown=0 map[east/n1:{Down } east/n2:{Up }]")
	must(p.report(s, true, "east/n3=Up"))
	p.see("west/n1", "connected=true up=1 down=0 unknown=0 map[east/n3:{Up }]")
	if got := p.status("v").Tunnels; got != (TunnelCounts{Expected: 6, Up: 1}) {
		t.Errorf("got %+v", got)
	}

	// A newer stream takes over: until its full report is in, the old one's word
	// holds, and what the old one says from now on does not count.
	next := p.attach("west/n1")
	p.see("west/n1", "connected=true up=1 down=0 unknown=0 map[east/n3:{Up }]")
	<-s.ctx.Done()
	if status.Code(context.Cause(s.ctx)) != codes.Aborted {
		t.Errorf("the old stream ends with %v", context.Cause(s.ctx))
	}
	must(p.report(s, false, "east/n1=Up"))
	p.close(s)
	p.see("west/n1", "connected=true up=1 down=0 unknown=0 map[east/n3:{Up }]")
	must(p.report(next, true, "east/n1=Up", "east/n2=Up"))
	p.see("west/n1", "connected=true up=2 down=0 unknown=0 map[east/n1:{Up } east/n2:{Up }]")
	p.close(next)
	p.see("west/n1", "connected=false up=0 down=0 unknown=0 map[]")
	if len(p.leases) != 0 || len(p.reports) != 0 {
		t.Errorf("left: %v %v", p.leases, p.reports)
	}
}

func TestAttachNeedsARegistration(t *testing.T) {
	p := twoClusters(t)
	stop := p.background()
	defer stop()
	_, _, err := (&service{loop: p.loop, expiry: far}).Attach(t.Context(), id("west/n1"))
	expect(t, err, codes.FailedPrecondition, "west/n1 is not registered")
}

func TestLeasesEndWithTheirNode(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1", "east/n2")
	gone, stays := p.attach("east/n1"), p.attach("east/n2")
	p.put("A", declare("east", "10.1.0.0/16"), "n2", "n3")
	p.tell()
	<-gone.ctx.Done()
	if got := fmt.Sprint(context.Cause(gone.ctx)); got != "node east/n1 is no longer in the source of cluster east" {
		t.Errorf("got %s", got)
	}
	if stays.ctx.Err() != nil {
		t.Errorf("another node's lease: %v", context.Cause(stays.ctx))
	}
	// The stream's end comes later, when the node may have come back.
	p.put("A", declare("east", "10.1.0.0/16"), "n1", "n2", "n3")
	p.tell()
	p.mustJoin("east/n1")
	p.see("east/n1", "connected=false up=0 down=0 unknown=0 map[]")
	back := p.attach("east/n1")
	p.close(gone)
	p.see("east/n1", "connected=true up=0 down=0 unknown=0 map[]")
	p.close(back)
	p.close(stays)
	if len(p.leases) != 0 {
		t.Errorf("left: %v", p.leases)
	}
}

func TestLeaseEndsWithTheCertificate(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("west/n1")
	stop := p.background()
	defer stop()
	svc := &service{loop: p.loop, expiry: func(context.Context) (time.Time, error) { return time.Now().Add(time.Millisecond), nil }}
	s, ctx, err := svc.Attach(t.Context(), id("west/n1"))
	if err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	expect(t, context.Cause(ctx), codes.Unauthenticated, "expired")
	s.Close()

	svc.expiry = func(context.Context) (time.Time, error) {
		return time.Time{}, status.Error(codes.Unauthenticated, "no certificate")
	}
	_, _, err = svc.Attach(t.Context(), id("west/n1"))
	expect(t, err, codes.Unauthenticated, "no certificate")
}

func TestStreamsOfANodeAreBounded(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("west/n1")
	stop := p.background()
	defer stop()
	svc := &service{loop: p.loop, expiry: far, caller: func(context.Context) (mesh.NodeID, error) { return id("west/n1"), nil }}
	var release []func()
	for range maxStreams {
		_, _, r, err := svc.Identify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		release = append(release, r)
	}
	_, _, _, err := svc.Identify(t.Context())
	expect(t, err, codes.ResourceExhausted, "streams open already")
	_, _, err = svc.Attach(t.Context(), id("west/n1"))
	expect(t, err, codes.ResourceExhausted, "streams open already")
	for _, r := range release {
		r()
	}
	_, _, r, err := svc.Identify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r()
}

func TestIdentifyRefuses(t *testing.T) {
	p := twoClusters(t)
	stop := p.background()
	defer stop()
	svc := &service{loop: p.loop, expiry: far, caller: func(context.Context) (mesh.NodeID, error) { return id("west/n9"), nil }}
	_, _, _, err := svc.Identify(t.Context())
	expect(t, err, codes.FailedPrecondition, "node west/n9 is not in B")
	svc.caller = func(context.Context) (mesh.NodeID, error) {
		return mesh.NodeID{}, status.Error(codes.Unauthenticated, "join first")
	}
	_, _, _, err = svc.Identify(t.Context())
	expect(t, err, codes.Unauthenticated, "join first")
	svc.caller, svc.expiry = func(context.Context) (mesh.NodeID, error) { return id("west/n1"), nil }, func(context.Context) (time.Time, error) { return time.Time{}, errors.New("x") }
	if _, _, _, err = svc.Identify(t.Context()); err == nil {
		t.Error("no error")
	}
}
