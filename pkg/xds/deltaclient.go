package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

const (
	// maxNamesAtOnce bounds the names in one request, so that it stays below the
	// 4 MB that gRPC servers take.
	maxNamesAtOnce = 4096
	// maxVerdicts bounds the ACKs and NACKs of one type that wait to be sent.
	maxVerdicts = 8
)

// DeltaClient is a client of delta ADS whose subscriptions may change at any
// time. It knows the versions of what its caller has taken, so that a new stream
// resumes where the last one ended; the resources themselves are the caller's.
// It is safe for concurrent use.
type DeltaClient struct {
	apply func(Update) error

	mu      sync.Mutex
	running bool
	types   []*subscribed // in the order of their first Add
	wake    chan struct{} // one slot: there is something to send
}

// subscribed is the state of one type. It is guarded by the client's mutex.
type subscribed struct {
	typeURL string
	// names are those subscribed to, "*" too; all are the versions of what the
	// wildcard brought, by name.
	names map[string]*held
	all   map[string]string
	// todo is what the stream is not yet told of names. begun: it has had a request
	// for this type.
	todo  map[string]step
	begun bool
	// verdicts are the ACKs and NACKs to send.
	verdicts []verdictOn
}

// step is what the stream is to be told of a name.
type step uint8

const (
	add   step = iota
	drop       // it knows of the name
	renew      // dropped, then added: the caller has lost it meanwhile
)

// held is one subscription to a name. One that is removed and added again is
// another, so that a response to the first does not pass for one to the second.
type held struct {
	version string // empty: the caller does not have it
}

// verdictOn is an ACK of the response with a nonce, or a NACK.
type verdictOn struct {
	nonce   string
	refused *rpcstatus.Status
}

// NewDeltaClient returns a client without subscriptions. apply is called for
// each response, in order and by one goroutine, with what is subscribed to at
// that time, also where that is nothing. Where it returns an error the response
// is refused (NACK) with its text, and counts as not taken. It may call Add and
// Remove.
func NewDeltaClient(apply func(Update) error) *DeltaClient {
	return &DeltaClient{apply: apply, wake: make(chan struct{}, 1)}
}

// Add subscribes to names of a type; "*" is all that there are. Names that are
// subscribed to already stay as they are.
func (c *DeltaClient) Add(typeURL string, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(typeURL)
	if s == nil {
		s = &subscribed{typeURL: typeURL, names: map[string]*held{}, all: map[string]string{}, todo: map[string]step{}}
		c.types = append(c.types, s)
	}
	for _, n := range names {
		if s.names[n] == nil {
			// What the wildcard brought counts as had.
			s.names[n] = &held{version: s.all[n]}
			delete(s.all, n)
			if _, dropped := s.todo[n]; dropped {
				s.todo[n] = renew
			} else {
				s.todo[n] = add
			}
		}
	}
	c.rouse()
}

// Remove unsubscribes from names of a type. The caller then has none of them,
// but what "*" still covers: that the server sends anew. A response that is
// being applied may still bring one.
func (c *DeltaClient) Remove(typeURL string, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(typeURL)
	if s == nil {
		return
	}
	for _, n := range names {
		if s.names[n] == nil {
			continue
		}
		delete(s.names, n)
		if next, ok := s.todo[n]; ok && next == add {
			delete(s.todo, n)
		} else {
			s.todo[n] = drop
		}
		if n == wildcard {
			clear(s.all)
		}
	}
	c.rouse()
}

// Resume says which versions the caller has of a type, from disk, before the
// first Run. What is not subscribed to is passed over.
func (c *DeltaClient) Resume(typeURL string, versions map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.of(typeURL); s != nil {
		for n, v := range versions {
			s.took(n, s.names[n], v)
		}
	}
}

// of returns the state of a type, nil where nothing was ever subscribed to. Must
// hold c.mu.
func (c *DeltaClient) of(typeURL string) *subscribed {
	for _, s := range c.types {
		if s.typeURL == typeURL {
			return s
		}
	}
	return nil
}

func (c *DeltaClient) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// took notes a version that the caller has, or by an empty one that it has none.
// h is the subscription that brought it, nil for the wildcard.
func (s *subscribed) took(name string, h *held, version string) {
	switch {
	case h != nil:
		h.version = version
	case s.names[wildcard] == nil || s.names[name] != nil:
	case version == "":
		delete(s.all, name)
	default:
		s.all[name] = version
	}
}

// Run runs one stream until ctx ends or it fails, whose error it returns. Only
// one runs at a time. node describes the client in the first request.
func (c *DeltaClient) Run(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	ctx, cancel := context.WithCancel(ctx)
	str, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		cancel()
		return fmt.Errorf("open the xDS stream: %w", err)
	}
	// A server that does not read holds the sender in Send; the receiver goes on.
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	sender.Go(func() { c.send(ctx, str, node) })
	for {
		resp, err := str.Recv()
		if err != nil {
			return fmt.Errorf("xDS stream: %w", err)
		}
		c.receive(resp)
	}
}

