package probe

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// send sends one probe and returns its buffer for the next.
func (p *Prober) send(s probe, buf []byte) []byte {
	p.mu.Lock()
	sock := p.socket(mesh.FamilyOf(s.to))
	p.mu.Unlock()
	if sock == nil {
		p.failed(s, false)
		return buf
	}
	buf, err := appendRequest(buf, s.seq)
	if err == nil {
		err = p.write(sock, buf, netip.AddrPortFrom(s.to, p.o.Port))
	}
	if err != nil {
		p.failed(s, tellsOfTunnel(err))
		return buf
	}
	p.count(&p.stats.Sent)
	// Whether the ICMP echo goes out only decides how much the loss will tell.
	if s.ping && sock.pinger != nil {
		p.account(s.to, icmpData, 1)
		if sock.pinger.send(s.to, s.seq) == nil {
			p.count(&p.stats.Pings)
		} else {
			p.account(s.to, icmpData, -1)
		}
	}
	return buf
}

func (p *Prober) failed(s probe, lost bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tracker.failed(s, lost, time.Now())
}

// write sends a datagram, counts it as our own, and notes what a failure says of
// the socket.
func (p *Prober) write(sock *socket, b []byte, to netip.AddrPort) error {
	// Before it is sent: see surplus.
	p.account(to.Addr(), len(b), 1)
	_, err := sock.udp.WriteToUDPAddrPort(b, to)
	if err != nil {
		p.account(to.Addr(), len(b), -1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	sending := trouble{"send", sock.addr}
	if err == nil || tellsOfTunnel(err) {
		delete(p.troubles, sending)
		return err
	}
	p.stats.SendErrors++
	p.report(sending, err)
	if tellsOfSocket(err) {
		p.reopen(sock)
	}
	return err
}

// account counts a packet of ours with n bytes above UDP or an ICMP header, which
// are equally long; times is -1 to take one back.
func (p *Prober) account(to netip.Addr, n, times int) {
	headers := 28
	if to.Is6() {
		headers = 48
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Unsigned arithmetic wraps, and so adds a negative number.
	p.packets += uint64(times)
	if e := p.tracker.byAddr[to]; e != nil {
		p.sealed[e.Node] += uint64(times) * sealedSize(headers+n)
	}
}
