package xds

import (
	"context"
	"fmt"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// What one stream may ask for; beyond it ends.
const (
	// maxNames bounds the names in one type where the client has no bound of its
	// own.
	maxNames = 100_000
	// maxName bounds a resource's name, a version and a type's URL, in bytes:
	// NodeIDs have at most 317, Envoy's names for Kubernetes services less.
	maxName = 512
	// maxTypes bounds the types, also those that are not served, and maxServed
	// those that are: there is no room for answers of more in go-control-plane's
	// queue of a stream (see newWatch).
	maxTypes  = 32
	maxServed = int(types.UnknownType)
	// maxNode bounds the description of the client's node, in bytes. Envoy lists
	// its extensions in it, some 40 KB.
	maxNode = 256 << 10
)

// stream is one client's stream: the ConfigWatcher behind its go-control-plane
// server, and that server's callbacks. All of its methods run on the stream's
// own goroutine, but detach, which runs after it.
type stream struct {
	server   *Server
	client   Client
	maxNames int
	node     *core.Node // of the first request
	watches  map[string]*watch
	// asked holds the types that the client has asked for, served or not; true for
	// those where it has not named anything yet, which once meant everything.
	asked map[string]bool
}

var _ cache.ConfigWatcher = (*stream)(nil)

func newStream(s *Server, c Client) *stream {
	st := &stream{server: s, client: c, maxNames: c.MaxNames, watches: map[string]*watch{}, asked: map[string]bool{}}
	if st.maxNames <= 0 {
		st.maxNames = maxNames
	}
	return st
}

// CreateWatch opens the stream's watch of a type for one response of the
// state-of-the-world protocol.
func (st *stream) CreateWatch(req *cache.Request, sub cache.Subscription, ch chan cache.Response) (func(), error) {
	w, first, err := st.watch(req.GetTypeUrl(), sub)
	if w == nil || err != nil {
		return nil, err
	}
	if first {
		w.compose = w.composeChanged
		if full(w.typeURL) {
			w.compose = w.composeFull
		}
	}
	w.openSotW(first, req, sub, ch)
	return w.close, nil
}

// CreateDeltaWatch opens the stream's watch of a type for one response of the
// delta protocol.
func (st *stream) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, ch chan cache.DeltaResponse) (func(), error) {
	w, first, err := st.watch(req.GetTypeUrl(), sub)
	if w == nil || err != nil {
		return nil, err
	}
	if first {
		w.compose = w.composeDelta
	}
	w.openDelta(first, req, sub, ch)
	return w.close, nil
}

// watch returns the stream's watch of a type, nil where that is not served, and
// whether it was made just now.
func (st *stream) watch(typeURL string, sub cache.Subscription) (w *watch, first bool, err error) {
	if n := len(sub.SubscribedResources()); n > st.maxNames {
		return nil, false, status.Errorf(codes.ResourceExhausted, "%d subscriptions to %s, at most %d are served", n, typeURL, st.maxNames)
	}
	if w = st.watches[typeURL]; w != nil {
		return w, false, nil
	}
	view, ok := st.client.View(st.node, typeURL)
	if !ok {
		return nil, false, nil
	}
	if len(st.watches) == maxServed {
		return nil, false, status.Errorf(codes.ResourceExhausted, "at most %d types are served on one stream", maxServed)
	}
	w = st.newWatch(typeURL, view)
	st.watches[typeURL] = w
	return w, true, nil
}

// newWatch makes a watch, whose sends do not block: there is one response to
// each request, and before each request go-control-plane's delta server empties
// its queue, which has room for two of each type, so that there is never a third
// of a type in it; its state-of-the-world server has room for one, and empties
// the queue between closing a watch and opening it again. Both have room for
// maxServed types.
func (st *stream) newWatch(typeURL, view string) *watch {
	w := &watch{
		source: st.server.source, index: st.server.index, id: st.server.index.ids.Add(1),
		client: st.client.Name, typeURL: typeURL, view: view,
	}
	w.follow()
	return w
}

