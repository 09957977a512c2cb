package peering

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

type rawReport = grpc.BidiStreamingClient[peeringv1.ReportRequest, peeringv1.ReportResponse]

func openReport(t *testing.T, conn *grpc.ClientConn, node mesh.NodeID) rawReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(as(t.Context(), node), patience)
	t.Cleanup(cancel)
	str, err := peeringv1.NewPeeringClient(conn).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return str
}

func TestReportTakesFullThenChanges(t *testing.T) {
	b := &backend{}
	conn, _ := serve(t, authority{}, b)
	str := openReport(t, conn, n1)
	long := strings.Repeat("x", 500)
	for i, m := range []*peeringv1.ReportRequest{
		{Full: true, Tunnels: []*peeringv1.TunnelReport{
			{Node: "west/n1", State: peeringv1.TunnelReport_UP, Reason: "tunnel"},
			{Node: "west/n2", State: peeringv1.TunnelReport_DOWN, Reason: "of the future"},
			{Node: "west/n3", Reason: long},
			{Node: "west/n4", State: peeringv1.TunnelReport_GONE},
		}},
		{Tunnels: []*peeringv1.TunnelReport{{Node: "west/n2", State: peeringv1.TunnelReport_GONE}}},
		{},
	} {
		m.Sequence = uint64(i + 1)
		if err := str.Send(m); err != nil {
			t.Fatal(err)
		}
		ack, err := str.Recv()
		if err != nil || ack.GetSequence() != m.GetSequence() {
			t.Fatalf("message %d: %v, %v", i, ack, err)
		}
	}
	if err := str.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := str.Recv(); err == nil || status.Code(err) != codes.Unknown { // io.EOF
		t.Errorf("got %v", err)
	}
	eventually(t, "the session is closed", func() (closed bool) {
		b.with(func() { closed = b.open == 0 })
		return closed
	})
	state, _ := b.received()
	want := fmt.Sprintf("map[west/n1:{Up tunnel} west/n3:{Unknown %s}]", long[:maxWord])
	if fmt.Sprint(state) != want {
		t.Errorf("got %v", state)
	}
	if m := b.messages[0].tunnels; len(m) != 4 || m[mesh.NodeID{Cluster: "west", Name: "n4"}] != nil {
		t.Errorf("what is gone must be told as gone: %v", m)
	}
}

func TestReportRefuses(t *testing.T) {
	tunnels := func(list ...*peeringv1.TunnelReport) []*peeringv1.TunnelReport { return list }
	up := &peeringv1.TunnelReport{Node: "west/n1", State: peeringv1.TunnelReport_UP}
	for name, c := range map[string]struct {
		node mesh.NodeID
		send []*peeringv1.ReportRequest
		code codes.Code
		says string
	}{
		"nobody":                  {code: codes.Unauthenticated},
		"a node that has gone":    {node: w1, code: codes.FailedPrecondition},
		"a node not registered":   {node: n2, code: codes.FailedPrecondition, says: "not registered"},
		"changes first":           {node: n1, send: []*peeringv1.ReportRequest{{Tunnels: tunnels(up)}}, code: codes.InvalidArgument, says: "first message"},
		"everything twice":        {node: n1, send: []*peeringv1.ReportRequest{{Full: true}, {Full: true}}, code: codes.InvalidArgument, says: "and no other"},
		"no node":                 {node: n1, send: []*peeringv1.ReportRequest{{Full: true, Tunnels: tunnels(&peeringv1.TunnelReport{})}}, code: codes.InvalidArgument, says: "CLUSTER/NODE"},
		"a state of the future":   {node: n1, send: []*peeringv1.ReportRequest{{Full: true, Tunnels: tunnels(&peeringv1.TunnelReport{Node: "west/n1", State: 9})}}, code: codes.InvalidArgument, says: "state 9 is not known"},
		"more than anybody holds": {node: n1, send: []*peeringv1.ReportRequest{{Full: true, Tunnels: slices.Repeat(tunnels(up), maxTunnels+1)}}, code: codes.ResourceExhausted, says: "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &backend{}
			conn, _ := serve(t, authority{}, b)
			str := openReport(t, conn, c.node)
			for _, m := range c.send {
				_ = str.Send(m) // Recv has the cause
			}
			var err error
			for err == nil {
				_, err = str.Recv()
			}
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v: %s", err, c.code, c.says)
			}
			eventually(t, "no session is left", func() (closed bool) {
				b.with(func() { closed = b.open == 0 })
				return closed
			})
		})
	}
}

