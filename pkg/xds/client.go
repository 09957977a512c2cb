package xds

import (
	"context"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// Update is one response: what changed in one type.
type Update struct {
	TypeURL   string
	Resources []*discovery.Resource
	Removed   []string
}

// Subscription is what a client wants of one type.
type Subscription struct {
	TypeURL string
	// Names to subscribe to; "*" for all that there are.
	Names []string
	// Versions maps the names that the client has, from an earlier stream or
	// from disk, to their versions: the server sends only what differs.
	Versions map[string]string
}

// Subscribe runs one delta ADS stream until ctx ends or it fails. apply is
// called for each response, in order; the first call for a type makes the
// client complete in that type, even if it changes nothing. Where apply returns
// an error the response is refused (NACK) with its text.
func Subscribe(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node, subs []Subscription, apply func(Update) error) error {
	c := NewDeltaClient(apply)
	for _, s := range subs {
		c.Add(s.TypeURL, s.Names...)
		c.Resume(s.TypeURL, s.Versions)
	}
	return c.Run(ctx, conn, node)
}
