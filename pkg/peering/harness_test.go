package peering

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// patience bounds how long a test waits for what must come.
const patience = 30 * time.Second

var (
	n1, n2 = mesh.NodeID{Cluster: "east", Name: "n1"}, mesh.NodeID{Cluster: "east", Name: "n2"}
	w1     = mesh.NodeID{Cluster: "west", Name: "n1"}
	key    = mesh.PublicKey{1}
)

// authority is a fake of which tokens read "CLUSTER" or "CLUSTER/NODE" and proofs
// repeat what they are for. The caller is who its metadata says under "node".
type authority struct{ issueErr error }

func (authority) Challenge() ([32]byte, []byte, error) { return [32]byte{7}, []byte("cookie"), nil }

func (authority) VerifyProof(key mesh.PublicKey, cookie, mac []byte, node mesh.NodeID, subject []byte) error {
	if !bytes.Equal(mac, proofOf(key, cookie, node, subject)) {
		return errors.New("the proof is wrong")
	}
	return nil
}

func proofOf(key mesh.PublicKey, cookie []byte, node mesh.NodeID, subject []byte) []byte {
	return []byte(key.String() + string(cookie) + node.String() + string(subject))
}

func (authority) VerifyToken(token string) (cluster, node string, err error) {
	if token == "" || token == "bad" {
		return "", "", errors.New("token is bad")
	}
	cluster, node, _ = strings.Cut(token, "/")
	return cluster, node, nil
}

func (a authority) Issue(node mesh.NodeID, csr []byte) (chain, roots [][]byte, err error) {
	return [][]byte{[]byte(node.String()), csr}, [][]byte{[]byte("root")}, a.issueErr
}

func (authority) VerifyGatewayToken(token string) (cluster, name string, err error) {
	of, ok := strings.CutPrefix(token, "gateway:")
	if !ok {
		return "", "", errors.New("token is no gateway's")
	}
	cluster, name, _ = strings.Cut(of, "/")
	return cluster, name, nil
}

func (a authority) IssueGateway(cluster, name string, csr []byte) (chain, roots [][]byte, err error) {
	return [][]byte{[]byte("gateway " + cluster + "/" + name), csr}, [][]byte{[]byte("root")}, a.issueErr
}

func (authority) GatewayCaller(ctx context.Context) (cluster, name string, ok bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.Cut(strings.Join(md.Get("gateway"), ""), "/")
}

func (a authority) IssueWorkload(cluster, namespace, serviceAccount string, csr []byte) (chain, roots [][]byte, err error) {
	return [][]byte{[]byte(cluster + " " + namespace + "/" + serviceAccount), csr}, [][]byte{[]byte("root")}, a.issueErr
}

func (authority) Caller(ctx context.Context) (mesh.NodeID, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	id, err := mesh.ParseNodeID(strings.Join(md.Get("node"), ""))
	if err != nil {
		return id, status.Error(codes.Unauthenticated, "no certificate")
	}
	return id, nil
}

// backend is a fake that knows n1 and n2 of east, and keeps what it is told.
type backend struct {
	mu         sync.Mutex
	mayJoin    error
	registered []Registration
	refused    []string
	revoke     context.CancelCauseFunc // of the newest stream
	messages   []message
	open       int
	// gate, where there is one, is waited for by each Report.
	gate    chan struct{}
	changed chan struct{}
	paths   []PathAnswer
	asked   []string
}

type message struct {
	full    bool
	tunnels map[mesh.NodeID]*mesh.TunnelStatus
}

func (b *backend) MayJoin(context.Context, mesh.NodeID, mesh.PublicKey) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mayJoin
}

func (b *backend) Known(_ context.Context, node mesh.NodeID) error {
	if node != n1 && node != n2 {
		return status.Errorf(codes.FailedPrecondition, "node %v is not known", node)
	}
	return nil
}

// KnownGateway knows those of east.
func (b *backend) KnownGateway(_ context.Context, cluster, name string) error {
	if cluster != "east" {
		return status.Errorf(codes.FailedPrecondition, "cluster %s is not known", cluster)
	}
	return nil
}

// Workload knows one pod, of n1.
func (b *backend) Workload(_ context.Context, node mesh.NodeID, namespace, pod, uid string) (string, error) {
	if node != n1 || namespace != "demo" || pod != "echo-0" || uid != "u1" {
		return "", status.Errorf(codes.PermissionDenied, "no pod %s/%s with the UID %q runs on %s", namespace, pod, uid, node)
	}
	return "echo", nil
}

