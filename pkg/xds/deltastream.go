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

// Run runs a stream until ctx ends or the stream fails, whose error it returns.
// Only one runs at a time. node describes the client in the first request. Where
// "*" is removed and added again, Run begins a new stream by itself.
func (c *DeltaClient) Run(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node) error {
	c.mu.Lock()
	running := c.running
	c.running = true
	c.mu.Unlock()
	if running {
		return errors.New("the delta client has a stream already")
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running = false
	}()
	for {
		if err := c.stream(ctx, conn, node); !errors.Is(err, errAnew) {
			return err
		}
	}
}

// errAnew ends a stream so that another takes its place.
var errAnew = errors.New("begin a new stream")

// stream runs one stream.
func (c *DeltaClient) stream(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node) error {
	ctx, cancel := context.WithCancelCause(ctx)
	str, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		cancel(err)
		return fmt.Errorf("open the xDS stream: %w", err)
	}
	c.begin(cancel)
	// A server that does not read holds the sender in Send; the receiver goes on.
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel(nil)
	sender.Go(func() { c.send(ctx, str, node) })
	for {
		resp, err := str.Recv()
		if err == nil {
			err = c.receive(resp)
		}
		switch {
		case errors.Is(err, errAnew), errors.Is(context.Cause(ctx), errAnew):
			return errAnew
		case err != nil:
			return fmt.Errorf("xDS stream: %w", err)
		}
	}
}

// begin forgets what the last stream was told.
func (c *DeltaClient) begin(end context.CancelCauseFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.anew, c.end = false, end
	for _, s := range c.types {
		s.begun, s.lapsed, s.verdicts = false, false, nil
		clear(s.todo)
		for n := range s.names {
			s.todo[n] = add
		}
	}
	c.rouse()
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
func (c *DeltaClient) receive(resp *discovery.DeltaDiscoveryResponse) error {
	c.mu.Lock()
	s := c.of(resp.GetTypeUrl())
	switch {
	case c.anew:
		c.mu.Unlock()
		return errAnew
	case s == nil: // a type that was never asked for
		c.mu.Unlock()
		return nil
	}
	u := Update{TypeURL: resp.GetTypeUrl()}
	brought := map[string]bringer{}
	versions := map[string]string{}
	want := func(name string) bool {
		by := s.bringer(name)
		brought[name] = by
		return by != bringer{}
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
	return nil
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
