package probe

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	echov1 "github.com/flatmesh/flatmesh/api/echo/v1"
	"github.com/flatmesh/flatmesh/internal/testenv"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestSendErrors(t *testing.T) {
	for errno, want := range map[unix.Errno]struct{ tunnel, socket bool }{
		unix.ENOBUFS:       {},
		unix.EAGAIN:        {},
		unix.EPERM:         {},
		unix.ENETDOWN:      {},
		unix.EMSGSIZE:      {},
		unix.EINVAL:        {socket: true},
		unix.EADDRNOTAVAIL: {socket: true},
		unix.ENODEV:        {socket: true},
		unix.ENXIO:         {socket: true},
		unix.EHOSTUNREACH:  {tunnel: true},
		unix.ENETUNREACH:   {tunnel: true},
		unix.ENOKEY:        {tunnel: true},
		unix.EDESTADDRREQ:  {tunnel: true},
		unix.ECONNREFUSED:  {tunnel: true},
	} {
		err := fmt.Errorf("probe: %w", &net.OpError{Op: "write", Err: os.NewSyscallError("sendto", syscall.Errno(errno))})
		if got := tellsOfTunnel(err); got != want.tunnel {
			t.Errorf("%v tells of the tunnel: %v, want %v", errno, got, want.tunnel)
		}
		if got := tellsOfSocket(err); got != want.socket {
			t.Errorf("%v tells of the socket: %v, want %v", errno, got, want.socket)
		}
	}
}

func TestLate(t *testing.T) {
	for name, c := range map[string]struct {
		behind, wall, monotonic time.Duration
		want                    bool
	}{
		"in time":           {0, 100 * ms, 100 * ms, false},
		"woken before":      {-80 * ms, 20 * ms, 20 * ms, false},
		"a little behind":   {250 * ms, 350 * ms, 350 * ms, false},
		"far behind":        {251 * ms, 351 * ms, 351 * ms, true},
		"suspended":         {0, time.Hour, 100 * ms, true},
		"clock set back":    {0, -time.Hour, 100 * ms, true},
		"clock disciplined": {0, 101 * ms, 100 * ms, false},
	} {
		if got := late(c.behind, c.wall, c.monotonic); got != c.want {
			t.Errorf("%s: late %v, want %v", name, got, c.want)
		}
	}
}

// What failed locally, or was in the air while we were away, changes nothing; what
// cannot be routed is lost at once.
func TestLocalFailures(t *testing.T) {
	w := settled(t, 1, 1, 20*ms)
	w.tracker.void()
	e := w.tracker.entries[simID(0)]
	next := func() probe {
		for {
			w.now = w.now.Add(w.tracker.wait(w.now))
			if out := w.tracker.poll(w.now, true, nil); len(out) > 0 {
				return out[0]
			}
		}
	}
	for range 20 {
		w.tracker.failed(next(), false, w.now)
	}
	if e.state.Status() != up || e.state.Loss() != 0 {
		t.Fatalf("sends that failed locally: %v, loss %v", e.state.Status(), e.state.Loss())
	}
	for range 20 {
		p := next()
		w.tracker.void()
		w.now = w.now.Add(5 * time.Second)
		if w.tracker.replied(p.to, answer{seq: p.seq, applied: 7}, w.now) {
			t.Fatal("a reply to a discarded probe counted")
		}
	}
	if e.state.Status() != up || e.state.Loss() != 0 {
		t.Fatalf("rounds that were discarded: %v, loss %v", e.state.Status(), e.state.Loss())
	}
	for range lostForDown {
		w.tracker.failed(next(), true, w.now)
	}
	if e.state.Status() != lost {
		t.Fatalf("no route: %v", e.state.Status())
	}
}

func TestReplies(t *testing.T) {
	w := newWorld(t, 2, ms)
	ps := w.tracker.poll(w.now, false, nil)
	if len(ps) != 2 {
		t.Fatalf("%d probes", len(ps))
	}
	a := answer{seq: ps[0].seq, applied: 7}
	for name, c := range map[string]struct {
		from netip.Addr
		a    answer
	}{
		"of an unknown address":         {loopback(), a},
		"of the other target's address": {ps[1].to, a},
		"with a sequence never sent":    {ps[0].to, answer{seq: a.seq + 1000, applied: 7}},
		"with no sequence":              {ps[0].to, answer{applied: 7}},
	} {
		if w.tracker.replied(c.from, c.a, w.now.Add(ms)) {
			t.Errorf("a reply %s counted", name)
		}
	}
	if len(w.tracker.takeChanges()) != 0 {
		t.Error("changed by replies that do not count")
	}
	if !w.tracker.replied(ps[0].to, a, w.now.Add(ms)) {
		t.Error("the reply did not count")
	}
	if w.tracker.replied(ps[0].to, a, w.now.Add(ms)) {
		t.Error("the reply counted twice")
	}
}

