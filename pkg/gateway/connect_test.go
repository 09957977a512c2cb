package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dials is a Dial that remembers whom it tried.
type dials struct {
	mu   sync.Mutex
	to   []netip.AddrPort
	fail func(netip.AddrPort) error // may be nil
}

func (d *dials) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	d.mu.Lock()
	d.to = append(d.to, to)
	d.mu.Unlock()
	if d.fail != nil {
		if err := d.fail(to); err != nil {
			return nil, err
		}
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (d *dials) count(to netip.AddrPort) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.to {
		if a == to {
			n++
		}
	}
	return n
}

// A pod that refuses costs a client nothing but a retry, and only now and then.
func TestRetry(t *testing.T) {
	d := &dials{}
	g := start(t, Options{Dial: d.dial})
	bad, good := refusedPort(t), pod(t, echo)
	g.Set(sni, []netip.AddrPort{bad, good})
	for range 20 {
		g.echoed(sni).Close()
	}
	if n := d.count(bad); n == 0 || n > 3 {
		t.Errorf("the pod that refuses was tried %d times, want it to rest after the first", n)
	}
	s := g.Stats()
	if s.Admitted != 20 || int(s.ConnectFailures) != d.count(bad) {
		t.Errorf("admitted %d, connects that failed %d; want 20 and %d", s.Admitted, s.ConnectFailures, d.count(bad))
	}
	if n := g.log.count("connecting to a pod failed"); n != 1 {
		t.Errorf("the log tells of it %d times, want once", n)
	}
}

// Each pod is tried once, and not more of them than allowed.
func TestRetryIsBounded(t *testing.T) {
	refused := errors.New("refused")
	d := &dials{fail: func(netip.AddrPort) error { return refused }}
	g := start(t, Options{Dial: d.dial, ConnectTries: 4})
	var pods []netip.AddrPort
	for i := range 3 {
		pods = append(pods, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(i+1)))
	}
	g.Set("three.demo", pods)
	for i := range 7 {
		pods = append(pods, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 2}), uint16(i+1)))
	}
	g.Set("ten.demo", pods)
	for name, want := range map[string]int{"three.demo": 3, "ten.demo": 4} {
		d.to = nil
		c, _ := g.open(name)
		expect(t, c, fatalAlert(alertInternalError))
		got := slices.Clone(d.to)
		slices.SortFunc(got, netip.AddrPort.Compare)
		if len(slices.Compact(got)) != want || len(d.to) != want {
			t.Errorf("%s: tried %v, want %d different pods", name, d.to, want)
		}
	}
}

// Pods that let connects run into the timeout cost no more than the budget.
func TestConnectBudget(t *testing.T) {
	blocked := func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g := start(t, Options{Dial: blocked, ConnectTimeout: time.Hour, ConnectBudget: 50 * time.Millisecond})
	g.Set(sni, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")})
	c, _ := g.open(sni)
	expect(t, c, fatalAlert(alertInternalError))
	if n := g.Stats().ConnectFailures; n != 1 {
		t.Errorf("%d tries within a budget for one", n)
	}
}

// A pod that answers no SYN, as after its node died, is given up for the next.
func TestRetryBlackHole(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	deafen(t, l.(*net.TCPListener))
	g := start(t, Options{ConnectTimeout: 50 * time.Millisecond})
	hole := l.Addr().(*net.TCPAddr).AddrPort()
	g.Set(sni, []netip.AddrPort{hole, pod(t, echo)})
	for range 4 {
		g.echoed(sni)
	}
	if g.Stats().ConnectFailures == 0 {
		t.Error("the pod that does not answer was never tried: this test shows nothing")
	}
}

// deafen makes a socket drop every packet that comes to it from now on.
func deafen(t testing.TB, s interface {
	File() (*os.File, error)
}) {
	t.Helper()
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	program := unix.SockFprog{Len: 1, Filter: &drop[0]}
	if err := unix.SetsockoptSockFprog(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		t.Fatalf("attach a filter: %v", err)
	}
}

// What this host lacks is not held against the pod.
func TestOwnFailureDoesNotBlamePod(t *testing.T) {
	var first sync.Once
	d := &dials{fail: func(netip.AddrPort) (err error) {
		first.Do(func() { err = fmt.Errorf("dial: %w", os.NewSyscallError("socket", unix.EMFILE)) })
		return err
	}}
	g := start(t, Options{Dial: d.dial})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	c, _ := g.open(sni)
	expect(t, c, fatalAlert(alertInternalError))
	if b := g.routes.find(sni).backends[0]; b.failures.Load() != 0 || b.restUntil.Load() != 0 {
		t.Error("the pod has to rest for what it did not do")
	}
	g.echoed(sni)
}

// A pod that accepts and says nothing holds up nobody else.
func TestMutePodHoldsUpNobody(t *testing.T) {
	g := start(t, Options{})
	mute, conns := taken(t)
	g.SetRoutes(Routes{"mute.demo": {mute}, sni: {pod(t, echo)}})
	for range 50 {
		g.open("mute.demo")
	}
	for range 50 {
		<-conns
	}
	g.echoed(sni)
	eventually(t, "all are active", func() bool { return g.Stats().Active == 51 })
}
