package wg_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// pair is two nodes with a tunnel between them:
//
//	a 192.0.2.1 ---- underlay ---- 192.0.2.2 b
//	  198.19.0.1 ===  tunnel  === 198.19.0.2
type pair struct {
	a, b            *node
	wantA, wantB    wg.Desired
	tunnelA         netip.Addr
	tunnelB         netip.Addr
	privateA, privB wg.PrivateKey
}

func newPair(t *testing.T, change ...func(*pair)) *pair {
	t.Helper()
	p := &pair{
		a: newNode(t, "a"), b: newNode(t, "b"),
		tunnelA: netip.MustParseAddr("198.19.0.1"), tunnelB: netip.MustParseAddr("198.19.0.2"),
		privateA: newPrivate(t), privB: newPrivate(t),
	}
	nstest.Veth(t, p.a.Host, "up0", p.b.Host, "up0", 1500)
	p.a.Addr(t, "up0", netip.MustParsePrefix("192.0.2.1/24"))
	p.b.Addr(t, "up0", netip.MustParsePrefix("192.0.2.2/24"))
	one := func(own, other wg.PrivateKey, name, endpoint string, allowed netip.Addr) wg.Desired {
		return wg.Desired{PrivateKey: own, ListenPort: 51830, FirewallMark: 0x5746, Peers: []wg.Peer{{
			Name: name, Key: other.PublicKey(), Candidates: []netip.AddrPort{netip.MustParseAddrPort(endpoint)},
			AllowedIPs: []netip.Prefix{mesh.HostPrefix(allowed)}, Keepalive: 25 * time.Second,
		}}}
	}
	p.wantA = one(p.privateA, p.privB, "east/b", "192.0.2.2:51830", p.tunnelB)
	p.wantB = one(p.privB, p.privateA, "west/a", "192.0.2.1:51830", p.tunnelA)
	for _, f := range change {
		f(p)
	}
	for _, x := range []struct {
		n    *node
		want wg.Desired
		own  netip.Addr
	}{{p.a, p.wantA, p.tunnelA}, {p.b, p.wantB, p.tunnelB}} {
		x.n.open(t)
		x.n.settle(t, x.want)
		x.n.Addr(t, deviceName, netip.PrefixFrom(x.own, 24))
	}
	return p
}

// echo answers on a tunnel address of b until the test ends.
func (p *pair) echo(t *testing.T, on netip.Addr) netip.AddrPort {
	t.Helper()
	var server *net.UDPConn
	if err := p.b.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(on, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return server.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (p *pair) dial(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := p.a.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// reach waits until an echo comes back through the tunnel.
func reach(t *testing.T, c *net.UDPConn) {
	t.Helper()
	nstest.Eventually(t, "echo through the tunnel", func() error {
		if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 16))
		return err
	})
}

func TestTunnel(t *testing.T) {
	p := newPair(t)
	c := p.dial(t, p.echo(t, p.tunnelB))
	reach(t, c)

	a := p.a.must(t, "Observe", patience).Actual
	if a.Kind != wg.Userspace || a.MTU != deviceMTU || !a.Up || len(a.Peers) != 1 {
		t.Errorf("observed %+v", a)
	}
	peer := a.Peers[0]
	if peer.Endpoint != p.wantA.Peers[0].Candidates[0] || peer.RxBytes == 0 || peer.TxBytes == 0 ||
		peer.LastHandshake.IsZero() || peer.EndpointSince.IsZero() {
		t.Errorf("observed peer %+v", peer)
	}

	// b moves to another address: a follows by itself, and reconciling does not
	// send it back.
	moved := netip.MustParseAddr("192.0.2.3")
	old := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 2).To4(), Mask: net.CIDRMask(24, 32)}}
	if err := p.b.NL.AddrDel(p.b.Link(t, "up0"), old); err != nil {
		t.Fatal(err)
	}
	p.b.Addr(t, "up0", netip.PrefixFrom(moved, 24))
	roam := p.a.dialFrom(t, p.b, p.tunnelA) // b speaks first
	nstest.Eventually(t, "a follows b to its new address", func() error {
		_, _ = roam.Write([]byte("here I am"))
		if e := p.a.must(t, "Observe", patience).Actual.Peers[0].Endpoint; e.Addr() != moved {
			return fmt.Errorf("endpoint of b is %v", e)
		}
		return nil
	})
	if ops := p.a.must(t, "Reconcile", p.wantA).Ops; len(ops) > 0 {
		t.Errorf("a roamed endpoint is not kept: %v", ops)
	}
	reach(t, c)
}