// Changes of one node that wait to be told become one, or none.
func TestChangesJoin(t *testing.T) {
	w := newWorld(t, 3, ms)
	n := w.tracker
	set := func(i int, o ...Observation) {
		e := n.entries[simID(i)]
		for _, o := range o {
			n.settle(e, Judge(e.state, o, w.now), w.now)
		}
	}
	set(1, good)
	n.takeChanges()
	set(0, good, gone, gone, gone)
	set(1, gone, gone, gone, good, good, good)
	set(2, good)
	n.setTargets([]Target{{Node: simID(0), Addr: simAddr(0)}, {Node: simID(1), Addr: simAddr(1)}}, w.now)
	want := []Change{{Node: simID(0), Old: probing, New: lost}}
	if got := n.takeChanges(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTwoTargetsWithOneAddress(t *testing.T) {
	n := newTracker(rand.New(rand.NewPCG(1, 2)))
	now := time.Unix(1_800_000_000, 0)
	n.setTargets([]Target{{Node: simID(0), Addr: simAddr(0), Expect: 7}, {Node: simID(1), Addr: simAddr(0), Expect: 7}}, now)
	for _, p := range n.poll(now, false, nil) {
		n.replied(p.to, answer{seq: p.seq, applied: 7}, now)
	}
	if a, b := n.entries[simID(0)].status, n.entries[simID(1)].status; a != up || b != probing {
		t.Errorf("the first is %v, the second %v", a, b)
	}
}

func TestMeter(t *testing.T) {
	var m meter
	// In both cases a packet of ours is counted by us a reading before the device
	// counts it, or in the same.
	type reading struct {
		tx, own uint64
		want    bool
	}
	for i, r := range []reading{
		{1000, 0, false}, {1003, 3, false}, {1003, 4, false}, {1004, 4, false}, {1005, 4, true}, {1005, 4, false},
		{1005, 9, false}, {1010, 9, false}, {1012, 10, true}, {3, 10, false}, {3, 10, false}, {4, 10, true}, {5, 11, false},
	} {
		if got := m.linkBusy(r.tx, r.own); got != r.want {
			t.Errorf("reading %d: busy %v, want %v", i, got, r.want)
		}
	}

	id := simID(1)
	now := time.Unix(1_800_000_000, 0)
	var sent, own uint64
	read := func(after time.Duration, data, ours uint64) bool {
		now = now.Add(after)
		sent, own = sent+data+ours, own+ours
		return len(m.busy(now, map[mesh.NodeID]Counters{id: {Sent: sent}}, func(mesh.NodeID) uint64 { return own })) > 0
	}
	sent = 5000
	for name, c := range map[string]struct {
		after      time.Duration
		data, ours uint64
		want       bool
	}{
		"nothing":               {after: 100 * ms},
		"our own":               {after: 100 * ms, ours: 80},
		"a keepalive":           {after: 100 * ms, data: 32},
		"a handshake":           {after: 100 * ms, data: 148},
		"an answer to one":      {after: 100 * ms, data: 92 + 32},
		"the smallest TCP SYN":  {after: 100 * ms, data: sealedSize(40), want: true},
		"a ping":                {after: 100 * ms, data: sealedSize(84), want: true},
		"with our own":          {after: 100 * ms, data: sealedSize(52), ours: 160, want: true},
		"a full packet":         {after: 100 * ms, data: 1452, want: true},
		"much":                  {after: 10 * time.Second, data: 1 << 40, want: true},
		"handshakes of a while": {after: 10 * time.Second, data: 3*148 + 32},
	} {
		read(0, 0, 0)
		read(0, 0, 0)
		if got := read(c.after, c.data, c.ours); got != c.want {
			t.Errorf("%s: busy %v, want %v", name, got, c.want)
		}
	}
	sent = 0
	if read(100*ms, 0, 0) {
		t.Error("a counter that began anew is traffic")
	}
	if !read(100*ms, sealedSize(60), 0) {
		t.Error("not busy after the counter began anew")
	}
	if chatter(1<<40+1, 100*time.Hour) {
		t.Error("a terabyte of handshakes")
	}
}

// FuzzDatagram feeds what may arrive to everything that reads it.
func FuzzDatagram(f *testing.F) {
	request, _ := appendRequest(nil, 1)
	reply, _ := appendReply(nil, 2, 7, []mesh.Family{mesh.IPv4, mesh.IPv6}, "v1")
	f.Add(request, false)
	f.Add(reply, true)
	f.Add([]byte{0x12, 0x00}, false)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		parsePong(b, v6, 5)
		request, reply, err := parse(b)
		if (err == nil) != (request != 0 || reply != nil) || request != 0 && reply != nil {
			t.Fatalf("request %d, reply %v, error %v", request, reply, err)
		}
		var m echov1.Echo
		if err != nil {
			return
		}
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatalf("accepted what protobuf refuses: %v", err)
		}
		if reply != nil {
			if reply.seq != m.GetReply().GetSequence() || reply.applied != m.GetReply().GetApplied() {
				t.Fatalf("%+v of %v", reply, &m)
			}
			tr := newTracker(rand.New(rand.NewPCG(1, 2)))
			now := time.Unix(1_800_000_000, 0)
			tr.setTargets([]Target{{Node: simID(0), Addr: simAddr(0), Expect: 7, Families: mesh.Families[:]}}, now)
			p := tr.poll(now, false, nil)[0]
			if counted := tr.replied(simAddr(0), *reply, now); counted != (reply.seq == p.seq) {
				t.Fatalf("counted: %v", counted)
			}
			return
		}
		o := New(Options{Applied: holds(3), Version: "v2"})
		out, ok := newResponder(o.o, o.all).answer(nil, simAddr(0), request)
		if !ok || len(out) > maxDatagram {
			t.Fatalf("answered %v with %d bytes", ok, len(out))
		}
		if _, back, err := parse(out); err != nil || back.seq != request || back.applied != 3 || back.version != "v2" {
			t.Fatalf("answered %+v, %v", back, err)
		}
	})
}

