package probe

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// icmpData is what an ICMP echo of ours carries after its header: the sequence of
// the probe that it was sent beside.
const icmpData = 8

// pinger sends ICMP echoes from one of our tunnel addresses and reads the answers
// to them. It needs a raw socket: root, or CAP_NET_RAW.
type pinger struct {
	conn *net.IPConn
	v6   bool
	id   int
}

func listenICMP(ctx context.Context, addr netip.Addr, link string, id uint16) (*pinger, error) {
	network := "ip4:icmp"
	if addr.Is6() {
		network = "ip6:ipv6-icmp"
	}
	c, err := listenConfig(link).ListenPacket(ctx, network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("open a raw ICMP socket on %v: %w", addr, err)
	}
	p := &pinger{conn: c.(*net.IPConn), v6: addr.Is6(), id: int(id)}
	if err := p.filter(); err != nil {
		c.Close()
		return nil, fmt.Errorf("filter ICMP on %v: %w", addr, err)
	}
	return p, nil
}

// filter leaves out what is no echo reply: a raw socket sees all ICMP of the host.
func (p *pinger) filter() error {
	if p.v6 {
		var f ipv6.ICMPFilter
		f.SetAll(true)
		f.Accept(ipv6.ICMPTypeEchoReply)
		return ipv6.NewPacketConn(p.conn).SetICMPFilter(&f)
	}
	var f ipv4.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv4.ICMPTypeEchoReply)
	return ipv4.NewPacketConn(p.conn).SetICMPFilter(&f)
}

// send sends the ICMP echo beside probe seq.
func (p *pinger) send(to netip.Addr, seq uint64) error {
	m := icmp.Message{
		Type: ipv4.ICMPTypeEcho,
		Body: &icmp.Echo{ID: p.id, Seq: int(seq & 0xffff), Data: binary.BigEndian.AppendUint64(nil, seq)},
	}
	if p.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in its checksum
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.conn.WriteToIP(b, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// read waits for the next answer and returns who answered the echo beside which
// probe; ok is false for what is not ours. An error is the socket's.
func (p *pinger) read(buf []byte) (from netip.Addr, seq uint64, ok bool, err error) {
	n, src, err := p.conn.ReadFromIP(buf)
	if err != nil {
		return netip.Addr{}, 0, false, err
	}
	from, _ = netip.AddrFromSlice(src.IP)
	seq, ok = parsePong(buf[:n], p.v6, p.id)
	return from.Unmap(), seq, ok, nil
}

func parsePong(b []byte, v6 bool, id int) (seq uint64, ok bool) {
	proto, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if v6 {
		proto, want = 58, ipv6.ICMPTypeEchoReply
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil || m.Type != want {
		return 0, false
	}
	e, ok := m.Body.(*icmp.Echo)
	if !ok || e.ID != id || len(e.Data) != icmpData {
		return 0, false
	}
	return binary.BigEndian.Uint64(e.Data), true
}
