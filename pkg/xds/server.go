package xds

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Client is who is at the other end of a stream, as its caller knows it.
type Client struct {
	// Name is for logs.
	Name string
	// View returns the view that the client has of a type, or false where it gets
	// nothing of that type: such a subscription stays unanswered and does not end
	// the stream. The node is what the client says of itself in the stream's first
	// request, never nil and not to be trusted. It is asked once for each type.
	View func(node *core.Node, typeURL string) (view string, ok bool)
	// MaxNames bounds how many names of one type the client may subscribe to;
	// beyond it the stream ends. 0 is 100,000.
	MaxNames int
}

// Identify tells who a stream belongs to. The context that it returns ends, with
// a cause, when the client loses its right to the stream; release is called when
// the stream has ended. Its error, a gRPC status, refuses the stream.
type Identify func(stream context.Context) (c Client, ctx context.Context, release func(), err error)

// Server serves a [Source] over ADS, delta and state of the world. It is safe
// for concurrent use.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	source   Source
	index    *index
	log      *slog.Logger
	identify Identify
	onNACK   func(typeURL string)
	rounds   atomic.Uint64
}

// NewServer returns a server of source. A [Cache], alone or in a [Mux], tells it
// by itself what changes; for other sources somebody calls Changed. onNACK is
// called for each refusal, with the type that the client names.
func NewServer(source Source, log *slog.Logger, identify Identify, onNACK func(typeURL string)) *Server {
	s := &Server{source: source, index: newIndex(), log: log, identify: identify, onNACK: onNACK}
	if t, ok := source.(teller); ok {
		t.Tell(s.ChangedIn)
	}
	return s
}

// DeltaAggregatedResources implements ADS in the delta protocol.
func (s *Server) DeltaAggregatedResources(str discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(str, func(ctx context.Context, st *stream) error {
		callbacks := server.CallbackFuncs{StreamDeltaRequestFunc: st.onDeltaRequest, StreamDeltaResponseFunc: st.onDeltaResponse}
		return delta.NewServer(ctx, st, callbacks, delta.DeactivateLegacyWildcard()).DeltaStreamHandler(str, "")
	})
}

// StreamAggregatedResources implements ADS in the state-of-the-world protocol.
func (s *Server) StreamAggregatedResources(str discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(str, func(ctx context.Context, st *stream) error {
		callbacks := server.CallbackFuncs{StreamRequestFunc: st.onRequest, StreamResponseFunc: st.onResponse}
		return sotw.NewServer(ctx, st, callbacks, sotw.DeactivateLegacyWildcard(), sotw.WithOrderedADS()).StreamHandler(str, "")
	})
}

// serve runs one stream with a go-control-plane server of its own: that is how
// the identity reaches the watches, which go-control-plane does not hand on.
func (s *Server) serve(str grpc.ServerStream, run func(context.Context, *stream) error) error {
	client, ctx, release, err := s.identify(str.Context())
	if err != nil {
		return err
	}
	st := newStream(s, client)
	done := make(chan error, 1)
	go func() {
		defer release()
		defer st.detach()
		done <- run(ctx, st)
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

// Changed tells the watches of these names in every view, wildcard watches too,
// that the source may answer otherwise now; without names, every watch of the
// type. What they are sent is looked up then; a client whose last answer is not
// acknowledged yet is sent what differs once it is. It returns when all idle
// clients' answers are queued, and never waits for a client.
func (s *Server) Changed(typeURL string, names ...string) {
	r := round{id: s.rounds.Add(1)}
	if len(names) == 0 {
		r.mark(s.index.watches(nil, topic{everyone, typeURL, ""}))
	} else {
		var list []*watch
		for _, n := range names {
			list = s.index.watches(list[:0], topic{byName, typeURL, n})
			r.mark(list, n)
		}
		r.mark(s.index.watches(list[:0], topic{wildcards, typeURL, ""}), names...)
	}
	r.flush()
}

// ChangedIn is Changed in one view; without names, for all that it holds.
func (s *Server) ChangedIn(typeURL, view string, names ...string) {
	ofView := s.index.watches(nil, topic{byView, typeURL, view})
	if len(ofView) == 0 {
		return
	}
	r := round{id: s.rounds.Add(1)}
	if len(names) == 0 {
		r.mark(ofView)
	} else {
		var list []*watch
		for _, n := range names {
			list = s.index.among(list[:0], ofView, typeURL, view, n)
			r.mark(list, n)
		}
		r.mark(s.index.watches(list[:0], topic{wildcardsOf, typeURL, view}), names...)
	}
	r.flush()
}

// round is one call of Changed: it marks first and flushes then, each watch once.
type round struct {
	id    uint64
	dirty []*watch
}

func (r *round) mark(list []*watch, names ...string) {
	for _, w := range list {
		if w.mark(r.id, names...) {
			r.dirty = append(r.dirty, w)
		}
	}
}

func (r *round) flush() {
	for _, w := range r.dirty {
		w.flush()
	}
}

// Settled returns nil once every watch of these names, wildcard watches too, has
// been sent what was current when Settled was called, or later, and has
// acknowledged or refused it, or is gone; without names, every watch of the
// type. Names that the source does not know count as sent. Where ctx ends first
// its error is returned, with who is awaited.
func (s *Server) Settled(ctx context.Context, typeURL string, names ...string) error {
	wanted := map[*watch][]string{}
	if len(names) == 0 {
		for _, w := range s.index.watches(nil, topic{everyone, typeURL, ""}) {
			wanted[w] = nil
		}
	}
	for _, n := range names {
		for _, w := range s.index.watches(nil, topic{byName, typeURL, n}) {
			wanted[w] = append(wanted[w], n)
		}
	}
	if len(names) > 0 {
		for _, w := range s.index.watches(nil, topic{wildcards, typeURL, ""}) {
			wanted[w] = names
		}
	}
	for w, names := range wanted {
		for {
			progress, ok := w.settled(names)
			if ok {
				break
			}
			select {
			case <-progress:
			case <-ctx.Done():
				return fmt.Errorf("wait until %s has acknowledged %s: %w", w.client, typeURL, ctx.Err())
			}
		}
	}
	return nil
}
