package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Port is the UDP port of the echo, on the tunnel address of every node.
const Port = 51831

// Options are what a Prober needs. Its functions are called from goroutines of
// the Prober, several at a time.
type Options struct {
	Log *slog.Logger
	// Addrs are our own tunnel addresses, at most one of each family. SetAddrs
	// changes them.
	Addrs []netip.Addr
	// Port is what we send from, listen on and send to; 0 means 51831.
	Port uint16
	// Link is the tunnel device, which alone our packets may use. Empty: any.
	Link string
	// Version is what replies say that we are, at most 64 bytes.
	Version string

	// Applied returns the mesh.Digest of what our device holds of the node with a
	// tunnel address, zero if nothing. It is called for each request, so it must
	// be quick; and it must know the device before Run is called, or an agent that
	// restarts denies its peers.
	Applied func(src netip.Addr) uint64
	// NotForwarding returns the families that this node does not forward to its
	// pods. Nil: it forwards both.
	NotForwarding func() []mesh.Family

	// Traffic reads WireGuard's counters of every peer. Nil: no tunnel is ever
	// taken to have traffic, and each is probed as an idle one.
	Traffic func(context.Context) (map[mesh.NodeID]Counters, error)
	// LinkTx reads how many packets were sent into the tunnel device. It is read
	// ten times a second; only if it grew by more than our own packets is Traffic
	// read, and else every ten seconds. Nil: Traffic is read each time.
	LinkTx func() (uint64, error)

	// OnChange is given what changed, from one goroutine. While it has not
	// returned, changes wait, and those of one node become one. Nil: not wanted.
	OnChange func([]Change)
}

// Stats are counts since the Prober was made.
type Stats struct {
	// Sent counts probes, Pings the ICMP echoes beside them.
	Sent, Pings uint64
	// Replies counts echoes that answered a probe, in time or late; Stray those
	// that answered none.
	Replies, Stray uint64
	// Answered counts requests answered, Limited those over the rate.
	Answered, Limited uint64
	// Malformed counts datagrams that are no echo.
	Malformed uint64
	// SendErrors counts sends that failed locally, Voided the rounds that were
	// discarded because our own timers ran late.
	SendErrors, Voided uint64
}

// Prober probes tunnels and answers the probes of others.
type Prober struct {
	o      Options
	all    *rate.Limiter // of answers
	listen func(context.Context, netip.Addr) (s *socket, pingErr, err error)

	// One slot each, so that an event is never lost and never blocks.
	wake   chan struct{} // the loop has something new
	tell   chan struct{} // there are changes
	rebind chan struct{} // our addresses changed
	broke  chan struct{} // a socket broke

	// The rest is guarded by mu, which is never held over a system call that
	// could block.
	mu       sync.Mutex
	running  bool
	tracker  *tracker
	addrs    []netip.Addr
	sockets  map[netip.Addr]*socket
	troubles map[trouble]error // at present
	complain rate.Sometimes
	noICMP   sync.Once
	stats    Stats
	packets  uint64                 // our own into the tunnel device
	sealed   map[mesh.NodeID]uint64 // bytes that WireGuard counts for our own packets
	joined   bool                   // targets are new: read the counters soon
}

