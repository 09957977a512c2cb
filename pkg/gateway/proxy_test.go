package gateway

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// A pod that is taken out keeps its connections and gets no new ones.
func TestRemovedPodKeepsItsConnections(t *testing.T) {
	g := start(t, Options{})
	old, young := pod(t, echo), pod(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("young")) })
	g.Set(sni, []netip.AddrPort{old})
	running := g.echoed(sni)
	for _, change := range []func(){
		func() { g.Set(sni, []netip.AddrPort{young}) },
		func() { g.SetRoutes(Routes{sni: {young}}) },
		func() { g.Remove(sni); g.Set(sni, []netip.AddrPort{young}) },
	} {
		change()
		send(t, running, []byte("old"))
		expect(t, running, []byte("old"))
		c, _ := g.open(sni)
		expect(t, c, []byte("young"))
	}
}

func TestDrainWaits(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	a, b := g.echoed(sni), g.echoed(sni)
	drained := make(chan error, 1)
	go func() { drained <- g.Drain(t.Context()) }()
	eventually(t, "new connections are refused", func() bool {
		c, err := net.Dial("tcp", g.addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
	for _, c := range []*net.TCPConn{a, b} {
		send(t, c, []byte("unhurried"))
		expect(t, c, []byte("unhurried"))
		select {
		case err := <-drained:
			t.Fatalf("Drain returned %v while a connection ran", err)
		default:
		}
		c.Close()
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
	if n := g.Stats().Ended[EndDrained]; n != 0 {
		t.Errorf("%d were cut", n)
	}
}

func TestDrainCuts(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	var open []*net.TCPConn
	for range 5 {
		open = append(open, g.echoed(sni))
	}
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan error, 1)
	go func() { drained <- g.Drain(ctx) }()
	open[0].Close()
	eventually(t, "one has ended", func() bool { return g.Stats().Active == 4 })
	cancel()
	var cut *CutError
	if err := <-drained; !errors.As(err, &cut) || cut.Connections != 4 {
		t.Errorf("Drain: %v, want 4 cut", err)
	}
	for _, c := range open[1:] {
		expectEOF(t, c)
	}
	if s := g.Stats(); s.Active != 0 || s.Waiting != 0 || s.Ended[EndDrained] != 4 {
		t.Errorf("after Drain: %+v", s)
	}
	if err := g.Drain(t.Context()); err != nil {
		t.Errorf("a second Drain: %v", err)
	}
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(t.Context(), l); err != nil {
		t.Errorf("Serve after Drain: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Drain left its listener open: %v", err)
	}
}

// A connect under way does not hold up the end of Drain.
func TestDrainCutsConnects(t *testing.T) {
	dialing := make(chan struct{})
	g := start(t, Options{ConnectTimeout: patience, ConnectBudget: patience, Dial: func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
		close(dialing)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	g.Set(sni, []netip.AddrPort{refusedPort(t)})
	g.open(sni)
	<-dialing
	now, cancel := context.WithCancel(t.Context())
	cancel()
	var cut *CutError
	if err := g.Drain(now); !errors.As(err, &cut) || cut.Connections != 1 {
		t.Errorf("Drain: %v", err)
	}
	if n := g.refusals(Draining); n != 1 {
		t.Errorf("refused: %v", g.Stats().Refused)
	}
}

// The end of Serve's context stops accepting and leaves connections alone; other
// listeners go on.
func TestServeContext(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, l) }()
	second := dialTo(t, l.Addr().String())
	hello := helloFor(t, sni)
	send(t, second, hello)
	expect(t, second, hello)
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	send(t, second, []byte("still here"))
	expect(t, second, []byte("still here"))
	g.echoed(sni)
}

// failing is a listener whose first accepts fail.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return nil, err
	}
	return f.Listener.Accept()
}

func TestAcceptErrors(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	full := os.NewSyscallError("accept4", unix.EMFILE)
	g.serve(&failing{Listener: l, errs: []error{full, full, os.NewSyscallError("accept4", unix.ECONNABORTED)}})
	c := dialTo(t, l.Addr().String())
	hello := helloFor(t, sni)
	send(t, c, hello)
	expect(t, c, hello)
	if n := g.Stats().AcceptFailures; n != 3 {
		t.Errorf("%d failures counted, want 3", n)
	}
	if n := g.log.count("accepting connections failed"); n != 1 {
		t.Errorf("the log tells of it %d times, want once", n)
	}
}

type pipeListener struct{ net.Listener }

func (pipeListener) Accept() (net.Conn, error) {
	a, b := net.Pipe()
	b.Close()
	return a, nil
}

func TestServeErrors(t *testing.T) {
	g := start(t, Options{})
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(t.Context(), pipeListener{l}); err == nil || !strings.Contains(err.Error(), "TCP listener") {
		t.Errorf("a listener of pipes: %v", err)
	}
	// l is closed now.
	if err := g.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v", err)
	}
}

