package relay

import (
	"context"
	"maps"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// subscribed returns the names of a set that some stream subscribes to.
func (c *cache) subscribed(k setKey) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	users := map[string]bool{}
	for n, e := range c.sets[k].entries {
		if e.users > 0 {
			users[n] = true
		}
	}
	return slices.Sorted(maps.Keys(users))
}

func (n *node) follows(what string, k setKey, want ...string) {
	n.t.Helper()
	slices.Sort(want)
	eventually(n.t, what, func() bool { return slices.Equal(n.relay.cache.subscribed(k), want) })
}

// What clients subscribe to is followed in both protocols, request by request, and
// let go with the stream.
func TestSubscriptionsAreFollowed(t *testing.T) {
	n := newNode(t)
	n.start(nil)
	conn := n.connect()
	d := n.openDelta(conn, "grpc-test")
	d.subscribe(grpcEDS.typeURL, "a", "b")
	n.follows("subscribed", grpcEDS, "a", "b")
	d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: grpcEDS.typeURL, ResourceNamesSubscribe: []string{"c", "d"}, ResourceNamesUnsubscribe: []string{"a", "d", "never"}})
	n.follows("changed", grpcEDS, "b", "c")
	d.subscribe(grpcLDS.typeURL) // to gRPC that means nothing
	d.subscribe(grpcCDS.typeURL, "x")
	n.follows("another type", grpcCDS, "x")
	n.follows("no wildcard", grpcLDS)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(typeURL string, names ...string) {
		t.Helper()
		if err := w.Send(&discovery.DiscoveryRequest{Node: &core.Node{UserAgentName: "gRPC Go"}, TypeUrl: typeURL, ResourceNames: names}); err != nil {
			t.Fatal(err)
		}
	}
	send(grpcEDS.typeURL, "c", "e")
	n.follows("a second stream", grpcEDS, "b", "c", "e")
	send(grpcEDS.typeURL, "e", "f")
	n.follows("replaced", grpcEDS, "b", "c", "e", "f")
	send(grpcEDS.typeURL)
	n.follows("to name nothing is to want nothing", grpcEDS, "b", "c")
	send("type.googleapis.com/of.no.Interest", "y")
	send(grpcLDS.typeURL, "echo.demo:80")
	n.follows("a listener", grpcLDS, "echo.demo:80")
	cancel()
	n.follows("a stream has ended", grpcLDS)
	n.follows("the other has not", grpcEDS, "b", "c")
	d.cancel()
	n.follows("both have ended", grpcEDS)
}

// An Envoy that names nothing of its listeners and clusters means all of them, until
// it names one; what a client calls itself or asks for tells that it is an Envoy.
func TestLegacyWildcard(t *testing.T) {
	n := newNode(t)
	n.start(nil)
	conn := n.connect()
	envoyLDS := setKey{build.Envoy, resource.ListenerType}
	d := n.openDelta(conn, "envoy")
	d.subscribe(envoyEDS.typeURL, "a")
	d.subscribe(envoyLDS.typeURL)
	n.follows("delta", envoyLDS, wildcard)
	d.subscribe(envoyLDS.typeURL, "b")
	n.follows("delta keeps it", envoyLDS, wildcard, "b")
	d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoyLDS.typeURL, ResourceNamesUnsubscribe: []string{wildcard}})
	n.follows("until it is unsubscribed", envoyLDS, "b")
	d.cancel()
	n.follows("ended", envoyLDS)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		send, want []string
	}{{nil, []string{wildcard}}, {nil, []string{wildcard}}, {[]string{"a"}, []string{"a"}}, {nil, nil}} {
		if err := w.Send(&discovery.DiscoveryRequest{TypeUrl: envoyCDS.typeURL, ResourceNames: step.send}); err != nil {
			t.Fatal(err)
		}
		n.follows("state of the world", envoyCDS, step.want...)
	}
	if got := n.relay.Status().Kinds[1]; got.Kind != build.Envoy || got.Clients != 1 {
		t.Errorf("status %+v", got)
	}
}

// A client that claims to be what is not served here is told.
func TestUnknownKind(t *testing.T) {
	n := newNode(t)
	n.start(nil)
	d := n.openDelta(n.connect(), "")
	d.send(&discovery.DeltaDiscoveryRequest{Node: describe(n.opts, build.Gateway), TypeUrl: envoyCDS.typeURL})
	if _, err := d.delta.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
}