// New returns a Prober with no targets. Nothing is opened until Run.
func New(o Options) *Prober {
	if o.Port == 0 {
		o.Port = Port
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Applied == nil {
		o.Applied = func(netip.Addr) uint64 { return 0 }
	}
	if o.NotForwarding == nil {
		o.NotForwarding = func() []mesh.Family { return nil }
	}
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	id := uint16(r.Uint32())
	return &Prober{
		o: o,
		listen: func(ctx context.Context, addr netip.Addr) (*socket, error, error) {
			return listen(ctx, addr, o.Port, o.Link, id)
		},
		all:      rate.NewLimiter(answersInAll, answersInAll/4),
		wake:     make(chan struct{}, 1),
		tell:     make(chan struct{}, 1),
		rebind:   make(chan struct{}, 1),
		broke:    make(chan struct{}, 1),
		tracker:  newTracker(r),
		addrs:    slices.Clone(o.Addrs),
		sockets:  map[netip.Addr]*socket{},
		troubles: map[trouble]error{},
		complain: rate.Sometimes{First: 3, Interval: 10 * time.Second},
		sealed:   map[mesh.NodeID]uint64{},
	}
}

// SetTargets makes ts the tunnels to probe. One that stays, by its node, keeps
// its state, also with another address; a new one begins Unknown; one that goes
// is forgotten without a Change.
func (p *Prober) SetTargets(ts []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tracker.setTargets(ts, time.Now())
	for id := range p.sealed {
		if p.tracker.entries[id] == nil {
			delete(p.sealed, id)
		}
	}
	p.joined = true
	nudge(p.wake)
	p.told()
}

// SetAddrs makes addrs our own tunnel addresses.
func (p *Prober) SetAddrs(addrs []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addrs = slices.Clone(addrs)
	nudge(p.rebind)
}

// Snapshot returns what is known of every target, sorted by node.
func (p *Prober) Snapshot() []Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.results(time.Now())
}

// Stats returns the counts so far.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Err returns what keeps the Prober from probing at present: an address that it
// cannot listen on, sends that fail locally. Nil if nothing does. Missing raw
// sockets are no error.
func (p *Prober) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, t := range slices.SortedFunc(maps.Keys(p.troubles), trouble.compare) {
		errs = append(errs, fmt.Errorf("%s echoes on %v: %w", t.doing, t.addr, p.troubles[t]))
	}
	return errors.Join(errs...)
}

// Run probes and answers until ctx ends, and then returns nil. What it cannot
// open it tries again; Err says what. It may be called once.
func (p *Prober) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errors.New("probe: Run was called twice")
	}
	p.running = true
	p.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { p.keepSockets(ctx) })
	wg.Go(func() { p.watchTraffic(ctx) })
	wg.Go(func() { p.tellChanges(ctx) })
	p.probe(ctx)
	wg.Wait()
	return nil
}

// tolerated is how late our own timer may run before a round says nothing.
const tolerated = 250 * time.Millisecond

// late reports whether we ourselves were away: a wake-up ran behind its time
// (starved of CPU, stopped), or more time passed on the wall than on the monotonic
// clock, which does not count when the machine is suspended. That somebody set the
// clock looks the same, and costs one round too.
func late(behind, wall, monotonic time.Duration) bool {
	return behind > tolerated || (wall-monotonic).Abs() > tolerated
}

// probe is the loop that sends.
func (p *Prober) probe(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	before := time.Now()
	due := before
	var sends []probe
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.wake:
		}
		p.mu.Lock()
		now := time.Now()
		if late(now.Sub(due), now.Round(0).Sub(before.Round(0)), now.Sub(before)) {
			p.tracker.void()
			p.stats.Voided++
		}
		sends = p.tracker.poll(now, p.canPing(), sends[:0])
		p.mu.Unlock()

		for _, s := range sends {
			buf = p.send(s, buf[:0])
		}

		p.mu.Lock()
		wait := p.tracker.wait(now)
		p.tracker.sooner = false
		p.told()
		p.mu.Unlock()
		before, due = now, now.Add(wait)
		timer.Reset(time.Until(due))
	}
}

// told passes on what the tracker has to say. Must hold p.mu.
func (p *Prober) told() {
	if len(p.tracker.changes) > 0 {
		nudge(p.tell)
	}
	if p.tracker.sooner {
		p.tracker.sooner = false
		nudge(p.wake)
	}
}

func (p *Prober) tellChanges(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.tell:
		}
		p.mu.Lock()
		changes := p.tracker.takeChanges()
		p.mu.Unlock()
		if len(changes) > 0 && p.o.OnChange != nil {
			p.o.OnChange(changes)
		}
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