// A lease ends while nothing is sent, and while the backend is busy with a
// message: either way the stream ends, with its cause.
func TestReportEndsWithTheLease(t *testing.T) {
	for name, c := range map[string]struct {
		busy  bool
		cause error
		code  codes.Code
	}{
		"idle":     {false, errors.New("node east/n1 is gone"), codes.PermissionDenied},
		"busy":     {true, errors.New("node east/n1 is gone"), codes.PermissionDenied},
		"a status": {false, status.Error(codes.Unauthenticated, "node east/n1 is gone"), codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			b := &backend{}
			if c.busy {
				b.gate = make(chan struct{})
			}
			conn, _ := serve(t, authority{}, b)
			str := openReport(t, conn, n1)
			if err := str.Send(&peeringv1.ReportRequest{Full: true}); err != nil {
				t.Fatal(err)
			}
			if !c.busy {
				if _, err := str.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "it is attached", func() (open bool) {
				b.with(func() { open = b.open == 1 })
				return open
			})
			b.revoke(c.cause)
			_, err := str.Recv()
			if s := status.Convert(err); s.Code() != c.code || s.Message() != "node east/n1 is gone" {
				t.Errorf("got %v", err)
			}
			eventually(t, "the session is closed", func() (closed bool) {
				b.with(func() { closed = b.open == 0 })
				return closed
			})
		})
	}
}

// While one message is under way changes gather: however many there are, the
// control plane gets one message for them.
func TestAgentReportsOneMessageAtATime(t *testing.T) {
	b := &backend{gate: make(chan struct{})}
	conn, _ := serve(t, authority{}, b)
	from := newReports()
	up, down := &mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}, &mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonProbeLost}
	unknown := &mesh.TunnelStatus{Reason: mesh.ReasonProbing}
	from.set(w1, unknown)
	ctx, cancel := context.WithCancel(as(t.Context(), n1))
	end := make(chan error, 1)
	go func() { end <- NewAgent(conn, n1, prover{}).Report(ctx, from) }()

	last := mesh.NodeID{Cluster: "west", Name: "last"}
	for range 1000 {
		from.set(w1, down)
		from.set(w1, up)
		from.set(n2, down)
	}
	from.set(last, unknown)
	from.set(n2, nil)
	close(b.gate)
	want := fmt.Sprint(map[mesh.NodeID]mesh.TunnelStatus{w1: *up, last: *unknown})
	eventually(t, "all is told", func() bool {
		state, _ := b.received()
		return fmt.Sprint(state) == want
	})
	if _, count := b.received(); count > 3 {
		t.Errorf("%d messages for what fits into two or three", count)
	}

	cancel()
	if err := ended(t, end); !errors.Is(err, context.Canceled) && status.Code(errors.Unwrap(err)) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}

// A walk of changes against a control plane that takes them in at its own pace:
// what it holds in the end is what the agent has.
func TestAgentReportsWhatThereIs(t *testing.T) {
	b := &backend{gate: make(chan struct{})}
	conn, _ := serve(t, authority{}, b)
	from := newReports()
	ctx, cancel := context.WithCancel(as(t.Context(), n1))
	defer cancel()
	end := make(chan error, 1)
	go func() { end <- NewAgent(conn, n1, prover{}).Report(ctx, from) }()
	for i := range 500 {
		id := mesh.NodeID{Cluster: "west", Name: fmt.Sprint("n", i*7%20)}
		if i%3 == 0 {
			from.set(id, nil)
		} else {
			from.set(id, &mesh.TunnelStatus{State: mesh.TunnelState(i % 3), Reason: mesh.Reason(fmt.Sprint(i))})
		}
		select {
		case b.gate <- struct{}{}:
		default:
		}
	}
	close(b.gate)
	eventually(t, "both agree", func() bool {
		state, _ := b.received()
		return maps.EqualFunc(state, from.now(), func(a mesh.TunnelStatus, b *mesh.TunnelStatus) bool { return a == *b })
	})
}

func TestAgentReportEndsWithTheServer(t *testing.T) {
	b := &backend{}
	conn, gs := serve(t, authority{}, b)
	from := newReports()
	end := make(chan error, 1)
	go func() { end <- NewAgent(conn, n1, prover{}).Report(as(t.Context(), n1), from) }()
	eventually(t, "it reports", func() bool { _, n := b.received(); return n == 1 })
	gs.Stop()
	if err := ended(t, end); status.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestAgentReportSaysWhyItWasRefused(t *testing.T) {
	b := &backend{}
	conn, _ := serve(t, authority{}, b)
	err := NewAgent(conn, n2, prover{}).Report(as(t.Context(), n2), newReports())
	if status.Code(errors.Unwrap(err)) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("got %v", err)
	}
}

func TestReportsLeaveNoGoroutine(t *testing.T) {
	b := &backend{}
	conn, _ := serve(t, authority{}, b)
	a := NewAgent(conn, n1, prover{})
	if _, _, err := a.Renew(as(t.Context(), n1), nil); err != nil { // the connection and its goroutines
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for i := range 50 {
		ctx, cancel := context.WithCancel(as(t.Context(), n1))
		from := newReports()
		end := make(chan error, 1)
		go func() { end <- a.Report(ctx, from) }()
		if i%3 > 0 {
			eventually(t, "it reports", func() (open bool) {
				b.with(func() { open = b.open == 1 && len(b.messages) > 0 })
				return open
			})
		}
		if i%3 > 1 {
			b.revoke(errors.New("no more"))
		} else {
			cancel()
		}
		if err := ended(t, end); err == nil {
			t.Error("it ends without a reason")
		}
		cancel()
		eventually(t, "the session is closed", func() (closed bool) {
			b.with(func() { closed, b.messages = b.open == 0, nil })
			return closed
		})
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}
