package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flatmesh/flatmesh/pkg/ipam"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/store"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

// retryAfter is how long the loop waits before it tries again to write or to
// publish what it could not.
const retryAfter = 5 * time.Second

// loop owns all of the control plane's state. Others hand it functions, which
// it runs one at a time; those that wait together are committed to the store
// together, and published once.
type loop struct {
	log   *slog.Logger
	store storage
	cache *xds.Cache
	now   func() time.Time
	hold  time.Duration

	calls  chan *call
	nackMu sync.Mutex
	nacks  map[string]int // by type; guarded by nackMu
	// life ends with the loop.
	life context.Context

	// The rest belongs to the goroutine of run.
	meshName      string
	ranges        []netip.Prefix // the mesh's tunnel ranges
	pool          *ipam.Pool
	clusters      map[string]*cluster
	sources       map[string]string   // source → why its newest state was refused
	waiting       map[string]*waiting // by source
	registrations map[mesh.NodeID]store.Registration
	orders        map[string]uint64
	leases        map[mesh.NodeID]map[*lease]struct{}
	reports       map[mesh.NodeID]*session
	lastSeen      map[mesh.NodeID]time.Time
	pending       []write
	// services says how sources' services are read, catalog serves them. stale
	// are those to be joined anew, stalePods the nodes whose pods changed.
	services  source.Options
	catalog   *view.Catalog
	stale     map[mesh.ServiceName]struct{}
	begun     bool // the catalog has been told everything once
	unwritten bool // services have changed since they were written
	stalePods map[mesh.NodeID]struct{}
	// awaited are nodes whose first report is waited for.
	awaited       map[mesh.NodeID]*time.Timer
	gatewayStates map[gatewayID]*gatewayState
	// dirty: the topology may have changed since it was published.
	dirty bool
	// synced: every source has told its first state, so that what is missing
	// from the view is really missing.
	synced   bool
	topology mesh.Topology
	covered  cover // the topology's claims
	// expected counts the topology's tunnels; less than 0 where not yet counted.
	expected  int
	published published
	unsaved   error // why the last commit failed
	started   time.Time
	// fresh: the store held nothing when it was opened. settled is until when no
	// view is published because of it.
	fresh   bool
	settled time.Time
}

// storage is what the loop needs of the store once it is loaded.
type storage interface {
	Update(func(*store.Tx) error) error
	Order(keys []string) (map[string]uint64, error)
}

// call is one function for the loop, and where its result goes.
type call struct {
	run  func(*loop) error
	err  error
	done chan struct{}
	// undone: it depends on writes that are taken back where the store refuses.
	undone bool
}

// write is one change to the store, and how to take it back in memory if the
// store refuses it. A nil undo keeps the memory's state and tries again later.
type write struct {
	put  func(*store.Tx)
	undo func()
}

// do runs fn on the loop's goroutine and returns after the store was told what
// it wrote. Its error is fn's; or the store's, where that took back what fn did;
// or ctx's, and then fn did not run and will not: what fn hands out is never
// lost, and what it writes to is its caller's again.
func (l *loop) do(ctx context.Context, fn func(*loop) error) error {
	c := &call{run: fn, done: make(chan struct{})}
	select {
	case l.calls <- c:
		<-c.done // the loop ends between calls only
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.life.Done():
		return context.Cause(l.life)
	}
}

// run is the loop. It ends with ctx.
func (l *loop) run(ctx context.Context) {
	retry := time.NewTicker(retryAfter)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-l.calls:
			l.turn(l.gather(c), false)
		case <-retry.C:
			l.turn(nil, true)
		}
	}
}

// turn runs a batch of calls, writes what they changed and publishes it. again
// says that it is time to try again what failed.
func (l *loop) turn(batch []*call, again bool) {
	for _, c := range batch {
		earlier := len(l.pending)
		c.err = c.run(l)
		c.undone = slices.ContainsFunc(l.pending[earlier:], func(w write) bool { return w.undo != nil })
	}
	l.releaseHeld()
	err := l.commit()
	for _, c := range batch {
		// A disk that is full fails nobody who wanted nothing of it.
		if c.err == nil && c.undone {
			c.err = err
		}
		close(c.done)
	}
	if l.now().Before(l.settled) {
		return
	}
	// While the store fails a whole recompute is not tried with every call.
	if l.dirty && l.synced && (l.unsaved == nil || again) {
		l.recompute()
	}
	if l.synced {
		l.publishServices()
	}
}