// onDeltaRequest sees each delta request before go-control-plane keeps anything
// of it.
func (st *stream) onDeltaRequest(_ int64, req *discovery.DeltaDiscoveryRequest) error {
	subscribe, versions := req.GetResourceNamesSubscribe(), req.GetInitialResourceVersions()
	if err := st.admit(req.GetTypeUrl(), req.GetNode(), subscribe, len(versions)); err != nil {
		return err
	}
	req.Node = nil // the first one's is enough
	if before := len(st.asked); st.legacy(req.GetTypeUrl(), len(subscribe) == 0) && len(st.asked) > before {
		req.ResourceNamesSubscribe = []string{wildcard} // stays until it is unsubscribed
	}
	st.share(req.GetTypeUrl(), subscribe)
	for n, v := range versions {
		if len(n) > maxName || len(v) > maxName {
			return errLong()
		}
		// Assigning to a key takes over the string that it is written with.
		versions[st.server.index.shared(topic{byName, req.GetTypeUrl(), n})] = v
	}
	st.judge(req.GetTypeUrl(), req.GetResponseNonce(), req.GetErrorDetail())
	return nil
}

func (st *stream) onDeltaResponse(_ int64, _ *discovery.DeltaDiscoveryRequest, resp *discovery.DeltaDiscoveryResponse) {
	if w := st.watches[resp.GetTypeUrl()]; w != nil {
		w.sent(resp.GetNonce(), false)
	}
}

// onRequest sees each state-of-the-world request before go-control-plane keeps
// anything of it.
func (st *stream) onRequest(_ int64, req *discovery.DiscoveryRequest) error {
	names := req.GetResourceNames()
	if err := st.admit(req.GetTypeUrl(), req.GetNode(), names, 0); err != nil {
		return err
	}
	req.Node = nil
	if st.legacy(req.GetTypeUrl(), len(names) == 0) {
		req.ResourceNames = []string{wildcard}
	}
	st.share(req.GetTypeUrl(), names)
	st.judge(req.GetTypeUrl(), req.GetResponseNonce(), req.GetErrorDetail())
	return nil
}

func (st *stream) onResponse(_ context.Context, _ int64, _ *discovery.DiscoveryRequest, resp *discovery.DiscoveryResponse) {
	if w := st.watches[resp.GetTypeUrl()]; w != nil {
		w.sent(resp.GetNonce(), true)
	}
}

// admit refuses what would let a client fill the server's memory.
func (st *stream) admit(typeURL string, node *core.Node, names []string, versions int) error {
	long := func(s string) bool { return len(s) > maxName }
	switch {
	case long(typeURL), slices.ContainsFunc(names, long):
		return errLong()
	case len(names)-1 > st.maxNames, versions > st.maxNames: // the wildcard is no name
		return status.Errorf(codes.ResourceExhausted, "%d names and %d versions of %s in one request, at most %d are taken", len(names), versions, typeURL, st.maxNames)
	}
	if _, before := st.asked[typeURL]; !before && len(st.asked) == maxTypes {
		return status.Errorf(codes.ResourceExhausted, "more than %d types on one stream", maxTypes)
	}
	if st.node == nil {
		if n := proto.Size(node); n > maxNode {
			return status.Errorf(codes.InvalidArgument, "the node takes %d bytes, at most %d are taken", n, maxNode)
		}
		st.node = node
		if node == nil {
			st.node = &core.Node{}
		}
	}
	return nil
}

func errLong() error {
	return status.Errorf(codes.InvalidArgument, "a name has more than %d bytes", maxName)
}

// legacy notes that a type is asked for, and reports whether the request means
// everything by naming nothing. Only Envoy's listeners and clusters do; to gRPC,
// naming nothing is to want nothing.
func (st *stream) legacy(typeURL string, empty bool) bool {
	unnamed, before := st.asked[typeURL]
	if !before {
		unnamed = full(typeURL) && !strings.HasPrefix(strings.ToLower(st.node.GetUserAgentName()), "grpc")
	}
	unnamed = unnamed && empty
	st.asked[typeURL] = unnamed
	return unnamed
}

// share makes names the strings that all clients share.
func (st *stream) share(typeURL string, names []string) {
	for i, n := range names {
		names[i] = st.server.index.shared(topic{byName, typeURL, n})
	}
}

// judge notes an ACK or NACK.
func (st *stream) judge(typeURL, nonce string, refused *rpcstatus.Status) {
	w := st.watches[typeURL]
	first := w != nil && w.judge(nonce)
	if refused == nil {
		return
	}
	st.server.onNACK(typeURL)
	if first { // one line for each response, however often it is refused
		st.server.log.Warn("client refused resources", "client", st.client.Name, "type", typeURL, "err", fmt.Sprintf("%.500s", refused.GetMessage()))
	}
}

func (st *stream) detach() {
	for _, w := range st.watches {
		w.detach()
	}
}
