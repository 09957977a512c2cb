package route

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
)

// deadPath is a node with a pod behind it. The other end of its link stands for
// two peers: the far, whose pods have the addresses of farPods, and another. All
// their addresses answer, TCP and UDP, with what they are sent.
type deadPath struct {
	*node
	pod  *nstest.Host
	port uint16
}

const (
	farPods   = "10.2.0.0/24 fd02::/64"
	otherPods = "10.3.0.0/24 fd03::/64"
	tunnels   = "198.19.0.2/32 fd19::2/128"
)

// way is how packets of one family go: from the pod and the node to a far pod.
type way struct {
	name               string
	far, other, tunnel string
	service            string // its address becomes far's
}

var ways = []way{
	{"IPv4", "10.2.0.9", "10.3.0.9", "198.19.0.2", "10.96.0.1"},
	{"IPv6", "fd02::9", "fd03::9", "fd19::2", "fd96::1"},
}

func newDeadPath(t *testing.T) *deadPath {
	p := &deadPath{node: newNode(t), pod: nstest.New(t, "pod")}
	p.Sysctl(t, "net/ipv4/ip_forward", "1")
	p.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	nstest.Veth(t, p.pod, "eth0", p.Host, "pod0", 1500)
	for _, a := range [][3]string{{"10.1.0.5/24", "10.1.0.1/24", "0.0.0.0/0"}, {"fd01::5/64", "fd01::1/64", "::/0"}} {
		p.pod.Addr(t, "eth0", netip.MustParsePrefix(a[0]))
		node := netip.MustParsePrefix(a[1])
		p.Addr(t, "pod0", node)
		p.pod.Route(t, netip.MustParsePrefix(a[2]), node.Addr(), "eth0")
	}
	p.settle(Desired{Addrs: addrs("198.19.0.1 fd19::1"), Via: prefixes(farPods + " " + otherPods + " " + tunnels), Forward: true})
	for _, a := range []string{"198.19.0.2/24", "10.2.0.9/32", "10.3.0.9/32", "fd19::2/64", "fd02::9/128", "fd03::9/128"} {
		p.wire.Addr(t, p.o.Link, netip.MustParsePrefix(a))
	}
	p.wire.Route(t, netip.MustParsePrefix("10.1.0.0/24"), netip.MustParseAddr("198.19.0.1"), p.o.Link)
	p.wire.Route(t, netip.MustParsePrefix("fd01::/64"), netip.MustParseAddr("fd19::1"), p.o.Link)
	p.serve()
	for _, w := range ways { // until neighbours and routes are there
		nstest.Eventually(t, "the path to "+w.far, func() error {
			c, err := p.dial(p.pod, "tcp", w.far)
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}
	return p
}

// serve echoes on one port of all addresses.
func (p *deadPath) serve() {
	p.t.Helper()
	var ln net.Listener
	err := p.wire.Do(func() (err error) {
		if ln, err = net.Listen("tcp", ":0"); err != nil {
			return err
		}
		p.port = uint16(ln.Addr().(*net.TCPAddr).Port)
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the client goes
			}()
		}
	}()
	for _, w := range ways {
		// One socket an address, so that the answer comes from the one that was asked.
		for _, addr := range []string{w.far, w.other, w.tunnel} {
			var packets net.PacketConn
			err := p.wire.Do(func() (err error) {
				packets, err = net.ListenPacket("udp", p.at(addr))
				return err
			})
			if err != nil {
				p.t.Fatal(err)
			}
			p.t.Cleanup(func() { packets.Close() })
			go func(c net.PacketConn) {
				buf := make([]byte, 2048)
				for {
					n, from, err := c.ReadFrom(buf)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil {
						_, _ = c.WriteTo(buf[:n], from)
					}
				}
			}(packets)
		}
	}
}

func (p *deadPath) at(addr string) string {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), p.port).String()
}

// tooLong ends what would otherwise hang a test that fails.
const tooLong = 30 * time.Second

func (p *deadPath) dial(from *nstest.Host, network, to string) (c net.Conn, err error) {
	err = from.Do(func() error {
		c, err = (&net.Dialer{Timeout: tooLong}).DialContext(p.t.Context(), network, p.at(to))
		return err
	})
	if err != nil {
		return nil, err
	}
	p.t.Cleanup(func() { c.Close() })
	return c, c.SetDeadline(time.Now().Add(tooLong))
}

func (p *deadPath) connect(from *nstest.Host, network, to string) net.Conn {
	p.t.Helper()
	c, err := p.dial(from, network, to)
	if err != nil {
		p.t.Fatalf("%s: %s to %s: %v", from.Name, network, to, err)
	}
	p.echo(c)
	return c
}

// echo checks that what is sent comes back.
func (p *deadPath) echo(c net.Conn) {
	p.t.Helper()
	if err := echo(c); err != nil {
		p.t.Fatalf("%v to %v: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

func echo(c net.Conn) error {
	const text = "hello"
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
		return fmt.Errorf("got %q, %w", buf, err)
	}
	return nil
}

func (p *deadPath) refuse(list string) {
	p.t.Helper()
	p.do(func() error {
		return p.tab.Refuse(p.t.Context(), prefixes(list), addrs("198.19.0.1 198.19.0.2 fd19::1 fd19::2"))
	})
	if got := p.refused(); show(got) != list {
		p.t.Fatalf("refused are %q, want %q", show(got), list)
	}
}

func (n *node) refused() (got []netip.Prefix) {
	n.t.Helper()
	n.do(func() (err error) {
		got, err = n.tab.Refused(n.t.Context())
		return err
	})
	return got
}

// silence has the far end drop all that arrives for the far pods, or ends that.
func (p *deadPath) silence(on bool) {
	p.t.Helper()
	err := p.wire.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "silence"})
		if !on {
			c.DelTable(t)
			return c.Flush()
		}
		chain := c.AddChain(&nftables.Chain{
			Name: "in", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
		})
		for _, f := range []struct {
			proto        byte
			offset, size uint32
			far          string
		}{{unix.NFPROTO_IPV4, 16, 4, ways[0].far}, {unix.NFPROTO_IPV6, 24, 16, ways[1].far}} {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Register: 1, Data: []byte{f.proto}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.size},
				&expr.Cmp{Register: 1, Data: netip.MustParseAddr(f.far).AsSlice()},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return c.Flush()
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// services translates a Service's address into a far pod's as kube-proxy does,
// and hides where it came from behind the node's tunnel address.
func (p *deadPath) services() {
	p.t.Helper()
	p.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "services"})
		for hook, at := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
			chain := c.AddChain(&nftables.Chain{Name: hook, Table: t, Type: nftables.ChainTypeNAT, Hooknum: at, Priority: nftables.ChainPriorityNATDest})
			for i, w := range ways {
				family, offset, size := uint32(unix.NFPROTO_IPV4), uint32(16), uint32(4)
				if i == 1 {
					family, offset, size = unix.NFPROTO_IPV6, 24, 16
				}
				c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
					&expr.Cmp{Register: 1, Data: []byte{byte(family)}},
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
					&expr.Cmp{Register: 1, Data: netip.MustParseAddr(w.service).AsSlice()},
					&expr.Immediate{Register: 1, Data: netip.MustParseAddr(w.far).AsSlice()},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1},
				}})
			}
		}
		chain := c.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		link := make([]byte, unix.IFNAMSIZ)
		copy(link, p.o.Link)
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Register: 1, Data: link}, &expr.Masq{},
		}})
		return c.Flush()
	})
}
