package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/xds/relay"
)

// Paths is what `agent path` shows. Its JSON fields are stable.
type Paths struct {
	// Note says where the answer comes from if not from the control plane.
	Note  string               `json:"note,omitempty"`
	Paths []peering.PathAnswer `json:"paths"`
}

// paths tells how this node reaches a service or a pod: what the control plane
// says, and on top of it what this node's own probes say.
func (l *loop) paths(ctx context.Context, target string) (Paths, error) {
	answers, err := l.conversation.paths(ctx, target)
	switch {
	case err == nil:
		return Paths{Paths: l.overlay(answers)}, nil
	case !errors.Is(err, errAway) && status.Code(errors.Unwrap(err)) != codes.Unavailable:
		return Paths{}, err
	}
	found, cerr := l.relay.Explain(target)
	if cerr != nil {
		return Paths{}, cerr
	}
	if len(found) == 0 {
		return Paths{}, fmt.Errorf("the control plane is away, and no client of this node has asked for %s before", target)
	}
	p := Paths{Note: "the control plane is away: this is what this node's clients are served from its cache"}
	for _, e := range found {
		p.Paths = append(p.Paths, cached(e)...)
	}
	p.Paths = l.overlay(p.Paths)
	return p, nil
}

// cached turns what the relay has of a service into answers: pods that only a
// gateway reaches are not known one by one.
func cached(e relay.Explanation) []peering.PathAnswer {
	gateways := map[string]relay.GatewayUse{}
	for _, g := range e.Gateways {
		gateways[g.Cluster] = g
	}
	var out []peering.PathAnswer
	for _, d := range e.Endpoints {
		out = append(out, peering.PathAnswer{
			Service: e.Service.String(), Port: e.Port, Address: d.Address, Node: d.Node.String(), Cluster: d.Node.Cluster,
			Path: mesh.Direct, Reason: d.Reason, Gateways: gateways[d.Node.Cluster].Serving, Ready: true,
		})
	}
	for _, g := range e.Gateways {
		demoted := 0
		for _, d := range e.Endpoints {
			if d.Demoted && d.Node.Cluster == g.Cluster {
				demoted++
			}
		}
		if g.Pods <= demoted {
			continue
		}
		a := peering.PathAnswer{
			Service: e.Service.String(), Port: e.Port, Cluster: g.Cluster, Path: mesh.ViaGateway, Gateways: g.Serving, Ready: true,
			Detail: fmt.Sprintf("%d pods of the cluster; which ones, its gateway knows", g.Pods-demoted),
		}
		if len(g.Serving) == 0 {
			a.Path, a.Reason = mesh.None, g.Reason
		}
		out = append(out, a)
	}
	return out
}

// overlay corrects answers by what this node's own probes say: what they call
// down is served through the gateway at once.
func (l *loop) overlay(answers []peering.PathAnswer) []peering.PathAnswer {
	down := map[string]mesh.Reason{}
	for _, r := range l.prober.Snapshot() {
		if r.Status.State == mesh.Down {
			down[r.Node.String()] = r.Status.Reason
		}
	}
	out := make([]peering.PathAnswer, 0, len(answers))
	for _, a := range answers {
		reason, isDown := down[a.Node]
		if isDown && a.Path == mesh.Direct && a.Reason == mesh.ReasonTunnel {
			a.Path, a.Reason, a.Detail = mesh.ViaGateway, reason, "by this node's own probes"
			if len(a.Gateways) == 0 {
				a.Path, a.Detail = mesh.None, "by this node's own probes, and no gateway can stand in"
			}
		}
		if a.Path == mesh.Direct {
			a.Gateways = nil
		}
		out = append(out, a)
	}
	return out
}
