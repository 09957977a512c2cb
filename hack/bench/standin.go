package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"google.golang.org/protobuf/proto"

	echov1 "github.com/flatmesh/flatmesh/api/echo/v1"
	"github.com/flatmesh/flatmesh/pkg/probe"
)

// standInTUN takes the place of a stand-in's interface: it answers the echoes of
// agents and drops everything else. What it answers is written by the engine and
// read by it again.
type standInTUN struct {
	applied uint64
	events  chan tun.Event
	replies chan []byte
	closed  chan struct{}
	once    sync.Once
}

var _ tun.Device = (*standInTUN)(nil)

func newStandInTUN(applied uint64) *standInTUN {
	t := &standInTUN{applied: applied, events: make(chan tun.Event, 1), replies: make(chan []byte, 16), closed: make(chan struct{})}
	t.events <- tun.EventUp
	return t
}

func (t *standInTUN) File() *os.File           { return nil }
func (t *standInTUN) MTU() (int, error)        { return tunnelMTU, nil }
func (t *standInTUN) Name() (string, error)    { return "standin", nil }
func (t *standInTUN) Events() <-chan tun.Event { return t.events }
func (t *standInTUN) BatchSize() int           { return 1 }

func (t *standInTUN) Close() error {
	t.once.Do(func() {
		close(t.closed)
		close(t.events)
	})
	return nil
}

func (t *standInTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case p := <-t.replies:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	}
}

func (t *standInTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		reply, ok := answer(b[offset:], t.applied)
		if !ok {
			continue
		}
		select {
		case t.replies <- reply:
		default: // lost, as on any full queue
		}
	}
	return len(bufs), nil
}

// answer makes the packet that answers an echo request over IPv4 and UDP.
func answer(b []byte, applied uint64) ([]byte, bool) {
	const udpLen = 8
	h, err := ipv4.ParseHeader(b)
	if err != nil || h.Protocol != 17 || len(b) < h.Len+udpLen {
		return nil, false
	}
	u := b[h.Len:]
	if binary.BigEndian.Uint16(u[2:]) != probe.Port {
		return nil, false
	}
	var m echov1.Echo
	if proto.Unmarshal(u[udpLen:], &m) != nil || m.GetRequest().GetSequence() == 0 {
		return nil, false
	}
	body, err := proto.Marshal(&echov1.Echo{Kind: &echov1.Echo_Reply{Reply: &echov1.Reply{
		Sequence: m.GetRequest().GetSequence(), Applied: applied, Version: "stand-in",
	}}})
	if err != nil {
		return nil, false
	}
	out := make([]byte, ipv4.HeaderLen+udpLen, ipv4.HeaderLen+udpLen+len(body))
	out[0], out[8], out[9] = 4<<4|ipv4.HeaderLen/4, 64, 17
	binary.BigEndian.PutUint16(out[2:], uint16(cap(out)))
	copy(out[12:], h.Dst.To4())
	copy(out[16:], h.Src.To4())
	binary.BigEndian.PutUint16(out[10:], checksum(out[:ipv4.HeaderLen]))
	copy(out[20:], u[2:4])
	copy(out[22:], u[0:2])
	// The checksum stays zero: over IPv4 that means none (RFC 768).
	binary.BigEndian.PutUint16(out[24:], uint16(udpLen+len(body)))
	return append(out, body...), true
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// standInBind is the smallest socket that the engine can use: IPv4, one packet at
// a time. The engine's own would hold megabytes of buffers for each stand-in.
type standInBind struct {
	mu sync.Mutex
	c  *net.UDPConn
}

var _ conn.Bind = (*standInBind)(nil)

func (b *standInBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return nil, 0, err
	}
	b.c = c
	receive := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := c.ReadFromUDPAddrPort(bufs[0])
		if err != nil {
			return 0, err
		}
		sizes[0], eps[0] = n, standInEndpoint(from)
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
}

func (b *standInBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		return nil
	}
	c := b.c
	b.c = nil
	return c.Close()
}

func (b *standInBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.mu.Lock()
	c := b.c
	b.mu.Unlock()
	to, ok := ep.(standInEndpoint)
	if c == nil || !ok {
		return errors.Join(net.ErrClosed, io.ErrClosedPipe)
	}
	for _, p := range bufs {
		if _, err := c.WriteToUDPAddrPort(p, netip.AddrPort(to)); err != nil {
			return err
		}
	}
	return nil
}

func (b *standInBind) SetMark(uint32) error { return nil }
func (b *standInBind) BatchSize() int       { return 1 }

func (b *standInBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return standInEndpoint(ap), err
}

// standInEndpoint is where a stand-in's peer is.
type standInEndpoint netip.AddrPort

func (e standInEndpoint) ClearSrc()           {}
func (e standInEndpoint) SrcToString() string { return "" }
func (e standInEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (e standInEndpoint) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e standInEndpoint) DstToString() string { return netip.AddrPort(e).String() }

func (e standInEndpoint) DstToBytes() []byte {
	b, _ := netip.AddrPort(e).MarshalBinary()
	return b
}
