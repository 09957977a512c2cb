package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/ipam"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/store"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// takeoverAfter is how long after its agent was last seen a node's name may be
// joined with another key by a token for the whole cluster.
const takeoverAfter = 10 * time.Minute

// service answers agents; it asks the loop.
type service struct {
	loop *loop
	// caller and expiry read the client certificate of a call.
	caller func(context.Context) (mesh.NodeID, error)
	expiry func(context.Context) (time.Time, error)
	// cert returns the fingerprint of a call's certificate, empty where it has
	// none; a nil cert is one that never has.
	cert func(context.Context) string
	// gateway returns the gateway that makes a call; nil: none ever does.
	gateway func(context.Context) (cluster, name string, ok bool)
}

func (s *service) certOf(ctx context.Context) string {
	if s.cert == nil {
		return ""
	}
	return s.cert(ctx)
}

var _ peering.Backend = (*service)(nil)

// asStatus makes a gRPC status of any error; one that is already stays so.
func asStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

// Known reports whether the node is in its cluster's source, and whether the
// caller's certificate, if it has one, still counts for it.
func (s *service) Known(ctx context.Context, node mesh.NodeID) error {
	cert := s.certOf(ctx)
	return asStatus(s.loop.do(ctx, func(l *loop) error {
		if err := l.known(node); err != nil {
			return err
		}
		return l.notReplaced(node, cert)
	}))
}

func (l *loop) known(node mesh.NodeID) error {
	c := l.clusters[node.Cluster]
	switch {
	case c == nil && !l.synced:
		return status.Errorf(codes.Unavailable, "the control plane has not read its sources yet")
	case c == nil:
		return status.Errorf(codes.FailedPrecondition, "cluster %s is not known to the control plane: declare it first", node.Cluster)
	}
	if _, ok := c.nodes[node.Name]; !ok {
		return status.Errorf(codes.FailedPrecondition, "node %s is not in %s", node, c.source)
	}
	return nil
}

// MayJoin refuses a cluster-wide token for a node whose name another key holds.
func (s *service) MayJoin(ctx context.Context, node mesh.NodeID, key mesh.PublicKey) error {
	return asStatus(s.loop.do(ctx, func(l *loop) error {
		r, ok := l.registrations[node]
		if !ok || r.Key == key {
			return nil
		}
		seen, ok := l.lastSeen[node]
		if !ok {
			seen = l.started
		}
		if l.reports[node] == nil && l.now().Sub(seen) > takeoverAfter {
			return nil
		}
		return status.Errorf(codes.PermissionDenied,
			"%s is held by the live key %s: to replace it use a token for this node, from: controlplane token create --cluster %s --node %s", node, r.Key, node.Cluster, node.Name)
	}))
}

// Register stores a registration and gives the node its tunnel addresses.
func (s *service) Register(ctx context.Context, r peering.Registration) (addrs []netip.Addr, refused []string, err error) {
	cert := s.certOf(ctx)
	err = s.loop.do(ctx, func(l *loop) error {
		old, existed := l.registrations[r.Node]
		if addrs, refused, err = l.register(r); err != nil {
			l.log.Warn("registration refused", "node", r.Node, "err", status.Convert(err).Message())
			return err
		}
		l.inUse(r.Node, cert)
		l.lastSeen[r.Node] = l.now()
		if existed && old.Key != r.Key {
			l.log.Warn("the node has another key", "node", r.Node, "key", r.Key, "was", old.Key)
			l.revoke(r.Node, status.Errorf(codes.Unauthenticated, "%s has registered with another key", r.Node))
		}
		return nil
	})
	return addrs, refused, asStatus(err)
}

func (l *loop) register(r peering.Registration) (addrs []netip.Addr, refused []string, err error) {
	if err := l.known(r.Node); err != nil {
		return nil, nil, err
	}
	if !l.synced {
		// Until every source was read an address may look free that is not.
		return nil, nil, status.Error(codes.Unavailable, "the control plane has not read its sources yet")
	}
	for id, other := range l.registrations {
		if id != r.Node && other.Key == r.Key {
			return nil, nil, status.Errorf(codes.AlreadyExists, "the WireGuard key %s is already that of %s: delete the key file on one of the two and start its agent again", r.Key, id)
		}
	}
	old, existed := l.registrations[r.Node]
	next := store.Registration{
		Node: r.Node, Key: r.Key, ListenPort: r.ListenPort, Device: r.Device, Version: r.Version,
		TunnelAddrs: slices.Clone(old.TunnelAddrs), Registered: old.Registered, Certificates: old.Certificates,
	}
	next.Endpoints, refused = l.admitEndpoints(r)
	fresh, err := l.allocate(&next, r.TunnelAddrs)
	giveUp := func() {
		for _, a := range fresh {
			l.pool.Release(a)
		}
	}
	if err != nil {
		giveUp()
		return nil, nil, err
	}
	if !existed || old.Key != next.Key {
		next.Registered = l.now().UTC().Truncate(time.Second)
	}
	if existed && sameRegistration(old, next) {
		if slices.ContainsFunc(l.pending, func(w write) bool { return w.undo != nil }) {
			// What it repeats may be of this turn, and is taken back with it.
			l.pending = append(l.pending, write{put: func(*store.Tx) {}, undo: func() {}})
		}
		return next.TunnelAddrs, refused, nil
	}
	l.registrations[r.Node] = next
	l.dirty = true
	l.pending = append(l.pending, write{
		put: func(tx *store.Tx) { tx.PutRegistration(next) },
		undo: func() {
			if now, ok := l.registrations[r.Node]; !ok || !sameRegistration(now, next) {
				return // the node went in the same breath, and gave all back
			}
			giveUp()
			if existed {
				l.registrations[r.Node] = old
			} else {
				delete(l.registrations, r.Node)
			}
		},
	})
	l.log.Info("agent registered", "node", r.Node, "key", r.Key, "endpoints", next.Endpoints, "tunnelAddresses", next.TunnelAddrs, "device", r.Device, "version", r.Version)
	for _, why := range refused {
		l.log.Warn("endpoint candidate refused", "node", r.Node, "detail", why)
	}
	return next.TunnelAddrs, refused, nil
}