// gather takes what else waits, so that a burst costs one commit and one
// recompute. It is bounded, so that a caller is not kept waiting for ever.
func (l *loop) gather(first *call) []*call {
	batch := []*call{first}
	for len(batch) < 1024 {
		select {
		case c := <-l.calls:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// commit writes what is pending. Where the store refuses, writes that can be
// taken back are, and their callers get the error; the others stay pending.
func (l *loop) commit() error {
	if len(l.pending) == 0 {
		return nil
	}
	err := l.store.Update(func(tx *store.Tx) error {
		for _, w := range l.pending {
			w.put(tx)
		}
		return nil
	})
	l.noteUnsaved(err)
	if err == nil {
		l.pending = nil
		return nil
	}
	var keep []write
	for i := len(l.pending) - 1; i >= 0; i-- {
		if w := l.pending[i]; w.undo != nil {
			w.undo()
		} else {
			keep = append(keep, w)
		}
	}
	slices.Reverse(keep)
	l.pending = keep
	return err
}

// recompute makes a new Topology of all there is and publishes what differs.
func (l *loop) recompute() {
	begin := l.now()
	t, err := buildTopology(l.facts(), l.order)
	if err != nil {
		// Nothing is published that would not survive a restart as it is.
		if len(l.pending) == 0 {
			l.noteUnsaved(fmt.Errorf("the order of claims: %w; the last view stays in force", err))
		}
		return
	}
	if len(l.pending) == 0 {
		l.noteUnsaved(nil)
	}
	l.logConflicts(l.topology.Conflicts, t.Conflicts)
	l.logPrefixes(l.topology.Nodes, t.Nodes)
	l.topology, l.covered, l.expected = t, coverOf(t.Claims), -1
	// Paths before peers: the gateway is served before a peer goes.
	l.catalog.SetTopology(t)
	changed, err := l.published.publish(l.cache, t)
	if err != nil {
		l.log.Error("publish the view", "err", err)
		return
	}
	l.dirty = false
	if changed > 0 {
		l.log.Info("view published", "clusters", len(t.Clusters), "nodes", len(t.Nodes), "conflicts", len(t.Conflicts), "resources", changed, "took", l.now().Sub(begin))
	}
}

// noteUnsaved keeps why state could not be written, and logs changes.
func (l *loop) noteUnsaved(err error) {
	switch {
	case err == nil && l.unsaved != nil:
		l.log.Info("state is written again")
	case err != nil && (l.unsaved == nil || l.unsaved.Error() != err.Error()):
		l.log.Error("state could not be written; nothing that exists is touched, new registrations are refused", "err", err)
	}
	l.unsaved = err
}

func (l *loop) facts() facts {
	f := facts{registrations: l.registrations, tunnelRanges: l.ranges, gateways: l.gateways()}
	for _, c := range l.clusters {
		f.clusters = append(f.clusters, c.decl)
		for _, n := range c.nodes {
			f.nodes = append(f.nodes, n)
		}
	}
	return f
}

// order returns the keys' places, from memory where all are known.
func (l *loop) order(keys []string) (map[string]uint64, error) {
	known := func(k string) bool { _, ok := l.orders[k]; return ok }
	if !slices.ContainsFunc(keys, func(k string) bool { return !known(k) }) {
		return l.orders, nil
	}
	if len(l.pending) > 0 {
		// Among it may be places that are to be forgotten: the store still has them.
		return nil, errors.New("earlier changes are not written yet")
	}
	all, err := l.store.Order(keys)
	if err != nil {
		return nil, err
	}
	l.orders = all
	return l.orders, nil
}

func (l *loop) logConflicts(old, now []mesh.Conflict) {
	was := make(map[mesh.Conflict]bool, len(old))
	for _, c := range old {
		was[c] = true
	}
	for _, c := range now {
		if was[c] {
			delete(was, c)
			continue
		}
		level := slog.LevelWarn
		if c.Effect == mesh.Listed {
			level = slog.LevelInfo
		}
		l.log.Log(context.Background(), level, "conflict", "effect", c.Effect, "detail", c.String())
	}
	for c := range was {
		l.log.Info("conflict ended", "effect", c.Effect, "detail", c.String())
	}
}
