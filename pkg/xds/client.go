package xds

import (
	"context"
	"fmt"
	"maps"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Subscription is what a client wants of one type.
type Subscription struct {
	TypeURL string
	// Names to subscribe to; "*" for all that there are.
	Names []string
	// Versions maps the names that the client has, from an earlier stream or
	// from disk, to their versions: the server sends only what differs.
	Versions map[string]string
}

// Update is one response: what changed in one type.
type Update struct {
	TypeURL   string
	Resources []*discovery.Resource
	Removed   []string
}

// Subscribe runs one delta ADS stream until ctx ends or it fails. apply is
// called for each response, in order; the first call for a type makes the
// client complete in that type, even if it changes nothing. Where apply returns
// an error the response is refused (NACK) with its text.
func Subscribe(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node, subs []Subscription, apply func(Update) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	str, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("open the xDS stream: %w", err)
	}
	for _, s := range subs {
		req := &discovery.DeltaDiscoveryRequest{
			Node: node, TypeUrl: s.TypeURL,
			ResourceNamesSubscribe: s.Names, InitialResourceVersions: maps.Clone(s.Versions),
		}
		if err := str.Send(req); err != nil {
			break // Recv has the cause
		}
	}
	for {
		resp, err := str.Recv()
		if err != nil {
			return fmt.Errorf("xDS stream: %w", err)
		}
		ack := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if err := apply(Update{TypeURL: resp.GetTypeUrl(), Resources: resp.GetResources(), Removed: resp.GetRemovedResources()}); err != nil {
			ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		}
		if err := str.Send(ack); err != nil {
			continue // Recv has the cause
		}
	}
}
