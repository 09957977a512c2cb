package probe

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// How often a socket that cannot be opened, or breaks, is opened again.
const (
	reopenMin = 100 * time.Millisecond
	reopenMax = 5 * time.Second
	// calm is how long sockets must have been left alone to begin at reopenMin.
	calm = time.Minute
)

// trouble is what does not work on which of our addresses.
type trouble struct {
	doing string // listen, read or send
	addr  netip.Addr
}

func (t trouble) compare(o trouble) int {
	if c := t.addr.Compare(o.addr); c != 0 {
		return c
	}
	return slices.Compare([]byte(t.doing), []byte(o.doing))
}

// report notes a trouble and logs it when it is new. Must hold p.mu.
func (p *Prober) report(t trouble, err error) {
	if p.troubles[t] == nil {
		p.complain.Do(func() { p.o.Log.Warn("cannot "+t.doing+" echoes", "addr", t.addr, "err", err) })
	}
	p.troubles[t] = err
}

// socket returns the open socket of a family, or nil. Must hold p.mu.
func (p *Prober) socket(f mesh.Family) *socket {
	for a, s := range p.sockets {
		if mesh.FamilyOf(a) == f {
			return s
		}
	}
	return nil
}

// canPing reports whether any socket can send ICMP echoes. Must hold p.mu.
func (p *Prober) canPing() bool {
	for _, s := range p.sockets {
		if s.pinger != nil {
			return true
		}
	}
	return false
}

// reopen has a socket closed and opened anew. Must hold p.mu.
func (p *Prober) reopen(s *socket) {
	if p.sockets[s.addr] == s && !s.broken {
		s.broken = true
		nudge(p.broke)
	}
}

// keepSockets keeps a socket open on each of our addresses until ctx ends; then
// it closes them and waits for their readers.
func (p *Prober) keepSockets(ctx context.Context) {
	var readers sync.WaitGroup
	defer readers.Wait()
	defer p.closeSockets()
	retry := time.NewTimer(0)
	defer retry.Stop()
	backoff, last := reopenMin, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.rebind:
			backoff = reopenMin
		case <-p.broke:
			if time.Since(last) > calm {
				backoff = reopenMin
			}
			retry.Reset(backoff)
			continue
		case <-retry.C:
			backoff = min(2*backoff, reopenMax)
		}
		if !p.openSockets(ctx, &readers) {
			retry.Reset(backoff)
		}
		last = time.Now()
	}
}

// openSockets closes sockets that are broken or no longer wanted and opens those
// that are missing; it reports whether all are open.
func (p *Prober) openSockets(ctx context.Context, readers *sync.WaitGroup) bool {
	all := true
	for _, a := range p.missing() {
		s, pingErr, err := p.listen(ctx, a)
		p.mu.Lock()
		if err != nil {
			all = false
			p.report(trouble{"listen for", a}, err)
			p.mu.Unlock()
			continue
		}
		delete(p.troubles, trouble{"listen for", a})
		p.sockets[a] = s
		nudge(p.wake)
		p.mu.Unlock()

		p.o.Log.Debug("listening for echoes", "addr", a, "port", p.o.Port)
		readers.Go(func() { p.readEchoes(s) })
		if pingErr == nil {
			readers.Go(func() { p.readPongs(s) })
			continue
		}
		p.noICMP.Do(func() {
			p.o.Log.Warn("no ICMP echoes (they need root or CAP_NET_RAW): a tunnel goes down while the agent at its far end restarts", "addr", a, "err", pingErr)
		})
	}
	return all
}

// missing closes what is broken or unwanted, forgets its troubles, and returns
// the addresses that have no socket.
func (p *Prober) missing() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, s := range p.sockets {
		if s.broken || !slices.Contains(p.addrs, a) {
			s.close()
			delete(p.sockets, a)
			delete(p.troubles, trouble{"read", a})
		}
	}
	for t := range p.troubles {
		if !slices.Contains(p.addrs, t.addr) {
			delete(p.troubles, t)
		}
	}
	var out []netip.Addr
	for _, a := range p.addrs {
		if p.sockets[a] == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func (p *Prober) closeSockets() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, s := range p.sockets {
		s.close()
		delete(p.sockets, a)
	}
}
