package xds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	types "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/metadata"
)

// rogue is one stream of a client that behaves badly, until it ends.
type rogue func(ctx context.Context, s *service, names []string) error

func openDelta(ctx context.Context, s *service) (discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
	return discovery.NewAggregatedDiscoveryServiceClient(s.conn).DeltaAggregatedResources(metadata.AppendToOutgoingContext(ctx, "view", "v"))
}

var rogues = map[string]rogue{
	"leaves at once": func(ctx context.Context, s *service, names []string) error {
		str, err := openDelta(ctx, s)
		if err != nil {
			return err
		}
		return str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: names})
	},
	"never acknowledges, and asks again": func(ctx context.Context, s *service, names []string) error {
		str, err := openDelta(ctx, s)
		if err != nil {
			return err
		}
		for i := range 50 {
			if err := str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: names[i : i+100]}); err != nil {
				return err
			}
			if _, err := str.Recv(); err != nil {
				return err
			}
		}
		return nil
	},
	"refuses everything": func(ctx context.Context, s *service, names []string) error {
		str, err := openDelta(ctx, s)
		if err != nil {
			return err
		}
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: names}
		for range 5 {
			if err := str.Send(req); err != nil {
				return err
			}
			resp, err := str.Recv()
			if err != nil {
				return err
			}
			req = &discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: names[:1], ResponseNonce: resp.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "no"}}
		}
		return nil
	},
	"does not read": func(ctx context.Context, s *service, names []string) error {
		str, err := openDelta(ctx, s)
		if err != nil {
			return err
		}
		for _, n := range names[:200] {
			if err := str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: []string{n}}); err != nil {
				return err
			}
		}
		return nil
	},
	"asks for what there is not": func(ctx context.Context, s *service, _ []string) error {
		str, err := openDelta(ctx, s)
		if err != nil {
			return err
		}
		salt := rand.Uint64()
		var names []string
		for i := range 2000 {
			names = append(names, fmt.Sprintf("%x-%d", salt, i))
		}
		if err := str.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: names}); err != nil {
			return err
		}
		_, err = str.Recv()
		return err
	},
	"state of the world": func(ctx context.Context, s *service, names []string) error {
		str, err := discovery.NewAggregatedDiscoveryServiceClient(s.conn).StreamAggregatedResources(metadata.AppendToOutgoingContext(ctx, "view", "v"))
		if err != nil {
			return err
		}
		for i, typeURL := range []string{thing, types.ClusterType, thing, "unknown"} {
			if err := str.Send(&discovery.DiscoveryRequest{Node: &core.Node{Id: "x"}, TypeUrl: typeURL, ResourceNames: names[i : i+500]}); err != nil {
				return err
			}
		}
		_, err = str.Recv()
		return err
	},
}

// However badly clients behave while resources change, one that behaves well is
// served, and nothing of the others stays behind: no goroutine, no watch, no
// memory.
func TestRogues(t *testing.T) {
	s := serve(t)
	set := SetKey{thing, "v"}
	var names []string
	for i := range 1000 {
		names = append(names, benchName(i))
	}
	fill := func(version int) {
		var list []string
		for i, n := range names {
			v := 0
			if i == version%len(names) || i == 0 {
				v = version
			}
			list = append(list, fmt.Sprint(n, "=", v))
		}
		s.cache.Replace(set, things(list...))
	}
	fill(0)
	s.cache.Replace(SetKey{types.ClusterType, "v"}, nil)

	good := newMirror("v", names[0])
	goodCtx, goodbye := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- good.run(goodCtx, s) }()
	good.until(t, "the good one is served", func(state map[string]string) bool { return len(state) == 1 })

	round := func(n int) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		for name, r := range rogues {
			for range n {
				wg.Go(func() {
					ctx, cancel := context.WithCancel(ctx)
					defer cancel()
					if err := r(ctx, s, names); err != nil {
						t.Errorf("the one that %s: %v", name, err)
					}
				})
			}
		}
		for i := range 20 {
			version := rand.IntN(1 << 30)
			fill(version)
			want := fmt.Sprint(version)
			good.until(t, "the good one has version "+want, func(state map[string]string) bool { return state[names[0]] == want })
			if i == 10 {
				s.cache.Drop(set)
				fill(version)
			}
			settle, cancel := context.WithCancel(ctx)
			go cancel() // whether it ends by that or before
			_ = s.server.Settled(settle, thing)
		}
		wg.Wait()
		eventually(t, "only the good one is left", func() bool { return s.watchers() == 1 })
	}
	round(2) // what is made once
	goroutines, before := runtime.NumGoroutine(), heap()
	for range 5 {
		round(8)
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
	// What one round subscribes to takes more at once.
	eventually(t, "the heap is back", func() bool { return heap() < before+4<<20 })
	goodbye()
	<-ended
	eventually(t, "nobody is left", s.nobody)
}
