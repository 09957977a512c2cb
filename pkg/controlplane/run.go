package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/ipam"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/overlap"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/store"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

// Source tells of clusters until ctx ends, in order. Its first batch, which may
// be empty, is every cluster's first state.
type Source interface {
	Run(ctx context.Context, out chan<- []source.Update) error
}

// Options is how a control plane is started.
type Options struct {
	// Mesh is the mesh's name; it is in every certificate and token.
	Mesh string
	// StateDir keeps the CA, the store and the admin socket (0700).
	StateDir string
	Source   Source
	// Listen is the gRPC address, HTTP that of metrics and health (empty: none).
	Listen string
	HTTP   string
	// TunnelRanges has at most one range of each family.
	TunnelRanges []netip.Prefix
	// RemovalHold is how long a suspicious removal is held.
	RemovalHold time.Duration
	// CertificateTTL is how long an agent's, a gateway's or a workload's
	// certificate lives.
	CertificateTTL time.Duration
	// Services says how sources' services are read.
	Services source.Options
	// ValidateResources checks deeply whatever is served of services.
	ValidateResources bool
	Version           string
	Log               *slog.Logger
}

// PKIDir is where the CA lies in a state directory.
func PKIDir(stateDir string) string { return filepath.Join(stateDir, "pki") }

// AdminSocket is where a control plane listens for its CLI.
func AdminSocket(stateDir string) string { return filepath.Join(stateDir, "controlplane.sock") }

// Validate reports what is wrong with the options.
func (o Options) Validate() error {
	var errs []error
	if _, err := pki.TrustDomain(o.Mesh); err != nil {
		errs = append(errs, fmt.Errorf("--mesh: %w", err))
	}
	if _, err := ipam.New(o.TunnelRanges); err != nil {
		errs = append(errs, fmt.Errorf("--tunnel-cidr: %w", err))
	}
	if o.RemovalHold < 0 {
		errs = append(errs, errors.New("--removal-hold: want a duration of at least 0"))
	}
	if o.CertificateTTL < time.Minute {
		errs = append(errs, errors.New("--certificate-ttl: want at least 1m"))
	}
	return errors.Join(errs...)
}