func (b *backend) Paths(_ context.Context, node mesh.NodeID, target string) ([]PathAnswer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, node.String()+" to "+target)
	if target == "gone" {
		return nil, status.Error(codes.NotFound, "no cluster has a service gone")
	}
	return b.paths, nil
}

func (b *backend) Register(_ context.Context, r Registration) ([]netip.Addr, []string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.registered = append(b.registered, r)
	return []netip.Addr{netip.MustParseAddr("198.19.0.2"), netip.MustParseAddr("fd19::2")}, b.refused, nil
}

func (b *backend) Attach(ctx context.Context, node mesh.NodeID) (Session, context.Context, error) {
	if node == n2 {
		return nil, nil, status.Error(codes.FailedPrecondition, "not registered")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revoke = cancel
	b.open++
	return &session{b, cancel}, ctx, nil
}

type session struct {
	b      *backend
	cancel context.CancelCauseFunc
}

func (s *session) Report(ctx context.Context, full bool, tunnels map[mesh.NodeID]*mesh.TunnelStatus) error {
	if s.b.gate != nil {
		select {
		case <-s.b.gate:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s.b.with(func() { s.b.messages = append(s.b.messages, message{full, tunnels}) })
	select {
	case s.b.changed <- struct{}{}:
	default:
	}
	return nil
}

func (s *session) Close() {
	s.cancel(nil)
	s.b.with(func() { s.b.open-- })
}

func (b *backend) with(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// received is what all messages so far add up to, and how many they were.
func (b *backend) received() (state map[mesh.NodeID]mesh.TunnelStatus, count int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	state = map[mesh.NodeID]mesh.TunnelStatus{}
	for _, m := range b.messages {
		if m.full {
			clear(state)
		}
		for id, t := range m.tunnels {
			if t == nil {
				delete(state, id)
			} else {
				state[id] = *t
			}
		}
	}
	return state, len(b.messages)
}

// prover proves what the fake authority takes.
type prover struct{ wrong bool }

func (prover) PublicKey() mesh.PublicKey { return key }

func (p prover) Prove(serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) ([]byte, error) {
	if serverKey != [32]byte{7} {
		return nil, errors.New("not the server's key")
	}
	if p.wrong {
		return []byte("x"), nil
	}
	return proofOf(key, cookie, node, subject), nil
}

// serve runs a Server over a real gRPC connection.
func serve(t testing.TB, a authority, b *backend) (*grpc.ClientConn, *grpc.Server) {
	t.Helper()
	b.changed = make(chan struct{}, 1)
	gs := grpc.NewServer()
	peeringv1.RegisterPeeringServer(gs, NewServer(a, b, slog.New(slog.DiscardHandler), "v9"))
	ln := bufconn.Listen(1 << 20)
	ended := make(chan error, 1)
	go func() { ended <- gs.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:///x",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		gs.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return conn, gs
}

// as makes calls those of a node's agent.
func as(ctx context.Context, node mesh.NodeID) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "node", node.String())
}

// asGateway makes calls those of a gateway.
func asGateway(ctx context.Context, gateway string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "gateway", gateway)
}

// reports is a queue of changes as the agent's loop keeps one.
type reports struct {
	mu      sync.Mutex
	all     map[mesh.NodeID]*mesh.TunnelStatus
	changes map[mesh.NodeID]*mesh.TunnelStatus
	marked  chan struct{}
}

func newReports() *reports {
	return &reports{all: map[mesh.NodeID]*mesh.TunnelStatus{}, changes: map[mesh.NodeID]*mesh.TunnelStatus{}, marked: make(chan struct{}, 1)}
}

func (r *reports) set(id mesh.NodeID, t *mesh.TunnelStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changes[id] = t; t == nil {
		delete(r.all, id)
	} else {
		r.all[id] = t
	}
	select {
	case r.marked <- struct{}{}:
	default:
	}
}

func (r *reports) All() map[mesh.NodeID]*mesh.TunnelStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.changes)
	return maps.Clone(r.all)
}

// now returns what there is, for the test: it forgets nothing.
func (r *reports) now() map[mesh.NodeID]*mesh.TunnelStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.all)
}

func (r *reports) Changed() <-chan struct{} { return r.marked }

func (r *reports) Changes() map[mesh.NodeID]*mesh.TunnelStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.changes
	r.changes = map[mesh.NodeID]*mesh.TunnelStatus{}
	return out
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			buf := make([]byte, 1<<20)
			t.Fatalf("never: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// ended receives an error that must come.
func ended(t testing.TB, from <-chan error) error {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-from:
		return err
	case <-late.C:
		t.Fatal("it does not end")
		return io.EOF
	}
}
