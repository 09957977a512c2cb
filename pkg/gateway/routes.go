package gateway

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Routes is what a gateway admits: the ready pods of its own cluster for each
// server name, such as outbound_.80_._.echo.demo.svc.cluster.local. A name
// without pods is a known service that has none ready. Names are compared without
// regard to case or a trailing dot (RFC 6066, section 3); invalid and repeated
// addresses are left out.
type Routes map[string][]netip.AddrPort

// table holds the services by canonical name.
type table struct {
	mu       sync.RWMutex
	services map[string]*service
}

func canonical(sni string) string { return strings.ToLower(strings.TrimSuffix(sni, ".")) }

func (t *table) find(sni string) *service {
	name := canonical(sni)
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.services[name]
}

func (t *table) set(sni string, pods []netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.services == nil {
		t.services = map[string]*service{}
	}
	name := canonical(sni)
	t.services[name] = t.services[name].with(pods)
}

func (t *table) remove(sni string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.services, canonical(sni))
}

func (t *table) replace(routes Routes) {
	t.mu.Lock()
	defer t.mu.Unlock()
	services := make(map[string]*service, len(routes))
	for sni, pods := range routes {
		name := canonical(sni)
		services[name] = t.services[name].with(pods)
	}
	t.services = services
}

func (t *table) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.services)
}

// service is a server name's pods. Its list does not change: another one takes
// its place.
type service struct {
	backends []*backend
	turn     atomic.Uint32
}

// with returns a service with the given pods, which keep what is known of them.
// s may be nil.
func (s *service) with(pods []netip.AddrPort) *service {
	known := map[netip.AddrPort]*backend{}
	next := &service{backends: make([]*backend, 0, len(pods))}
	// The start differs between gateways: otherwise the first pod would get the
	// first connection of each of them.
	next.turn.Store(rand.Uint32())
	if s != nil {
		next.turn.Store(s.turn.Load())
		for _, b := range s.backends {
			known[b.addr] = b
		}
	}
	have := make(map[netip.AddrPort]bool, len(pods))
	for _, addr := range pods {
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		if !addr.IsValid() || addr.Port() == 0 || have[addr] {
			continue
		}
		have[addr] = true
		b := known[addr]
		if b == nil {
			b = &backend{addr: addr}
		}
		next.backends = append(next.backends, b)
	}
	return next
}

// choose returns the pod for the next try of a connection, or nil after all have
// been tried, and counts the connection as its own.
//
// It is the better of two: the next in turn, and one at random where that has
// fewer connections. Turns spread the few connections of one HTTP/2 client over
// different pods, which random choice alone does not. The comparison evens out
// what turns do not see, long connections and new pods. To ask for the least
// loaded of all would send every connection to a pod that accepts and closes:
// here such a pod gets no more than twice its share.
//
// Pods that failed shortly before are left alone unless nothing else is there.
func (s *service) choose(now time.Time, tried []*backend) *backend {
	n := uint32(len(s.backends))
	if n == 0 {
		return nil
	}
	at := now.UnixNano()
	var best *backend
	turn := s.turn.Add(1)
	for i := range n {
		if b := s.backends[(turn+i)%n]; b.restUntil.Load() <= at && !slices.Contains(tried, b) {
			best = b
			break
		}
	}
	if best == nil {
		best = s.leastTired(tried)
		if best == nil {
			return nil
		}
	} else if b := s.backends[rand.Uint32N(n)]; b.active.Load() < best.active.Load() && b.restUntil.Load() <= at && !slices.Contains(tried, b) {
		best = b
	}
	best.begin(at)
	return best
}

// leastTired returns the untried pod whose rest ends first.
func (s *service) leastTired(tried []*backend) *backend {
	var best *backend
	for _, b := range s.backends {
		if !slices.Contains(tried, b) && (best == nil || b.restUntil.Load() < best.restUntil.Load()) {
			best = b
		}
	}
	return best
}

// How long a pod rests after connects to it failed: twice as long each time.
const (
	firstRest   = time.Second
	longestRest = 30 * time.Second
)

// backend is a pod's port as one service has it.
type backend struct {
	addr   netip.AddrPort
	active atomic.Int32
	// failures counts the connects that failed since one succeeded; restUntil is
	// when another may be tried, in Unix nanoseconds.
	failures  atomic.Int32
	restUntil atomic.Int64
}

// begin counts a connection. Where the pod comes from a rest it goes on resting
// for the others until this one knows more: a pod that does not answer costs
// whoever tries it the whole timeout.
func (b *backend) begin(at int64) {
	b.active.Add(1)
	if n := b.failures.Load(); n > 0 {
		b.restUntil.Store(at + int64(rest(n)))
	}
}

// end uncounts a connection.
func (b *backend) end() { b.active.Add(-1) }

// failed lets the pod rest. seen is what failures was when the connect began:
// many that fail at the same time are one failure. One that is refused at once
// costs its client nothing, and the pod may be just about to listen: it rests for
// the shortest time, however often that was so.
func (b *backend) failed(seen int32, refused bool, now time.Time) {
	next := seen + 1
	if refused {
		next = 1
	}
	if b.failures.CompareAndSwap(seen, next) {
		b.restUntil.Store(now.Add(rest(next)).UnixNano())
	}
}

func (b *backend) succeeded() {
	if b.failures.Load() != 0 {
		b.failures.Store(0)
		b.restUntil.Store(0)
	}
}

func rest(failures int32) time.Duration {
	return min(firstRest<<min(failures-1, 10), longestRest)
}