// Both sockets are bound to the device, so that they send through it alone.
func TestBoundToDevice(t *testing.T) {
	testenv.NeedRoot(t)
	port, addr := freePort(t), loopback()
	for link, fails := range map[string]bool{"lo": false, "fmnone0": true} {
		s, pingErr, err := listen(t.Context(), addr, port, link, 1)
		if (err != nil) != fails {
			t.Fatalf("on %s: %v", link, err)
		}
		if err != nil {
			continue
		}
		defer s.close()
		if pingErr != nil {
			t.Fatalf("raw ICMP on %s: %v", link, pingErr)
		}
		for _, c := range []syscall.Conn{s.udp, s.pinger.conn} {
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var got string
			raw.Control(func(fd uintptr) { got, err = unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE) })
			if err != nil || got != link {
				t.Errorf("%T is bound to %q, want %q (%v)", c, got, link, err)
			}
		}
	}
}

// ICMP both ways, of both families where there are two.
func TestPinger(t *testing.T) {
	testenv.NeedRoot(t)
	for _, addr := range []netip.Addr{loopback(), netip.IPv6Loopback()} {
		p, err := listenICMP(t.Context(), addr, "lo", 0xbeef)
		if err != nil {
			if addr.Is6() {
				t.Logf("no IPv6 here: %v", err)
				continue
			}
			t.Fatal(err)
		}
		defer p.conn.Close()
		p.conn.SetReadDeadline(time.Now().Add(time.Minute))
		if err := p.send(addr, 1<<40+5); err != nil {
			t.Fatalf("to %v: %v", addr, err)
		}
		buf := make([]byte, maxDatagram)
		for {
			from, seq, ok, err := p.read(buf)
			if err != nil {
				t.Fatalf("from %v: %v", addr, err)
			}
			if !ok {
				continue
			}
			if from != addr || seq != 1<<40+5 {
				t.Errorf("%v answered %d", from, seq)
			}
			break
		}
	}
}
