package controlplane

import (
	"context"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
)

// maxStreams bounds the streams of one node: its agent has two, and those that
// it lost without their end being seen yet.
const maxStreams = 64

// lease is a stream's right to go on: it ends when its node does, or with its
// certificate.
type lease struct {
	end context.CancelCauseFunc
}

// grant gives a stream of node a lease until expiry and returns its context and
// how to give it back.
func (l *loop) grant(ctx context.Context, node mesh.NodeID, expiry time.Time) (context.Context, *lease, error) {
	if len(l.leases[node]) >= maxStreams {
		return nil, nil, status.Errorf(codes.ResourceExhausted, "%s has %d streams open already", node, maxStreams)
	}
	ctx, end := context.WithCancelCause(ctx)
	ctx, stop := context.WithDeadlineCause(ctx, expiry, status.Error(codes.Unauthenticated, "the certificate has expired"))
	ls := &lease{end: func(cause error) { end(cause); stop() }}
	if l.leases[node] == nil {
		l.leases[node] = map[*lease]struct{}{}
	}
	l.leases[node][ls] = struct{}{}
	return ctx, ls, nil
}

// giveBack ends a lease with its stream.
func (l *loop) giveBack(node mesh.NodeID, ls *lease) {
	ls.end(nil)
	delete(l.leases[node], ls)
	if len(l.leases[node]) == 0 {
		delete(l.leases, node)
	}
}

// revoke ends all streams of a node.
func (l *loop) revoke(node mesh.NodeID, cause error) {
	for ls := range l.leases[node] {
		ls.end(cause)
	}
	if l.reports[node] != nil {
		delete(l.reports, node)
		l.catalog.SetReport(node, nil)
	}
}

// session is one report stream.
type session struct {
	loop  *loop
	node  mesh.NodeID
	lease *lease
	// tunnels is never changed once it is here: status hands it on.
	tunnels map[mesh.NodeID]mesh.TunnelStatus
	counts  [mesh.Down + 1]int // of tunnels, by state
}

var _ peering.Session = (*session)(nil)

// Attach begins a report stream. A node that connects anew before its old stream
// was seen to end replaces it.
func (s *service) Attach(ctx context.Context, node mesh.NodeID) (peering.Session, context.Context, error) {
	var out *session
	var leased context.Context
	err := s.loop.do(ctx, func(l *loop) error {
		if _, ok := l.registrations[node]; !ok {
			return status.Errorf(codes.FailedPrecondition, "%s is not registered", node)
		}
		expiry, err := s.expiry(ctx)
		if err != nil {
			return err
		}
		out = &session{loop: l, node: node, tunnels: map[mesh.NodeID]mesh.TunnelStatus{}}
		if leased, out.lease, err = l.grant(ctx, node, expiry); err != nil {
			return err
		}
		if old := l.reports[node]; old != nil {
			// Until the new stream's full report is in, what the old one said holds.
			out.tunnels, out.counts = old.tunnels, old.counts
			old.lease.end(status.Errorf(codes.Aborted, "%s has begun a newer report stream", node))
		} else {
			l.log.Info("agent connected", "node", node)
		}
		l.reports[node] = out
		return nil
	})
	if err != nil {
		return nil, nil, asStatus(err)
	}
	return out, leased, nil
}

// Report takes one message. What it says of nodes that are not there is left
// out: they may have gone while it was on its way, and nobody can fill the
// memory with names.
func (s *session) Report(ctx context.Context, full bool, tunnels map[mesh.NodeID]*mesh.TunnelStatus) error {
	return asStatus(s.loop.do(ctx, func(l *loop) error {
		next := make(map[mesh.NodeID]mesh.TunnelStatus, len(tunnels))
		if !full {
			maps.Copy(next, s.tunnels)
		}
		for to, t := range tunnels {
			if t == nil {
				delete(next, to)
			} else if l.known(to) == nil {
				next[to] = *t
			}
		}
		s.tunnels, s.counts = next, [mesh.Down + 1]int{}
		for _, t := range next {
			s.counts[t.State]++
		}
		if l.reports[s.node] == s {
			l.reported(s.node)
			l.catalog.SetReport(s.node, next)
		}
		return nil
	}))
}

// Close ends the session.
func (s *session) Close() {
	// The loop may have ended before the stream: then nobody is left to tell.
	_ = s.loop.do(s.loop.life, func(l *loop) error {
		l.giveBack(s.node, s.lease)
		if l.reports[s.node] == s {
			delete(l.reports, s.node)
			l.catalog.SetReport(s.node, nil)
			l.lastSeen[s.node] = l.now()
			l.log.Info("agent disconnected", "node", s.node)
		}
		return nil
	})
}
