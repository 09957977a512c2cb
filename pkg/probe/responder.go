package probe

import (
	"net/netip"

	"golang.org/x/time/rate"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// How many requests a second are answered. A peer sends at most eleven a second;
// all peers together at most what the fastest of them would for 400 active pairs.
const (
	answersASource  = 20
	answersInAll    = 4000
	answersStranger = 100
	// maxSources bounds the memory for sources; they are forgotten beyond it.
	maxSources = 16384
)

// responder decides which requests are answered. Sources of which we hold
// nothing share a small allowance of their own: a remote pod's flood must not
// keep peers from their answers. It is used by one goroutine.
type responder struct {
	applied       func(netip.Addr) uint64
	notForwarding func() []mesh.Family
	version       string
	all           *rate.Limiter // shared by the responders of all sockets
	strangers     *rate.Limiter
	sources       map[netip.Addr]*rate.Limiter
}

func newResponder(o Options, all *rate.Limiter) *responder {
	return &responder{
		applied: o.Applied, notForwarding: o.NotForwarding, version: o.Version, all: all,
		strangers: rate.NewLimiter(answersStranger, answersStranger),
		sources:   map[netip.Addr]*rate.Limiter{},
	}
}

// answer appends the reply to request seq of src to b; false means that src gets
// no answer now.
func (r *responder) answer(b []byte, src netip.Addr, seq uint64) ([]byte, bool) {
	applied := r.applied(src)
	if !r.limiter(src, applied != 0).Allow() || !r.all.Allow() {
		return nil, false
	}
	b, err := appendReply(b, seq, applied, r.notForwarding(), r.version)
	return b, err == nil
}

func (r *responder) limiter(src netip.Addr, known bool) *rate.Limiter {
	if !known {
		return r.strangers
	}
	l := r.sources[src]
	if l == nil {
		if len(r.sources) >= maxSources {
			clear(r.sources)
		}
		l = rate.NewLimiter(answersASource, answersASource)
		r.sources[src] = l
	}
	return l
}