func sameRegistration(a, b store.Registration) bool {
	return a.Key == b.Key && a.ListenPort == b.ListenPort && a.Device == b.Device && a.Version == b.Version &&
		slices.Equal(a.Endpoints, b.Endpoints) && slices.Equal(a.TunnelAddrs, b.TunnelAddrs)
}

// allocate gives the registration one address of each family of the tunnel
// range: those that it has, those that its agent held before where they are
// free, or new ones. It returns the ones that it took.
func (l *loop) allocate(r *store.Registration, wishes []netip.Addr) (fresh []netip.Addr, err error) {
	for _, rng := range l.ranges {
		f := mesh.FamilyOf(rng.Addr())
		if slices.ContainsFunc(r.TunnelAddrs, func(a netip.Addr) bool { return mesh.FamilyOf(a) == f }) {
			continue
		}
		var got netip.Addr
		for _, w := range wishes {
			if mesh.FamilyOf(w) == f && l.pool.AllocateExact(w) == nil {
				got = w
				break
			}
		}
		if !got.IsValid() {
			if got, err = l.pool.Allocate(f); err != nil {
				code := codes.Internal
				if errors.Is(err, ipam.ErrExhausted) {
					code = codes.ResourceExhausted
				}
				return fresh, status.Errorf(code, "no tunnel address for %s: %v", r.Node, err)
			}
		}
		fresh = append(fresh, got)
		r.TunnelAddrs = append(r.TunnelAddrs, got)
	}
	return fresh, nil
}

// admitEndpoints keeps the candidates that another node could use, and says of
// the others why not.
func (l *loop) admitEndpoints(r peering.Registration) (ok []netip.AddrPort, refused []string) {
	known := l.clusters[r.Node.Cluster].nodes[r.Node.Name].Addresses
	for _, e := range r.Endpoints {
		if err := mesh.ValidateAddr(e.Addr()); err != nil {
			refused = append(refused, fmt.Sprintf("%v: %v", e, err))
			continue
		}
		if e.Port() == 0 {
			refused = append(refused, fmt.Sprintf("%v: port 0", e))
			continue
		}
		if claim, admitted := l.covered.admits(e.Addr(), known); !admitted {
			refused = append(refused, fmt.Sprintf("%v lies in the %v", e, claim))
			continue
		}
		if !slices.Contains(ok, e) {
			ok = append(ok, e)
		}
	}
	return ok, refused
}

// Identify tells the xDS server who a stream belongs to and for how long.
func (s *service) Identify(ctx context.Context) (xds.Client, context.Context, func(), error) {
	if s.gateway != nil {
		if cluster, name, ok := s.gateway(ctx); ok {
			return s.identifyGateway(ctx, gatewayID{cluster, name})
		}
	}
	node, err := s.caller(ctx)
	if err != nil {
		return xds.Client{}, nil, nil, err
	}
	expiry, err := s.expiry(ctx)
	if err != nil {
		return xds.Client{}, nil, nil, err
	}
	var leased context.Context
	var ls *lease
	cert := s.certOf(ctx)
	err = s.loop.do(ctx, func(l *loop) error {
		if err := l.known(node); err != nil {
			return err
		}
		if err := l.notReplaced(node, cert); err != nil {
			return err
		}
		if leased, ls, err = l.grant(ctx, node, expiry); err != nil {
			return err
		}
		l.awaitReport(node)
		return nil
	})
	if err != nil {
		return xds.Client{}, nil, nil, asStatus(err)
	}
	release := func() {
		_ = s.loop.do(s.loop.life, func(l *loop) error { l.giveBack(node, ls); return nil })
	}
	client := xds.Client{Name: node.String(), View: func(said *core.Node, typeURL string) (string, bool) { return viewOfClient(node, said, typeURL) }}
	return client, leased, release, nil
}
