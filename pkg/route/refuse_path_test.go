package route

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
)

// TestRefuse walks a path through what happens to it: it works, it goes silent,
// it is refused, and it works again.
func TestRefuse(t *testing.T) {
	p := newDeadPath(t)
	for _, w := range ways {
		p.walk(w, w.far)
	}
}

// TestRefuseServices is for pods reached by a Service's address, with connection
// tracking and both ends translated.
func TestRefuseServices(t *testing.T) {
	p := newDeadPath(t)
	p.services()
	for _, w := range ways {
		p.walk(w, w.service)
	}
}

func (p *deadPath) walk(w way, to string) {
	t := p.t
	t.Helper()
	hosts := []*nstest.Host{p.pod, p.Host}
	var broken, spared []net.Conn
	for _, h := range hosts {
		broken = append(broken, p.connect(h, "tcp", to))
		spared = append(spared, p.connect(h, "tcp", w.other), p.connect(h, "udp", w.other), p.connect(h, "udp", w.tunnel), p.connect(h, "tcp", w.tunnel))
		p.connect(h, "udp", to)
	}

	p.silence(true)
	for _, c := range broken {
		if _, err := io.WriteString(c, "lost"); err != nil {
			t.Fatal(err)
		}
	}
	p.refuse(farPods)
	for _, c := range broken { // by a retransmission
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("established %v to %v: %v, want a reset", c.LocalAddr(), c.RemoteAddr(), err)
		}
	}
	for _, h := range hosts {
		if _, err := p.dial(h, "tcp", to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("new connection from the %s: %v, want it refused", h.Name, err)
		}
		c, err := p.dial(h, "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		// What the node itself sends is refused as it is sent.
		err = echo(c)
		if h == p.Host && !errors.Is(err, unix.EPERM) || h == p.pod && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("UDP from the %s: %v", h.Name, err)
		}
	}
	for _, c := range spared {
		p.echo(c)
	}

	p.silence(false)
	for _, h := range hosts {
		if _, err := p.dial(h, "tcp", to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("new connection from the %s: %v, want it refused", h.Name, err)
		}
		p.connect(h, "udp", w.tunnel) // how it is seen that the path is back
	}
	p.refuse("")
	for _, h := range hosts {
		p.connect(h, "tcp", to)
		p.connect(h, "udp", to)
	}
	for _, c := range spared {
		p.echo(c)
	}
}

// TestRefusePing asks for what a ping from a pod is told.
func TestRefusePing(t *testing.T) {
	p := newDeadPath(t)
	p.refuse(farPods)
	for _, c := range []struct {
		network, to string
		request     []byte
		refusal     [2]byte // type and code
	}{
		{"ip4:icmp", ways[0].far, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, [2]byte{3, 3}},
		{"ip6:ipv6-icmp", ways[1].far, []byte{128, 0, 0, 0, 0, 0, 0, 0}, [2]byte{1, 4}}, // the kernel sums it up
	} {
		var conn net.PacketConn
		err := p.pod.Do(func() (err error) {
			conn, err = net.ListenPacket(c.network, "")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(tooLong)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(c.request, &net.IPAddr{IP: netip.MustParseAddr(c.to).AsSlice()}); err != nil {
			t.Fatal(err)
		}
		for refused := false; !refused; {
			buf := make([]byte, 2048)
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				t.Fatalf("%s: %v", c.network, err)
			}
			refused = n > 2 && [2]byte(buf) == c.refusal
		}
	}
}

// TestWireGuardIsNotRefused: with the mark a packet passes, wherever it goes.
func TestWireGuardIsNotRefused(t *testing.T) {
	p := newDeadPath(t)
	marked := netlink.NewRule() // leads marked packets into the interface too, so that they arrive
	marked.Family, marked.Table, marked.Priority, marked.Mark = unix.AF_INET, p.o.Table, 99, p.o.Mark
	if err := p.NL.RuleAdd(marked); err != nil {
		t.Fatal(err)
	}
	c := p.connect(p.Host, "udp", ways[0].far)
	p.refuse(farPods)
	if err := echo(c); !errors.Is(err, unix.EPERM) {
		t.Fatalf("without the mark: %v", err)
	}
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(p.o.Mark)) })
	if err := errors.Join(err, optErr); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, "a marked packet to pass", func() error { // what was refused before may still be told
		return echo(c)
	})
}

// TestOtherWaysAreNotRefused: what a pod sends to a refused prefix by another
// interface is none of flatmesh's business.
func TestOtherWaysAreNotRefused(t *testing.T) {
	p := newDeadPath(t)
	p.refuse(farPods)
	before := netlink.NewRule()
	before.Family, before.Table, before.Priority = unix.AF_INET, unix.RT_TABLE_MAIN, 99
	before.Dst = ipNet(prefixes(farPods)[0])
	if err := p.NL.RuleAdd(before); err != nil {
		t.Fatal(err)
	}
	p.wire.Addr(t, "up0", netip.MustParsePrefix("192.168.7.1/24"))
	p.connect(p.pod, "udp", ways[0].far)
}
