package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/testenv"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var lastAddr atomic.Uint32

// loopback returns an address of 127.0.0.0/8 that no other test uses.
func loopback() netip.Addr {
	n := lastAddr.Add(1)
	return netip.AddrFrom4([4]byte{127, byte(1 + os.Getpid()%250), byte(n >> 8), byte(n)})
}

// freePort returns a UDP port that is free on every address.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// await waits until a condition holds. How long that takes is no test's concern.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// start runs a prober until the test ends or stop is called.
func start(t *testing.T, p *Prober) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func holds(digest uint64) func(netip.Addr) uint64 { return func(netip.Addr) uint64 { return digest } }

// withoutICMP makes a prober run as where raw sockets are not permitted.
func withoutICMP(p *Prober) *Prober {
	inner := p.listen
	p.listen = func(ctx context.Context, a netip.Addr) (*socket, error, error) {
		s, pingErr, err := inner(ctx, a)
		if err != nil {
			return nil, nil, err
		}
		if s.pinger != nil {
			s.pinger.conn.Close()
		}
		s.pinger = nil
		return s, errors.Join(pingErr, errors.New("not permitted")), nil
	}
	return p
}

func statusOf(p *Prober, node mesh.NodeID) mesh.TunnelStatus {
	for _, r := range p.Snapshot() {
		if r.Node == node {
			return r.Status
		}
	}
	return mesh.TunnelStatus{}
}

var west = mesh.NodeID{Cluster: "west", Name: "n1"}

// pair starts two probers that probe each other; adapt changes the second's options.
func pair(t *testing.T, adapt func(*Options)) (a, b *Prober, stopB func()) {
	t.Helper()
	port, addrA, addrB := freePort(t), loopback(), loopback()
	optionsB := Options{Addrs: []netip.Addr{addrB}, Port: port, Applied: holds(7), Version: "v1.2.3"}
	if adapt != nil {
		adapt(&optionsB)
	}
	a = New(Options{Addrs: []netip.Addr{addrA}, Port: port, Applied: holds(9)})
	b = New(optionsB)
	both := []mesh.Family{mesh.IPv4}
	a.SetTargets([]Target{{Node: west, Addr: addrB, Expect: 7, Families: both}})
	b.SetTargets([]Target{{Node: simID(1), Addr: addrA, Expect: 9, Families: both}})
	return a, b, start(t, b)
}

func TestTwoProbersAndOneStops(t *testing.T) {
	t.Parallel()
	for name, icmp := range map[string]bool{"with ICMP": true, "without ICMP": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, stopB := pair(t, nil)
			want := away
			if icmp {
				testenv.NeedRoot(t)
			} else {
				withoutICMP(a)
				want = lost
			}
			var changes recorder
			a.o.OnChange = changes.add
			start(t, a)
			await(t, "both Up", func() bool { return statusOf(a, west) == up && statusOf(b, simID(1)) == up })
			r := a.Snapshot()[0]
			if r.RTT <= 0 || r.LastReply.IsZero() || r.Version != "v1.2.3" || r.Active {
				t.Errorf("snapshot: %+v", r)
			}
			stopB()
			await(t, fmt.Sprint(want), func() bool { return statusOf(a, west) == want })
			await(t, "the change is told", func() bool { return changes.last().New == want })
			all := changes.all()
			if all[0].Old != probing || all[0].Node != west {
				t.Errorf("first change: %+v", all[0])
			}
			for i := 1; i < len(all); i++ {
				if all[i].Old != all[i-1].New {
					t.Errorf("changes do not join: %+v, then %+v", all[i-1], all[i])
				}
			}
			if err := a.Err(); err != nil {
				t.Errorf("Err: %v", err)
			}
		})
	}
}

type recorder struct {
	mu      sync.Mutex
	changes []Change
}

func (r *recorder) add(c []Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes = append(r.changes, c...)
}

func (r *recorder) all() []Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

func (r *recorder) last() Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.changes) == 0 {
		return Change{}
	}
	return r.changes[len(r.changes)-1]
}

func TestAgentComesBack(t *testing.T) {
	t.Parallel()
	a, b, stopB := pair(t, nil)
	withoutICMP(a)
	start(t, a)
	await(t, "Up", func() bool { return statusOf(a, west) == up })
	stopB()
	await(t, "Down", func() bool { return statusOf(a, west) == lost })
	start(t, New(b.o))
	await(t, "Up again", func() bool { return statusOf(a, west) == up })
}