// Run runs the control plane until ctx ends.
func Run(ctx context.Context, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	authority, err := pki.OpenAuthority(PKIDir(o.StateDir), o.Mesh)
	if err != nil {
		return err
	}
	authority.OnClusterCA(func(cluster string, until time.Time, problem error) {
		if problem != nil {
			o.Log.Error("the CA of a cluster is not kept on disk as it should be", "cluster", cluster, "until", until, "err", problem)
			return
		}
		o.Log.Info("made the CA of a cluster", "cluster", cluster, "until", until)
	})
	st, err := store.Open(filepath.Join(o.StateDir, "state.db"))
	var corrupt *store.CorruptError
	if errors.As(err, &corrupt) {
		o.Log.Error("the store was set aside; registrations and the order of claims begin anew, tunnel addresses come back from the agents", "err", err)
	} else if err != nil {
		return err
	}
	defer st.Close()

	g, ctx := errgroup.WithContext(ctx)
	l, err := newLoop(ctx, o, st)
	if err != nil {
		return err
	}
	if l.fresh && len(authority.Created()) == 0 {
		l.settle()
	}
	id, err := newIdentities(authority, o)
	if err != nil {
		return err
	}
	svc := &service{loop: l, caller: id.Caller, expiry: id.expiry, cert: id.cert, gateway: id.GatewayCaller}
	id.issued = func(node mesh.NodeID, cert string) error {
		return asStatus(l.do(ctx, func(l *loop) error { l.issued(node, cert); return nil }))
	}
	gs, err := grpcServer(o, authority, id, svc)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("open the gRPC address (--listen %s): %w", o.Listen, err)
	}
	defer ln.Close()
	admin, err := listenAdmin(o, l)
	if err != nil {
		return err
	}
	o.Log.Info("control plane runs", "mesh", o.Mesh, "version", o.Version, "listen", ln.Addr(), "tunnelRanges", o.TunnelRanges)
	g.Go(func() error { l.run(ctx); return nil })
	g.Go(func() error { l.keepSnapshot(ctx, snapshotFile(o.StateDir)); return nil })
	g.Go(func() error { return admin(ctx) })
	g.Go(func() error { return serveHTTP(ctx, o, l) })
	g.Go(func() error {
		stop := context.AfterFunc(ctx, gs.Stop)
		defer stop()
		// Stopped before it began it says so, which is no error here.
		if err := gs.Serve(ln); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	updates := make(chan []source.Update)
	g.Go(func() error { return o.Source.Run(ctx, updates) })
	g.Go(func() error {
		for first := true; ; first = false {
			select {
			case batch := <-updates:
				// It fails only with the end of everything.
				_ = l.do(ctx, func(l *loop) error { l.takeUpdates(batch, first); return nil })
			case <-ctx.Done():
				return nil
			}
		}
	})
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// newLoop restores the loop from the store.
func newLoop(ctx context.Context, o Options, st *store.Store) (*loop, error) {
	snap, err := st.Load()
	if err != nil {
		return nil, err
	}
	pool, err := ipam.New(o.TunnelRanges)
	if err != nil {
		return nil, err
	}
	trust, err := pki.TrustDomain(o.Mesh)
	if err != nil {
		return nil, err
	}
	if err := checkRanges(snap, o.TunnelRanges); err != nil {
		return nil, err
	}
	l := &loop{
		log: o.Log, store: st, cache: xds.NewCache(), now: time.Now, hold: o.RemovalHold,
		calls: make(chan *call), life: ctx, nacks: map[string]int{},
		meshName: o.Mesh, ranges: o.TunnelRanges, pool: pool,
		clusters: map[string]*cluster{}, sources: map[string]string{}, waiting: map[string]*waiting{},
		registrations: map[mesh.NodeID]store.Registration{}, orders: snap.Orders,
		leases: map[mesh.NodeID]map[*lease]struct{}{}, reports: map[mesh.NodeID]*session{}, lastSeen: map[mesh.NodeID]time.Time{},
		published: published{}, started: time.Now(),
		services: o.Services, stale: map[mesh.ServiceName]struct{}{}, stalePods: map[mesh.NodeID]struct{}{},
		awaited: map[mesh.NodeID]*time.Timer{}, gatewayStates: map[gatewayID]*gatewayState{},
		catalog: view.New(ctx, view.Options{TrustDomain: trust.Name(), MCS: o.Services.MCS, Validate: o.ValidateResources, Log: o.Log}),
	}
	if l.orders == nil {
		l.orders = map[string]uint64{}
	}
	for _, c := range snap.Clusters {
		l.clusters[c.Name] = newCluster(c, l.services)
	}
	services, err := readSnapshot(snapshotFile(o.StateDir))
	if err != nil {
		o.Log.Error("the services kept on disk are left; those of a source that is away are not served until it is back", "err", err)
	}
	for name, c := range l.clusters {
		l.restoreServices(c, services.Clusters[name])
	}
	for _, n := range snap.Nodes {
		if c := l.clusters[n.ID.Cluster]; c != nil {
			node := mesh.Node{ID: n.ID, PodCIDRs: n.PodCIDRs, Addresses: n.Addresses, Region: n.Region, Zone: n.Zone}
			c.nodes[n.ID.Name], c.latest[n.ID.Name] = node, node
			l.stalePods[n.ID] = struct{}{}
		}
	}
	for _, r := range snap.Registrations {
		l.restore(r)
	}
	l.forgetRanges()
	if l.fresh = snap.Mesh.Name == ""; l.fresh {
		record := store.Mesh{Name: o.Mesh, TunnelRanges: o.TunnelRanges}
		l.pending = append(l.pending, write{put: func(tx *store.Tx) { tx.PutMesh(record) }})
	}
	return l, nil
}

// settleTime is how long agents have to register again after the store was lost:
// longer than the longest pause between two of their tries.
const settleTime = 15 * time.Second

// settle holds the first view back. The CA has been used and the store is new:
// it was lost, and a view without the nodes that have not come back yet would
// take their tunnels down. Agents keep what they have until they are told.
func (l *loop) settle() {
	l.settled = l.now().Add(settleTime)
	l.log.Warn("the store is new and the CA is not: registrations were lost; nothing is published until agents have had time to register again", "for", settleTime)
}

// checkRanges refuses a tunnel range that is new and overlaps a claim that was
// there before it: no cluster may lose its tunnels by a flag.
func checkRanges(snap store.Snapshot, ranges []netip.Prefix) error {
	var clusters []mesh.Cluster
	var nodes []mesh.Node
	for _, c := range snap.Clusters {
		clusters = append(clusters, c.Cluster)
	}
	for _, n := range snap.Nodes {
		nodes = append(nodes, mesh.Node{ID: n.ID, PodCIDRs: n.PodCIDRs, Addresses: n.Addresses})
	}
	for _, rng := range overlap.Claims(nil, nil, ranges) {
		if snap.Orders[overlap.Key(rng)] != 0 {
			continue
		}
		for _, c := range overlap.Claims(clusters, nodes, nil) {
			if c.Prefix.Overlaps(rng.Prefix) {
				return fmt.Errorf("--tunnel-cidr %v overlaps the %v, which was there first: choose another range (controlplane check --supernet proposes one)", rng.Prefix, c)
			}
		}
	}
	return nil
}

// forgetRanges ends the places of tunnel ranges that the mesh no longer has: one
// that comes back is new, and checkRanges looks at it again.
func (l *loop) forgetRanges() {
	have := map[string]bool{}
	for _, c := range overlap.Claims(nil, nil, l.ranges) {
		have[overlap.Key(c)] = true
	}
	var gone []string
	for k := range l.orders {
		if ownedBy(k, "") && !have[k] {
			gone = append(gone, k)
		}
	}
	l.forgetOrders(gone)
}

// restore takes a registration from the store. An address that the tunnel range
// no longer holds, because the range was changed, is given up: its node gets
// another when its agent registers.
func (l *loop) restore(r store.Registration) {
	r.TunnelAddrs = slices.DeleteFunc(r.TunnelAddrs, func(a netip.Addr) bool {
		err := l.pool.AllocateExact(a)
		if err != nil {
			l.log.Warn("stored tunnel address given up", "node", r.Node, "address", a, "err", err)
		}
		return err != nil
	})
	l.registrations[r.Node] = r
}

func grpcServer(o Options, authority *pki.Authority, id *identities, svc *service) (*grpc.Server, error) {
	cfg, err := pki.ServerTLS(o.Mesh, authority.Roots(), id.serverCertificate)
	if err != nil {
		return nil, err
	}
	gs := grpc.NewServer(append(xds.ServerOptions(),
		grpc.Creds(credentials.NewTLS(cfg)),
		grpc.MaxRecvMsgSize(16<<20),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: streamKeepalive, Timeout: 2 * streamKeepalive}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)...)
	peeringv1.RegisterPeeringServer(gs, peering.NewServer(id, svc, o.Log, o.Version))
	nacks := svc.loop.nacked
	server := xds.NewServer(resources(svc.loop), o.Log, svc.Identify, nacks)
	svc.loop.catalog.Attach(server)
	discovery.RegisterAggregatedDiscoveryServiceServer(gs, server)
	return gs, nil
}

// resources is all that is served: what agents receive, and what their clients
// and gateways do.
func resources(l *loop) xds.Source {
	m := xds.Mux{}
	for _, t := range []string{xds.PeerType, xds.NodeConfigType, xds.ClusterConfigType, xds.PodsType} {
		m[t] = l.cache
	}
	for _, t := range []string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType, resource.SecretType} {
		m[t] = l.catalog
	}
	return m
}

// serverCertificate is the control plane's own, issued to itself for a day at a
// time.
type serverCertificate struct {
	mu   sync.Mutex
	cert *tls.Certificate
	next time.Time
}
