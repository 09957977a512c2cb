package probe

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// readEchoes answers requests and takes replies until the socket is closed.
func (p *Prober) readEchoes(s *socket) {
	r := newResponder(p.o, p.all)
	in := make([]byte, maxDatagram)
	out := make([]byte, 0, maxDatagram)
	for {
		n, src, err := s.udp.ReadFromUDPAddrPort(in)
		if err != nil {
			p.readFailed(s, err)
			return
		}
		out = p.received(s, r, in[:n], netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), out[:0])
	}
}

// received handles one datagram; out is a buffer for the answer.
func (p *Prober) received(s *socket, r *responder, b []byte, src netip.AddrPort, out []byte) []byte {
	request, reply, err := parse(b)
	switch {
	case err != nil:
		p.count(&p.stats.Malformed)
	case reply != nil:
		p.mu.Lock()
		defer p.mu.Unlock()
		// Only the far end's own socket answers; any process there may send.
		if src.Port() == p.o.Port && p.tracker.replied(src.Addr(), *reply, time.Now()) {
			p.stats.Replies++
		} else {
			p.stats.Stray++
		}
		p.told()
	default:
		answer, ok := r.answer(out, src.Addr(), request)
		if !ok {
			p.count(&p.stats.Limited)
			return out
		}
		if p.write(s, answer, src) == nil {
			p.count(&p.stats.Answered)
		}
		return answer
	}
	return out
}

// readPongs takes answers to ICMP echoes until the socket is closed.
func (p *Prober) readPongs(s *socket) {
	buf := make([]byte, maxDatagram)
	for {
		from, seq, ok, err := s.pinger.read(buf)
		if err != nil {
			p.readFailed(s, err)
			return
		}
		if ok {
			p.mu.Lock()
			p.tracker.ponged(from, seq)
			p.mu.Unlock()
		}
	}
}

func (p *Prober) readFailed(s *socket, err error) {
	if errors.Is(err, net.ErrClosed) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report(trouble{"read", s.addr}, err)
	p.reopen(s)
}

func (p *Prober) count(n *uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n++
}
