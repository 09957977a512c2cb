package relay

import (
	"context"
	"maps"
	"slices"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// maxName bounds a name, in bytes, as pkg/xds does.
const maxName = 512

// session is one stream of a client, with what it subscribes to. It reads the
// stream's requests before pkg/xds does: so the cache knows what is asked for, and
// when that ends.
type session struct {
	grpc.ServerStream
	ctx    context.Context
	relay  *Relay
	client client
	asker  *asker

	mu    sync.Mutex
	ended bool
	// refused is why the stream must end, a gRPC status.
	refused error
	kind    build.Kind // of the first request
	types   map[string]*asked
}

// asked is what a session wants of one type.
type asked struct {
	entries map[string]*entry
	// unnamed: it has not named anything yet, which means everything.
	unnamed bool
}

type sessionKey struct{}

// intercept serves one stream with a session around it.
func (r *Relay) intercept(srv any, str grpc.ServerStream, _ *grpc.StreamServerInfo, serve grpc.StreamHandler) error {
	s := &session{ServerStream: str, relay: r, types: map[string]*asked{}}
	if p, ok := peer.FromContext(str.Context()); ok {
		s.client, _ = p.Addr.(client)
	}
	s.ctx = context.WithValue(str.Context(), sessionKey{}, s)
	if err := r.enter(s); err != nil {
		return err
	}
	defer r.leave(s)
	err := serve(srv, s)
	s.mu.Lock()
	defer s.mu.Unlock()
	// pkg/xds's servers do not say why nothing more came.
	if s.refused != nil {
		return s.refused
	}
	return err
}

// identify is the server's xds.Identify: views are kinds.
func identifySession(ctx context.Context) (xds.Client, context.Context, func(), error) {
	s, ok := ctx.Value(sessionKey{}).(*session)
	if !ok {
		return xds.Client{}, nil, nil, status.Error(codes.Internal, "a stream without a session")
	}
	return xds.Client{Name: s.client.String(), View: s.view}, ctx, func() {}, nil
}

func (s *session) view(_ *core.Node, typeURL string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.kind), slices.Contains(types[:], typeURL)
}

// Context implements grpc.ServerStream.
func (s *session) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *session) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.refused != nil {
		return s.refused
	}
	switch req := m.(type) {
	case *discovery.DiscoveryRequest:
		s.refused = s.whole(req)
	case *discovery.DeltaDiscoveryRequest:
		s.refused = s.delta(req)
	}
	return s.refused
}

// whole follows a request of the state-of-the-world protocol, which names all
// that is wanted. Must hold s.mu.
func (s *session) whole(req *discovery.DiscoveryRequest) error {
	names := req.GetResourceNames()
	a, err := s.begin(req.GetTypeUrl(), req.GetNode(), names, req.GetErrorDetail() != nil)
	if a == nil || err != nil {
		return err
	}
	a.unnamed = a.unnamed && len(names) == 0
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[n] = true
	}
	if a.unnamed {
		wanted[wildcard] = true
	}
	var gone []string
	for n := range a.entries {
		if !wanted[n] {
			gone = append(gone, n)
		}
	}
	// First what is new: of what it replaces nothing is lost meanwhile.
	if err := s.subscribe(a, req.GetTypeUrl(), maps.Keys(wanted)); err != nil {
		return err
	}
	s.unsubscribe(a, gone)
	return nil
}

// delta follows a request of the delta protocol. Must hold s.mu.
func (s *session) delta(req *discovery.DeltaDiscoveryRequest) error {
	names := req.GetResourceNamesSubscribe()
	first := s.types[req.GetTypeUrl()] == nil
	a, err := s.begin(req.GetTypeUrl(), req.GetNode(), names, req.GetErrorDetail() != nil)
	if a == nil || err != nil {
		return err
	}
	if first && a.unnamed && len(names) == 0 {
		names = []string{wildcard}
	}
	if err := s.subscribe(a, req.GetTypeUrl(), slices.Values(names)); err != nil {
		return err
	}
	s.unsubscribe(a, req.GetResourceNamesUnsubscribe())
	return nil
}

// begin returns what the session wants of a type, nil where that is not relayed.
// Must hold s.mu.
func (s *session) begin(typeURL string, node *core.Node, names []string, nack bool) (*asked, error) {
	if s.kind == "" {
		all := listsAll(typeURL) && len(names) == 0 || slices.Contains(names, wildcard)
		kind, err := kindOf(node, all)
		if err != nil {
			return nil, err
		}
		s.kind = kind
	}
	if !slices.Contains(types[:], typeURL) {
		return nil, nil
	}
	if nack {
		s.relay.refusals.add(setKey{s.kind, typeURL})
	}
	if i := slices.IndexFunc(names, func(n string) bool { return len(n) > maxName }); i >= 0 {
		return nil, status.Errorf(codes.InvalidArgument, "a name has more than %d bytes", maxName)
	}
	a := s.types[typeURL]
	if a == nil {
		a = &asked{entries: map[string]*entry{}, unnamed: s.kind == build.Envoy && listsAll(typeURL)}
		s.types[typeURL] = a
	}
	return a, nil
}

// subscribe must hold s.mu.
func (s *session) subscribe(a *asked, typeURL string, names func(func(string) bool)) error {
	for n := range names {
		if a.entries[n] != nil {
			continue
		}
		e, err := s.relay.cache.subscribe(s.asker, setKey{s.kind, typeURL}, n)
		if err != nil {
			return err
		}
		a.entries[e.name] = e
	}
	return nil
}

// unsubscribe must hold s.mu.
func (s *session) unsubscribe(a *asked, names []string) {
	gone := make([]*entry, 0, len(names))
	for _, n := range names {
		if e := a.entries[n]; e != nil {
			gone = append(gone, e)
			delete(a.entries, n)
		}
	}
	s.relay.cache.unsubscribe(s.asker, gone...)
}

// end takes back all that the session wants. A request that is being read
// meanwhile is not followed any more.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, a := range s.types {
		s.relay.cache.unsubscribe(s.asker, slices.Collect(maps.Values(a.entries))...)
	}
	s.types = nil
}
