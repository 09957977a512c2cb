package controlplane

import (
	"context"
	"net/netip"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

// KnownGateway reports whether the gateway's cluster is one of the mesh.
func (s *service) KnownGateway(ctx context.Context, cluster, _ string) error {
	return asStatus(s.loop.do(ctx, func(l *loop) error {
		switch c := l.clusters[cluster]; {
		case c == nil && !l.synced:
			return status.Errorf(codes.Unavailable, "the control plane has not read its sources yet")
		case c == nil:
			return status.Errorf(codes.FailedPrecondition, "cluster %s is not known to the control plane: declare it first", cluster)
		}
		return nil
	}))
}

// Workload returns the service account of a pod that runs on the node.
func (s *service) Workload(ctx context.Context, node mesh.NodeID, namespace, pod, uid string) (account string, err error) {
	err = s.loop.do(ctx, func(l *loop) error {
		if err := l.known(node); err != nil {
			return err
		}
		c := l.clusters[node.Cluster]
		p, ok := c.index.Pod(namespace, pod)
		switch {
		case !ok && !c.spoken:
			return status.Errorf(codes.Unavailable, "the control plane has not read the source of cluster %s yet", node.Cluster)
		case !ok:
			return status.Errorf(codes.NotFound, "there is no pod %s/%s in the source of cluster %s", namespace, pod, node.Cluster)
		case p.Node != node.Name:
			return status.Errorf(codes.PermissionDenied, "pod %s/%s runs on node %s, not on %s", namespace, pod, p.Node, node.Name)
		case p.UID != uid:
			return status.Errorf(codes.FailedPrecondition, "pod %s/%s has the UID %q, not %q: it is another pod of the name", namespace, pod, p.UID, uid)
		}
		account = p.ServiceAccount
		return nil
	})
	return account, asStatus(err)
}

// Paths tells how a node reaches a service or a pod.
func (s *service) Paths(_ context.Context, node mesh.NodeID, target string) ([]peering.PathAnswer, error) {
	answers, err := paths(s.loop.catalog, node, target)
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return answers, nil
}

// paths explains how a node reaches a service or a pod.
func paths(c *view.Catalog, from mesh.NodeID, target string) ([]peering.PathAnswer, error) {
	found, err := c.Explain(from, target)
	if err != nil {
		return nil, err
	}
	out := make([]peering.PathAnswer, 0, len(found))
	for _, e := range found {
		a := peering.PathAnswer{
			Port: e.Port, Address: e.Addr, Cluster: e.Cluster,
			Path: e.Path.Kind, Reason: e.Path.Reason, Detail: detail(e), Gateways: e.Gateways, Ready: !e.Terminating,
		}
		if e.Service != (mesh.ServiceName{}) {
			a.Service = e.Service.String()
		}
		if e.Node.Name != "" {
			a.Node = e.Node.String()
		}
		out = append(out, a)
	}
	return out, nil
}

// detail says what the reason leaves open.
func detail(e view.Explanation) string {
	var parts []string
	if e.Path.Wanted != e.Path.Reason {
		parts = append(parts, "not direct because of "+string(e.Path.Wanted))
	}
	if d := e.Path.Detail(); d != "" {
		parts = append(parts, d)
	}
	if e.Terminating {
		parts = append(parts, "the pod is terminating: it is used only where no other is ready")
	}
	return strings.Join(parts, "; ")
}

// kindKey is what an agent says in its node's metadata of whom it asks for.
const kindKey = "flatmesh.io/kind"

// addressKey is the header in which a gateway says where it can be reached.
const addressKey = "flatmesh-gateway-address"

// viewOfClient returns which view the clients behind an agent, or the agent
// itself, have of a type.
func viewOfClient(id mesh.NodeID, said *core.Node, typeURL string) (string, bool) {
	switch typeURL {
	case xds.PeerType, xds.ClusterConfigType:
		return id.Cluster, true
	case xds.NodeConfigType, xds.PodsType:
		return id.String(), true
	case resource.EndpointType, resource.ClusterType, resource.ListenerType, resource.RouteType, resource.SecretType:
		kind := build.GRPC
		if said.GetMetadata().GetFields()[kindKey].GetStringValue() == string(build.Envoy) {
			kind = build.Envoy
		}
		return view.Of(kind, id), true
	default:
		return "", false
	}
}

// viewOfGateway returns which view a cluster's gateways have of a type.
func viewOfGateway(cluster, typeURL string) (string, bool) {
	switch typeURL {
	case resource.EndpointType, resource.ClusterType, resource.ListenerType:
		return view.Of(build.Gateway, mesh.NodeID{Cluster: cluster}), true
	default:
		return "", false
	}
}

// identifyGateway lets a gateway's stream in, as long as its certificate lasts.
func (s *service) identifyGateway(ctx context.Context, id gatewayID) (xds.Client, context.Context, func(), error) {
	expiry, err := s.expiry(ctx)
	if err != nil {
		return xds.Client{}, nil, nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	var addrs []netip.Addr
	for _, text := range md.Get(addressKey) {
		a, err := netip.ParseAddr(text)
		if err != nil || mesh.ValidateAddr(a) != nil || len(addrs) == maxGatewayAddrs {
			return xds.Client{}, nil, nil, status.Errorf(codes.InvalidArgument, "the gateway's address %.100q is not one that clients could reach", text)
		}
		addrs = append(addrs, a)
	}
	if err := asStatus(s.loop.do(ctx, func(l *loop) error { return l.gatewayCame(id, addrs) })); err != nil {
		return xds.Client{}, nil, nil, err
	}
	leased, stop := context.WithDeadlineCause(ctx, expiry, status.Error(codes.Unauthenticated, "the certificate has expired"))
	release := func() {
		stop()
		_ = s.loop.do(s.loop.life, func(l *loop) error { l.gatewayLeft(id); return nil })
	}
	client := xds.Client{
		Name: "gateway " + id.cluster + "/" + id.name,
		View: func(_ *core.Node, typeURL string) (string, bool) { return viewOfGateway(id.cluster, typeURL) },
	}
	return client, leased, release, nil
}

// maxGatewayAddrs bounds the addresses that one gateway may have.
const maxGatewayAddrs = 16

// streamKeepalive is how often an idle connection is asked whether the process at
// its other end still lives: a gateway that froze must not be served for long, and
// its kernel would answer for it.
const streamKeepalive = time.Second
