package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What one stream may ask for; beyond it ends.
const (
	// maxSubscriptions bounds the names in one type.
	maxSubscriptions = 100_000
	// maxName bounds a resource's name and a type's URL, in bytes: NodeIDs have at
	// most 317, Envoy's names for Kubernetes services less.
	maxName = 512
	// maxTypes bounds the types, also those that are not served.
	maxTypes = 32
)

// Client is who is at the other end of a stream, as its caller knows it.
type Client struct {
	// Name is for logs.
	Name string
	// View returns the view that the client has of a type, or false where it
	// gets nothing of that type. Such a subscription stays unanswered; it does
	// not end the stream.
	View func(typeURL string) (string, bool)
}

// Server serves a Cache over delta ADS.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	cache    *Cache
	log      *slog.Logger
	identify Identify
	onNACK   func(typeURL string)
}

// Identify tells who a stream belongs to. The context that it returns ends, with
// a cause, when the client loses its right to the stream; release is called when
// the stream has ended. Its error, a gRPC status, refuses the stream.
type Identify func(stream context.Context) (c Client, ctx context.Context, release func(), err error)

// NewServer returns a server of cache. onNACK is called for each refusal.
func NewServer(cache *Cache, log *slog.Logger, identify Identify, onNACK func(typeURL string)) *Server {
	return &Server{cache: cache, log: log, identify: identify, onNACK: onNACK}
}

// DeltaAggregatedResources implements delta ADS.
func (s *Server) DeltaAggregatedResources(str discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	client, ctx, release, err := s.identify(str.Context())
	if err != nil {
		return err
	}
	st := &stream{server: s, client: client, watches: map[string]*watch{}, asked: map[string]struct{}{}}
	// A server of its own for each stream: that is how the identity reaches the
	// watches, which go-control-plane does not hand on.
	callbacks := server.CallbackFuncs{StreamDeltaRequestFunc: st.onRequest}
	done := make(chan error, 1)
	go func() {
		defer release()
		defer st.detach()
		done <- delta.NewServer(ctx, st, callbacks).DeltaStreamHandler(str, "")
	}()
	// A client that does not read holds the handler in Send, also after ctx has
	// ended: to return from here is what ends a stream, and with it that Send.
	select {
	case err = <-done:
	case <-ctx.Done():
	}
	switch {
	case str.Context().Err() != nil:
		return status.FromContextError(str.Context().Err()).Err()
	case ctx.Err() != nil:
		return refusal(context.Cause(ctx))
	default:
		return err
	}
}

// refusal makes a gRPC status of why a client lost its right to a stream.
func refusal(cause error) error {
	if _, ok := status.FromError(cause); ok {
		return cause
	}
	return status.Error(codes.PermissionDenied, cause.Error())
}

// stream is one client's stream: the ConfigWatcher behind its delta server.
// All of its methods run on the stream's own goroutine.
type stream struct {
	server  *Server
	client  Client
	watches map[string]*watch
	// asked holds the types that the client has asked for, served or not.
	asked map[string]struct{}
}

var _ cache.ConfigWatcher = (*stream)(nil)

// CreateWatch refuses the state-of-the-world protocol.
func (st *stream) CreateWatch(*cache.Request, cache.Subscription, chan cache.Response) (func(), error) {
	return nil, errors.New("only delta xDS is served here")
}

// CreateDeltaWatch opens the stream's watch of a type for one response.
func (st *stream) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, ch chan cache.DeltaResponse) (func(), error) {
	if n := len(sub.SubscribedResources()); n > maxSubscriptions {
		return nil, status.Errorf(codes.ResourceExhausted, "%d subscriptions to %s, at most %d are served", n, req.GetTypeUrl(), maxSubscriptions)
	}
	w := st.watches[req.GetTypeUrl()]
	if w == nil {
		view, ok := st.client.View(req.GetTypeUrl())
		if !ok {
			return nil, nil
		}
		if 2*(len(st.watches)+1) > cap(ch) {
			return nil, status.Errorf(codes.ResourceExhausted, "at most %d types are served on one stream", cap(ch)/2)
		}
		w = &watch{
			set:   st.server.cache.hold(SetKey{TypeURL: req.GetTypeUrl(), View: view}),
			names: map[string]struct{}{},
			dirty: map[string]struct{}{},
		}
		st.watches[req.GetTypeUrl()] = w
	}
	w.resubscribe(req, sub, ch)
	return w.cancel, nil
}

// onRequest sees each request before go-control-plane keeps anything of it.
func (st *stream) onRequest(_ int64, req *discovery.DeltaDiscoveryRequest) error {
	if err := st.bound(req); err != nil {
		return err
	}
	if d := req.GetErrorDetail(); d != nil {
		st.server.onNACK(req.GetTypeUrl())
		st.server.log.Warn("client refused resources", "client", st.client.Name, "type", req.GetTypeUrl(), "err", fmt.Sprintf("%.500s", d.GetMessage()))
	}
	return nil
}

// bound refuses what would let a client fill the server's memory.
func (st *stream) bound(req *discovery.DeltaDiscoveryRequest) error {
	long := func(s string) bool { return len(s) > maxName }
	switch {
	case long(req.GetTypeUrl()), slices.ContainsFunc(req.GetResourceNamesSubscribe(), long):
		return status.Errorf(codes.InvalidArgument, "a name has more than %d bytes", maxName)
	case len(req.GetInitialResourceVersions()) > maxSubscriptions:
		return status.Errorf(codes.ResourceExhausted, "%d initial versions of %s, at most %d are taken", len(req.GetInitialResourceVersions()), req.GetTypeUrl(), maxSubscriptions)
	}
	st.asked[req.GetTypeUrl()] = struct{}{}
	if len(st.asked) > maxTypes {
		return status.Errorf(codes.ResourceExhausted, "more than %d types on one stream", maxTypes)
	}
	return nil
}

func (st *stream) detach() {
	for _, w := range st.watches {
		w.detach()
		st.server.cache.letGo(w.set)
	}
}
