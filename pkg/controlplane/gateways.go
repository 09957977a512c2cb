package controlplane

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// gatewayGrace is how long a gateway's stream may be gone before it is left out,
// if another of its cluster remains.
const gatewayGrace = 2 * time.Second

// gatewayReturn is how long gateways have to come back after the control plane was
// restarted: longer than the longest pause between two of their tries.
const gatewayReturn = 12 * time.Second

// gatewayID names a gateway's process.
type gatewayID struct{ cluster, name string }

// gatewayState is what is known of a gateway's process.
type gatewayState struct {
	streams int
	// addrs are those at which it says it can be reached.
	addrs []netip.Addr
	// left is when its last stream ended; zero while it has one.
	left time.Time
}

// gateways returns the gateways that the sources declare, with those marked
// whose process has been silent for too long. An address that no process ever
// spoke for, of an Envoy or behind a load balancer, is never marked.
func (l *loop) gateways() []mesh.Gateway {
	var out []mesh.Gateway
	now := l.now()
	for _, c := range l.clusters {
		for _, g := range c.gateways() {
			spoken, live := false, false
			for id, s := range l.gatewayStates {
				if id.cluster == g.Cluster && slices.Contains(s.addrs, g.Addr) {
					spoken = true
					live = live || s.streams > 0 || now.Sub(s.left) < gatewayGrace
				}
			}
			g.Lost = spoken && !live
			out = append(out, g)
		}
	}
	slices.SortFunc(out, mesh.Gateway.Compare)
	l.forgetGateways(out)
	return out
}

// forgetGateways lets go of processes that have ended and on which nothing hangs
// any more: pods have new names each time. What hangs on one is that an address
// that is declared is silent, unless a later process speaks for it.
func (l *loop) forgetGateways(declared []mesh.Gateway) {
	for id, s := range l.gatewayStates {
		c := l.clusters[id.cluster]
		if s.streams > 0 || c != nil && !c.spoken {
			continue
		}
		needed := slices.ContainsFunc(s.addrs, func(a netip.Addr) bool {
			for other, o := range l.gatewayStates {
				if other.cluster == id.cluster && (o.streams > 0 || o.left.After(s.left)) && slices.Contains(o.addrs, a) {
					return false
				}
			}
			return slices.ContainsFunc(declared, func(g mesh.Gateway) bool { return g.Cluster == id.cluster && g.Addr == a })
		})
		if !needed {
			delete(l.gatewayStates, id)
			l.unwritten = true
		}
	}
}

// gatewayCame notes a gateway's stream and where it says that it is.
func (l *loop) gatewayCame(id gatewayID, addrs []netip.Addr) error {
	if _, ok := l.clusters[id.cluster]; !ok && !l.synced {
		return status.Errorf(codes.Unavailable, "the control plane has not read its sources yet")
	} else if !ok {
		return status.Errorf(codes.FailedPrecondition, "cluster %s is not known to the control plane: declare it first", id.cluster)
	}
	s := l.gatewayStates[id]
	if s == nil {
		s = &gatewayState{}
		l.gatewayStates[id] = s
	}
	if s.streams >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "the gateway %s/%s has %d streams open already", id.cluster, id.name, maxStreams)
	}
	if s.streams == 0 {
		l.log.Info("gateway connected", "cluster", id.cluster, "gateway", id.name, "addresses", addrs)
	}
	s.streams++
	s.left = time.Time{}
	if len(addrs) > 0 {
		s.addrs = addrs
	}
	l.unwritten = true
	l.dirty = true
	return nil
}

// gatewayLeft notes that a gateway's stream has ended.
func (l *loop) gatewayLeft(id gatewayID) {
	s := l.gatewayStates[id]
	s.streams--
	if s.streams > 0 {
		return
	}
	s.left = l.now()
	l.log.Warn("gateway disconnected; it is left out if it stays away and another remains", "cluster", id.cluster, "gateway", id.name, "after", gatewayGrace)
	time.AfterFunc(gatewayGrace, func() {
		_ = l.do(context.WithoutCancel(l.life), func(l *loop) error {
			l.dirty = true
			return nil
		})
	})
}