// A node behind a NAT has no endpoint that b could try: b waits, and answers to
// where a came from.
func TestPeerThatComesToUs(t *testing.T) {
	p := newPair(t, func(p *pair) { p.wantB.Peers[0].Candidates = nil })
	reach(t, p.dial(t, p.echo(t, p.tunnelB)))
	if e := p.b.must(t, "Observe", patience).Actual.Peers[0].Endpoint; e != netip.MustParseAddrPort("192.0.2.1:51830") {
		t.Errorf("endpoint of a: %v", e)
	}
	if ops := p.b.must(t, "Reconcile", p.wantB).Ops; len(ops) > 0 {
		t.Errorf("left to do: %v", ops)
	}
}

// dialFrom opens a socket on another node towards an address of this one.
func (n *node) dialFrom(t *testing.T, from *node, to netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := from.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: to.AsSlice(), Port: 9})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestReconcilingLosesNothing(t *testing.T) {
	p := newPair(t)
	c := p.dial(t, p.echo(t, p.tunnelB))
	reach(t, c)
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	// Answers to pings that reach gave up on must not count.
	var sent, received atomic.Int64
	stop := make(chan struct{})
	sender := make(chan error, 1)
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				sender <- nil
				return
			case <-tick.C:
				if _, err := fmt.Fprintf(c, "seq %d", sent.Load()); err != nil {
					sender <- err
					return
				}
				sent.Add(1)
			}
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(buf[:n]), "seq ") {
				received.Add(1)
			}
		}
	}()

	d := p.wantA
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 150 {
		// Others come and go, prefixes come to the peer in use and move between
		// others, and in two rounds of three nothing changes.
		if i%3 == 0 {
			d.Peers = slices.Clone(p.wantA.Peers)
			d.Peers[0].AllowedIPs = slices.Clone(d.Peers[0].AllowedIPs)
			for n := range byte(i / 10) {
				d.Peers[0].AllowedIPs = append(d.Peers[0].AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, n}), 32))
			}
			slices.SortFunc(d.Peers[0].AllowedIPs, mesh.ComparePrefix)
			d.Peers = append(d.Peers, others(r)...)
			sortPeers(d.Peers)
		}
		ops := p.a.must(t, "Reconcile", d).Ops
		if i%3 != 0 && len(ops) > 0 {
			t.Fatalf("nothing changed, and yet: %v", ops)
		}
	}
	close(stop)
	if err := <-sender; err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, "every packet comes back", func() error {
		if s, r := sent.Load(), received.Load(); s != r {
			return fmt.Errorf("%d sent, %d came back", s, r)
		}
		return nil
	})
	if sent.Load() == 0 {
		t.Error("no packet was sent")
	}
}

func others(r *rand.Rand) []wg.Peer {
	var out []wg.Peer
	for n := byte(1); n < 6; n++ {
		if r.IntN(2) == 0 {
			out = append(out, wg.Peer{Name: fmt.Sprintf("south/n%d", n), Key: mesh.PublicKey{n}})
		}
	}
	for i := range byte(10) {
		if len(out) > 0 {
			p := &out[r.IntN(len(out))]
			p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, i, 0}), 24))
		}
	}
	return out
}

func sortPeers(peers []wg.Peer) {
	slices.SortFunc(peers, func(a, b wg.Peer) int { return strings.Compare(string(a.Key[:]), string(b.Key[:])) })
}

func TestKilledDevice(t *testing.T) {
	p := newPair(t)
	c := p.dial(t, p.echo(t, p.tunnelB))
	reach(t, c)
	index := p.a.Link(t, deviceName).Attrs().Index

	for range 3 {
		p.a.must(t, "KillDevice", struct{}{})
		nstest.Eventually(t, "the agent sees that the device is gone", func() error {
			if r := p.a.call(t, "Observe", patience); !r.Gone {
				return fmt.Errorf("observe: %q", r.Err)
			}
			return nil
		})
		link := p.a.Link(t, deviceName)
		if link.Attrs().Index != index || link.Attrs().RawFlags&unix.IFF_UP == 0 {
			t.Fatalf("link after kill -9: %+v", link.Attrs())
		}
		addrs, err := p.a.NL.AddrList(link, netlink.FAMILY_V4)
		if err != nil || len(addrs) != 1 {
			t.Fatalf("addresses after kill -9: %v, %v", addrs, err)
		}
		p.a.open(t)
		ops := p.a.settle(t, p.wantA)
		if len(ops) != 4 { // key, mark, port, peer: the process keeps nothing
			t.Errorf("applied to the new process: %v", ops)
		}
		reach(t, c)
	}
}