func TestFarEndDoesNotHoldUs(t *testing.T) {
	t.Parallel()
	var digest atomic.Uint64
	a, _, _ := pair(t, func(o *Options) { o.Applied = func(netip.Addr) uint64 { return digest.Load() } })
	start(t, a)
	await(t, "not-applied", func() bool { return statusOf(a, west) == notApplied })
	digest.Store(7)
	await(t, "Up", func() bool { return statusOf(a, west) == up })
	digest.Store(8)
	await(t, "not-applied again", func() bool { return statusOf(a, west) == notApplied })
}

func TestFarEndDoesNotForward(t *testing.T) {
	t.Parallel()
	var family atomic.Uint32
	a, _, _ := pair(t, func(o *Options) {
		o.NotForwarding = func() []mesh.Family { return []mesh.Family{mesh.Family(family.Load())} }
	})
	family.Store(uint32(mesh.IPv6))
	start(t, a)
	await(t, "Up: the tunnel carries no IPv6", func() bool { return statusOf(a, west) == up })
	family.Store(uint32(mesh.IPv4))
	await(t, "forward-blocked", func() bool { return statusOf(a, west) == notForward })
	family.Store(uint32(mesh.IPv6))
	await(t, "Up again", func() bool { return statusOf(a, west) == up })
}

func TestRefused(t *testing.T) {
	t.Parallel()
	a, _, _ := pair(t, nil)
	target := a.Snapshot()[0].Target
	var changes recorder
	a.o.OnChange = changes.add
	start(t, a)
	await(t, "Up", func() bool { return statusOf(a, west) == up })
	target.Refused = mesh.ReasonUnsafeRange
	a.SetTargets([]Target{target})
	refused := mesh.TunnelStatus{State: mesh.Down, Reason: mesh.ReasonUnsafeRange}
	if got := statusOf(a, west); got != refused {
		t.Errorf("%v, want %v", got, refused)
	}
	await(t, "told", func() bool { return changes.last() == Change{Node: west, Old: up, New: refused} })
	replies := a.Stats().Replies
	await(t, "an echo more", func() bool { return a.Stats().Replies > replies })
	if got := statusOf(a, west); got != refused {
		t.Errorf("an echo made it %v", got)
	}
	target.Refused = ""
	a.SetTargets([]Target{target})
	if got := statusOf(a, west); got != up {
		t.Errorf("no longer refused: %v, want %v", got, up)
	}
}

// A node that moves to another tunnel address keeps its state and is probed there.
func TestTargetMoves(t *testing.T) {
	t.Parallel()
	a, b, stopB := pair(t, nil)
	withoutICMP(a)
	start(t, a)
	await(t, "Up", func() bool { return statusOf(a, west) == up })
	stopB()
	target := a.Snapshot()[0].Target
	target.Addr = loopback()
	moved := b.o
	moved.Addrs = []netip.Addr{target.Addr}
	start(t, New(moved))
	before := a.Stats().Replies
	a.SetTargets([]Target{target})
	if got := statusOf(a, west); got.State != mesh.Up && got != lost {
		t.Errorf("after the move: %v", got)
	}
	await(t, "echoes from there, and Up", func() bool { return a.Stats().Replies > before && statusOf(a, west) == up })
}

// An address that is not there yet, and a port that another holds.
func TestListenLater(t *testing.T) {
	t.Parallel()
	a, _, _ := pair(t, nil)
	addr := a.o.Addrs[0]
	a.SetAddrs([]netip.Addr{netip.MustParseAddr("192.0.2.77")})
	start(t, a)
	await(t, "an error", func() bool { return a.Err() != nil })
	if got := statusOf(a, west); got != probing {
		t.Errorf("cannot send, and judged %v", got)
	}
	holder, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, a.o.Port)))
	if err != nil {
		t.Fatal(err)
	}
	a.SetAddrs([]netip.Addr{addr})
	await(t, "the port is held", func() bool { return errors.Is(a.Err(), unix.EADDRINUSE) })
	holder.Close()
	await(t, "Up", func() bool { return statusOf(a, west) == up })
	if err := a.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
}

