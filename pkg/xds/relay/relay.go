package relay

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

const (
	// saveEvery is how often the cache is written to disk at most.
	saveEvery = time.Second
	// expireEvery is how often it is looked for names that nobody uses.
	expireEvery = time.Minute

	// A stream is one client; gRPC opens one for each connection.
	maxStreams = 8
	// What a connection may take until it has said that it is gRPC, and what one
	// may stay without a stream.
	handshakeTimeout = 10 * time.Second
	maxConnIdle      = 10 * time.Minute
	// bufferSize is for a connection's reads and writes, each: there may be
	// thousands, and little is sent.
	bufferSize = 4 << 10
)

// Relay serves xDS on a node. It is safe for concurrent use.
type Relay struct {
	opts      Options
	cache     *cache
	server    *xds.Server
	followers map[build.Kind]*follower
	clients   clients
	refusals  counters

	fileMu sync.Mutex
	// journal, files and the locality in them are guarded by fileMu.
	journal      *journal
	serving      bool
	region, zone string

	mu       sync.Mutex
	listener *listener // nil unless serving
	// What was wrong with the file when it was read, and why it is not written.
	readProblem, saveProblem string
}

// Open returns a relay with what the file keeps of an earlier one. A damaged file
// is set aside, which is logged and seen in the status; one that a newer agent
// wrote is an error.
func Open(o Options) (*Relay, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	j, kept, problem, err := openJournal(o.CacheFile, o.Node)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		opts: o, journal: j, followers: map[build.Kind]*follower{},
		clients:  clients{sessions: map[*session]struct{}{}, pods: map[podID]*pod{}},
		refusals: counters{n: map[setKey]uint64{}},
	}
	for _, kind := range kinds {
		r.followers[kind] = newFollower(kind, o, func(u xds.Update) error { return r.apply(kind, u) })
	}
	r.cache = newCache(o, func(kind build.Kind) upstream { return r.followers[kind] })
	// Refusals are counted by the session, which knows the kind.
	r.server = xds.NewServer(r.cache, o.Log, identifySession, func(string) {})
	versions, errs := r.cache.restore(kept)
	for k, v := range versions {
		r.followers[k.kind].Resume(k.typeURL, v)
	}
	if err := errors.Join(append(errs, problem)...); err != nil {
		o.Log.Error("the xDS cache on disk is not whole", "err", err)
		r.readProblem = err.Error()
	}
	return r, nil
}

// apply takes in what the control plane answers to a kind, and tells its clients.
func (r *Relay) apply(kind build.Kind, u xds.Update) error {
	c, err := r.cache.apply(kind, u)
	if c.fresh {
		// Before a client hears of it: whatever was ever answered on this node is served
		// again, though the agent is killed the moment after. What changes of a name
		// later waits neither for the disk nor for a save that is under way.
		_ = r.Save() // it logs
	}
	switch {
	case c.all:
		r.server.ChangedIn(u.TypeURL, string(kind))
	case len(c.names) > 0:
		r.server.ChangedIn(u.TypeURL, string(kind), c.names...)
	}
	if err != nil {
		r.opts.Log.Error("the control plane sent what no client could use; what stood there stays", "kind", kind, "type", u.TypeURL, "err", err)
	}
	return err
}

// Run is the control plane's client over one connection, until ctx ends, whose
// error it returns. It begins anew by itself where only a stream has ended. One Run
// at a time is of use.
func (r *Relay) Run(ctx context.Context, conn grpc.ClientConnInterface) error {
	var g sync.WaitGroup
	for _, f := range r.followers {
		g.Go(func() { f.follow(ctx, conn, describe(r.opts, f.kind)) })
	}
	g.Wait()
	return ctx.Err()
}

// Serve writes the files for clients, listens, and serves until ctx ends; then it
// returns nil. Whoever is connected comes back to the next process.
func (r *Relay) Serve(ctx context.Context) error {
	if err := r.begin(); err != nil {
		return err
	}
	socket, err := listen(r.opts.socket())
	if err != nil {
		return err
	}
	l := newListener(socket)
	r.listening(l)
	defer r.listening(nil)
	gs := grpc.NewServer(
		grpc.StreamInterceptor(r.intercept),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxConnIdle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(gs, r.server)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := gs.Serve(l)
		if errors.Is(err, grpc.ErrServerStopped) {
			return nil // before it had begun
		}
		return err
	})
	g.Go(func() error {
		<-ctx.Done()
		gs.Stop()
		return nil
	})
	g.Go(func() error {
		r.keep(ctx)
		return nil
	})
	return errors.Join(g.Wait(), r.Save())
}

// begin prepares the folder.
func (r *Relay) begin() error {
	r.fileMu.Lock()
	defer r.fileMu.Unlock()
	if err := makeDir(r.opts.Dir); err != nil {
		return err
	}
	r.serving = true
	return writeFiles(r.opts, r.region, r.zone)
}

func (r *Relay) listening(l *listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listener = l
}

// keep saves and expires until ctx ends.
func (r *Relay) keep(ctx context.Context) {
	save, expire := time.NewTicker(saveEvery), time.NewTicker(expireEvery)
	defer save.Stop()
	defer expire.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-expire.C:
			r.cache.expire(r.connected())
		case <-save.C:
			_ = r.Save() // it logs
		}
	}
}

// connected returns the kinds to which the control plane answers now.
func (r *Relay) connected() map[build.Kind]bool {
	out := map[build.Kind]bool{}
	for kind, f := range r.followers {
		out[kind] = f.status().State == UpstreamConnected
	}
	return out
}

// Save writes to disk what has changed. Serve does so once a second at most, and at
// its end.
func (r *Relay) Save() error {
	r.fileMu.Lock()
	err := r.journal.save(r.cache)
	r.fileMu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.saveProblem
	r.saveProblem = ""
	if err != nil {
		if r.saveProblem = err.Error(); r.saveProblem != was {
			r.opts.Log.Error("the xDS cache is not kept: after a restart without the control plane workloads would not be served", "err", err)
		}
	}
	return err
}

// SetLocality says where the node is, for the bootstrap file; empty where it is not
// known.
func (r *Relay) SetLocality(region, zone string) error {
	r.fileMu.Lock()
	defer r.fileMu.Unlock()
	if r.region == region && r.zone == zone {
		return nil
	}
	r.region, r.zone = region, zone
	if !r.serving {
		return nil
	}
	return writeFiles(r.opts, region, zone)
}

// SetDown says to which nodes no tunnel of this one can be used, all of them: what
// the control plane calls direct by such a tunnel is served through the gateways of
// its cluster from now on. Of nodes that are no longer among them it is direct
// again, where the control plane still says so.
func (r *Relay) SetDown(down map[mesh.NodeID]bool) {
	for kind, names := range r.cache.setDown(down) {
		r.server.ChangedIn(resource.EndpointType, string(kind), names...)
	}
}

// Settled returns nil once every client has acknowledged what SetDown took from
// it. Where ctx ends first it returns its error, with who is awaited: a client that
// does not read would be waited for for ever.
func (r *Relay) Settled(ctx context.Context) error {
	names := r.cache.demotedNames()
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return r.server.Settled(ctx, resource.EndpointType, names...)
}