// begin forgets what the last stream was told.
func (c *DeltaClient) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running {
		return errors.New("the delta client has a stream already")
	}
	c.running = true
	for _, s := range c.types {
		s.begun, s.verdicts = false, nil
		clear(s.todo)
		for n := range s.names {
			s.todo[n] = add
		}
	}
	c.rouse()
	return nil
}

func (c *DeltaClient) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
}

// send sends what there is to send until the stream ends.
func (c *DeltaClient) send(ctx context.Context, str discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, node *core.Node) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		for _, req := range c.requests() {
			req.Node, node = node, nil
			if err := str.Send(req); err != nil {
				return // Recv has the cause
			}
		}
	}
}

// requests takes what there is to send.
func (c *DeltaClient) requests() []*discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, s := range c.types {
		for _, v := range s.verdicts {
			out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: s.typeURL, ResponseNonce: v.nonce, ErrorDetail: v.refused})
		}
		// A change of the subscription rides on the last ACK.
		changes := s.changes()
		if len(s.verdicts) > 0 && len(changes) > 0 {
			last := out[len(out)-1]
			changes[0].ResponseNonce, changes[0].ErrorDetail = last.GetResponseNonce(), last.GetErrorDetail()
			out = out[:len(out)-1]
		}
		s.verdicts = nil
		out = append(out, changes...)
	}
	return out
}

// changes takes the changes of the subscription that the stream is not told yet.
func (s *subscribed) changes() []*discovery.DeltaDiscoveryRequest {
	var subscribe, unsubscribe, renewed []string
	for _, n := range slices.Sorted(maps.Keys(s.todo)) { // "*" comes early
		switch s.todo[n] {
		case add:
			subscribe = append(subscribe, n)
		case drop:
			unsubscribe = append(unsubscribe, n)
		case renew:
			unsubscribe = append(unsubscribe, n)
			renewed = append(renewed, n)
		}
	}
	clear(s.todo)
	return append(s.requests(subscribe, unsubscribe), s.requests(renewed, nil)...)
}

// requests makes requests of at most maxNamesAtOnce names each way.
func (s *subscribed) requests(subscribe, unsubscribe []string) []*discovery.DeltaDiscoveryRequest {
	var out []*discovery.DeltaDiscoveryRequest
	for len(subscribe)+len(unsubscribe) > 0 {
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: s.typeURL}
		req.ResourceNamesUnsubscribe, unsubscribe = cut(unsubscribe)
		req.ResourceNamesSubscribe, subscribe = cut(subscribe)
		if !s.begun {
			req.InitialResourceVersions = s.versions(req.ResourceNamesSubscribe)
		}
		s.begun = true
		out = append(out, req)
	}
	return out
}

func cut(names []string) (now, later []string) {
	n := min(len(names), maxNamesAtOnce)
	return names[:n:n], names[n:]
}

// versions returns what the caller has, of the first request's names and under
// the wildcard. Only the first request of a type may say it; of names that come
// in later ones the server sends what there is.
func (s *subscribed) versions(names []string) map[string]string {
	out := map[string]string{}
	if s.names[wildcard] != nil {
		// Of these the server would not say otherwise that one is gone.
		maps.Copy(out, s.all)
	}
	for _, n := range names {
		if h := s.names[n]; h != nil && h.version != "" {
			out[n] = h.version
		}
	}
	return out
}

// receive hands on one response and answers it.
func (c *DeltaClient) receive(resp *discovery.DeltaDiscoveryResponse) {
	c.mu.Lock()
	s := c.of(resp.GetTypeUrl())
	if s == nil { // a type that was never asked for
		c.mu.Unlock()
		return
	}
	u := Update{TypeURL: resp.GetTypeUrl()}
	brought := map[string]*held{}
	versions := map[string]string{}
	want := func(name string) bool {
		h := s.names[name]
		if h == nil && s.names[wildcard] == nil {
			return false
		}
		brought[name] = h
		return true
	}
	for _, r := range resp.GetResources() {
		if want(r.GetName()) {
			u.Resources = append(u.Resources, r)
			versions[r.GetName()] = r.GetVersion()
		}
	}
	for _, n := range resp.GetRemovedResources() {
		if want(n) {
			u.Removed = append(u.Removed, n)
			versions[n] = ""
		}
	}
	c.mu.Unlock()

	err := c.apply(u)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		for n, version := range versions {
			s.took(n, brought[n], version)
		}
	}
	s.answer(verdictOf(resp.GetNonce(), err))
	c.rouse()
}

// verdictOf is an ACK of the response with a nonce, or its NACK for err.
func verdictOf(nonce string, err error) verdictOn {
	v := verdictOn{nonce: nonce}
	if err != nil {
		v.refused = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
	}
	return v
}

// answer puts an ACK or NACK to what is sent. An ACK stands for those before
// it, and the newest verdict replaces the last one where there are too many: the
// server does not read.
func (s *subscribed) answer(v verdictOn) {
	if n := len(s.verdicts); n > 0 && (n == maxVerdicts || v.refused == nil && s.verdicts[n-1].refused == nil) {
		s.verdicts[n-1] = v
		return
	}
	s.verdicts = append(s.verdicts, v)
}