// A socket that breaks is opened anew.
func TestSocketBreaks(t *testing.T) {
	t.Parallel()
	a, _, _ := pair(t, nil)
	start(t, a)
	await(t, "Up", func() bool { return statusOf(a, west) == up })
	a.mu.Lock()
	old := a.sockets[a.addrs[0]]
	a.reopen(old)
	a.mu.Unlock()
	await(t, "another socket", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		s := a.sockets[a.addrs[0]]
		return s != nil && s != old
	})
	before := a.Stats().Replies
	await(t, "echoes through it", func() bool { return a.Stats().Replies > before })
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	n := 1000
	if testing.Short() {
		n = 50
	}
	p := New(Options{Addrs: []netip.Addr{loopback()}, Port: freePort(t)})
	targets := make([]Target, n)
	for i := range targets {
		targets[i] = Target{Node: simID(i), Addr: loopback(), Expect: 7}
	}
	p.SetTargets(targets)
	start(t, p)
	await(t, "all Down", func() bool {
		return !slices.ContainsFunc(p.Snapshot(), func(r Result) bool { return r.Status != noHandshake })
	})
}

// Targets come and go while probes fly and readers look.
func TestChurn(t *testing.T) {
	t.Parallel()
	var changes recorder
	a, _, _ := pair(t, nil)
	a.o.OnChange = changes.add
	stay := a.Snapshot()[0].Target
	start(t, a)
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				a.Snapshot()
				a.Err()
			}
		}
	})
	for round := range 300 {
		targets := []Target{stay}
		for i := range round % 40 {
			targets = append(targets, Target{Node: simID(i * (round%3 + 1)), Addr: loopback(), Expect: 1})
		}
		a.SetTargets(targets)
		a.SetAddrs(a.o.Addrs)
		if got := len(a.Snapshot()); got != len(targets) {
			t.Fatalf("round %d: %d results of %d targets", round, got, len(targets))
		}
	}
	a.SetTargets([]Target{stay})
	await(t, "the one that stayed is Up", func() bool { return statusOf(a, west) == up })
	close(done)
	wg.Wait()
	for _, c := range changes.all() {
		if c.Node == west && c.New != up {
			t.Errorf("the one that stayed changed: %+v", c)
		}
	}
}

func TestTrafficMakesActive(t *testing.T) {
	t.Parallel()
	a, b, _ := pair(t, nil)
	var packets, bytes atomic.Uint64
	a.o.LinkTx = func() (uint64, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return 1000 + a.packets + packets.Load(), nil
	}
	var reads atomic.Uint64
	a.o.Traffic = func(context.Context) (map[mesh.NodeID]Counters, error) {
		reads.Add(1)
		a.mu.Lock()
		defer a.mu.Unlock()
		return map[mesh.NodeID]Counters{west: {Sent: 12345 + a.sealed[west] + bytes.Load(), Shaken: true}}, nil
	}
	start(t, a)
	await(t, "Up, and the counters known", func() bool { return statusOf(a, west) == up && reads.Load() > 0 })
	sent := a.Stats()
	await(t, "more probes and answers of our own", func() bool { s := a.Stats(); return s.Sent > sent.Sent && s.Answered > sent.Answered })
	if a.Snapshot()[0].Active {
		t.Fatal("active by our own packets")
	}
	packets.Add(1)
	bytes.Add(sealedSize(60))
	await(t, "active", func() bool { return a.Snapshot()[0].Active })
	if b.Snapshot()[0].Active {
		t.Error("active with no counters")
	}
}

// IPv6, by a prober that probes itself: there is one loopback address.
func TestIPv6(t *testing.T) {
	t.Parallel()
	addr := netip.IPv6Loopback()
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	c.Close()
	p := New(Options{Addrs: []netip.Addr{addr}, Port: freePort(t), Applied: holds(7)})
	p.SetTargets([]Target{{Node: west, Addr: addr, Expect: 7, Families: []mesh.Family{mesh.IPv6}}})
	start(t, p)
	await(t, "Up", func() bool { return statusOf(p, west) == up })
}

func TestRunTwice(t *testing.T) {
	t.Parallel()
	p := New(Options{})
	start(t, p)
	await(t, "it runs", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.running })
	if err := p.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}