// Routes change all the time while clients come, talk, break off and go. Nobody
// who asks for a service that is always there is refused, every connection is
// accounted for, and at the end nothing is left (start checks that).
func TestChurn(t *testing.T) {
	g := start(t, Options{})
	pods := []netip.AddrPort{pod(t, echo), pod(t, echo), pod(t, echo), refusedPort(t)}
	g.Set(sni, pods)
	stop := make(chan struct{})
	var changers, clients sync.WaitGroup
	for _, change := range []func(){
		func() { g.SetRoutes(Routes{sni: pods, "other.demo": pods[:1]}) },
		func() { g.Set(sni, pods[rand.IntN(3):]) },
		func() { g.Set("other.demo", nil); g.Remove("other.demo") },
		func() { g.Stats() },
	} {
		changers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					change()
					runtime.Gosched()
				}
			}
		})
	}
	hello, other := helloFor(t, sni), helloFor(t, "other.demo")
	body := random(100_000)
	var total, whole atomic.Int64
	for i := range 8 {
		clients.Go(func() {
			for j := range 40 {
				c, err := net.Dial("tcp", g.addr)
				if err != nil {
					t.Error(err)
					return
				}
				total.Add(1)
				switch (i + j) % 4 {
				case 0: // breaks off in its ClientHello, or after
					_, _ = c.Write(hello[:rand.IntN(len(hello))+1])
					_ = c.(*net.TCPConn).SetLinger(0)
				case 1: // may be refused
					_, _ = c.Write(other)
					_, _ = io.CopyN(io.Discard, c, 1)
				default:
					go func() {
						_, _ = c.Write(hello)
						_, _ = c.Write(body)
						_ = c.(*net.TCPConn).CloseWrite()
					}()
					if n, err := io.Copy(io.Discard, c); err != nil || int(n) != len(hello)+len(body) {
						t.Errorf("%d bytes came back, %v", n, err)
					}
					whole.Add(1)
				}
				c.Close()
			}
		})
	}
	clients.Wait()
	close(stop)
	changers.Wait()
	eventually(t, "every connection is accounted for", func() bool {
		s := g.Stats()
		var refused, ended uint64
		for _, n := range s.Refused {
			refused += n
		}
		for _, n := range s.Ended {
			ended += n
		}
		return s.Active == 0 && s.Waiting == 0 && int64(s.Admitted+refused) == total.Load() && ended == s.Admitted
	})
	if s := g.Stats(); int64(s.Ended[EndClosed]) < whole.Load() {
		t.Errorf("%d connections were whole, %d ended as closed", whole.Load(), s.Ended[EndClosed])
	}
}

func TestMetrics(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	g.echoed(sni)
	c, _ := g.open("other.demo")
	expect(t, c, fatalAlert(112))
	eventually(t, "the other is gone", func() bool { return g.Stats().Waiting == 0 })
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(g.Proxy); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"flatmesh_gateway_connections_total admitted":     1,
		"flatmesh_gateway_connections_total unknown-sni":  1,
		"flatmesh_gateway_connections_total no-sni":       0,
		"flatmesh_gateway_connections_active admitted":    1,
		"flatmesh_gateway_connections_active waiting":     0,
		"flatmesh_gateway_connections_ended_total closed": 0,
		"flatmesh_gateway_services":                       1,
		"flatmesh_gateway_connect_failures_total":         0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: %v (there: %v), want %v", name, v, ok, want)
		}
	}
	if got["flatmesh_gateway_bytes_total to_pod"] == 0 || got["flatmesh_gateway_bytes_total to_client"] == 0 {
		t.Errorf("no bytes are counted: %v", got)
	}
}
