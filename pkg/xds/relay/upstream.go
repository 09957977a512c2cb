package relay

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// The wait before a stream to the control plane is opened again.
const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 10 * time.Second
)

// follower is the relay as the control plane's client of one kind.
type follower struct {
	*xds.DeltaClient
	kind build.Kind
	now  func() time.Time
	log  *slog.Logger
	// asked is closed once there is anything to ask for: a kind that nobody on the
	// node is of costs no stream.
	asked chan struct{}
	once  sync.Once

	mu    sync.Mutex
	state UpstreamStatus
}

func newFollower(kind build.Kind, o Options, apply func(xds.Update) error) *follower {
	f := &follower{kind: kind, now: o.Now, log: o.Log, asked: make(chan struct{}), state: UpstreamStatus{State: UpstreamIdle, Since: o.Now()}}
	f.DeltaClient = xds.NewDeltaClient(func(u xds.Update) error {
		f.become(UpstreamConnected, nil)
		return apply(u)
	})
	return f
}

// Add subscribes to names of a type.
func (f *follower) Add(typeURL string, names ...string) {
	f.DeltaClient.Add(typeURL, names...)
	f.once.Do(func() { close(f.asked) })
}

// follow keeps a stream open until ctx ends, which comes with the connection's
// end: what ends a stream alone must not take the agent's other business on the
// connection with it.
func (f *follower) follow(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node) {
	select {
	case <-f.asked:
	case <-ctx.Done():
		return
	}
	wait := backoffMin
	for {
		f.become(UpstreamConnecting, nil)
		began := time.Now()
		err := f.Run(ctx, conn, node)
		if f.become(UpstreamAway, err) && ctx.Err() == nil {
			f.log.Warn("no xDS from the control plane; clients are served what it said last", "kind", f.kind, "err", err)
		}
		if time.Since(began) > 2*backoffMax {
			wait = backoffMin
		}
		// Half of the wait is drawn, so that the relays of a mesh do not come back in
		// step.
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait = min(2*wait, backoffMax)
	}
}

// become notes a new state, and reports whether its error is another than the last.
func (f *follower) become(state UpstreamState, err error) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.State != state {
		f.state.State, f.state.Since = state, f.now()
	}
	if state == UpstreamConnected {
		f.state.Error = ""
	}
	if err == nil {
		return false
	}
	was := f.state.Error
	f.state.Error = err.Error()
	if s, ok := status.FromError(err); ok {
		f.state.Error = s.Message()
	}
	return f.state.Error != was
}

func (f *follower) status() UpstreamStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// describe returns how the relay describes itself to the control plane, which goes
// by the connection's identity and takes only the kind from this.
func describe(o Options, kind build.Kind) *core.Node {
	return &core.Node{
		Id: o.Node.String(), Cluster: o.Node.Cluster,
		Metadata:             &structpb.Struct{Fields: map[string]*structpb.Value{KindKey: structpb.NewStringValue(string(kind))}},
		UserAgentName:        "flatmesh-relay",
		UserAgentVersionType: &core.Node_UserAgentVersion{UserAgentVersion: o.Version},
	}
}
