package probe

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// One responder, spoken to by hand.
func TestResponder(t *testing.T) {
	t.Parallel()
	port, addr, peer, stranger := freePort(t), loopback(), loopback(), loopback()
	p := New(Options{Addrs: []netip.Addr{addr}, Port: port, Version: "v1", Applied: func(a netip.Addr) uint64 {
		if a == peer {
			return 42
		}
		return 0
	}})
	start(t, p)
	await(t, "it listens", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.sockets) == 1 })
	dial := func(from netip.Addr) *net.UDPConn {
		c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(time.Minute))
		return c
	}
	ask := func(c *net.UDPConn, seq uint64) *answer {
		t.Helper()
		b, err := appendRequest(nil, seq)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, maxDatagram)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		_, reply, err := parse(buf[:n])
		if err != nil || reply == nil {
			t.Fatalf("answered with %x: %v", buf[:n], err)
		}
		return reply
	}

	known, unknown := dial(peer), dial(stranger)
	if a := ask(known, 5); a.seq != 5 || a.applied != 42 || a.version != "v1" {
		t.Errorf("a peer was told %+v", a)
	}
	if a := ask(unknown, 6); a.seq != 6 || a.applied != 0 {
		t.Errorf("a stranger was told %+v", a)
	}

	// Neither garbage nor a reply is answered: the next answer is to the request.
	reply, err := appendReply(nil, 5, 42, []mesh.Family{mesh.IPv4}, "v9")
	if err != nil {
		t.Fatal(err)
	}
	for _, junk := range [][]byte{{}, {0}, []byte("GET / HTTP/1.1\r\n"), make([]byte, 1400), {0x0a, 0}, reply, reply[:len(reply)-1]} {
		if _, err := known.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	if a := ask(known, 7); a.seq != 7 {
		t.Errorf("answered %+v", a)
	}
	if s := p.Stats(); s.Malformed != 6 || s.Stray != 1 {
		t.Errorf("malformed %d, stray %d; want 6 and 1", s.Malformed, s.Stray)
	}

	// A flood is answered within bounds, and keeps no peer from its answer.
	b, _ := appendRequest(nil, 8)
	const flood = 5000
	for range flood {
		if _, err := unknown.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	// The socket's buffer may be full of the flood, so the peer asks again.
	again, _ := appendRequest(nil, 9)
	await(t, "the peer's answer", func() bool {
		if _, err := known.Write(again); err != nil {
			t.Fatal(err)
		}
		known.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := known.Read(make([]byte, maxDatagram))
		return err == nil && n > 0
	})
	await(t, "the flood was limited", func() bool { return p.Stats().Limited > 0 })
}

func TestResponderAllowances(t *testing.T) {
	t.Parallel()
	p := New(Options{Applied: func(a netip.Addr) uint64 { return uint64(a.As4()[3]) }})
	r := newResponder(p.o, p.all)
	count := func(last byte, n int) (answered int) {
		for range n {
			if _, ok := r.answer(nil, netip.AddrFrom4([4]byte{198, 19, 0, last}), 1); ok {
				answered++
			}
		}
		return answered
	}
	for last, most := range map[byte]int{0: answersStranger, 1: answersASource, 2: answersASource} {
		got := count(last, 10*most)
		if got < most || got > 5*most {
			t.Errorf("source %d was answered %d times of %d at once, want about %d", last, got, 10*most, most)
		}
	}
}
