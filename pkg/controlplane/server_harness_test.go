package controlplane

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// patience bounds how long a test waits for what must come.
const patience = time.Minute

// server is a whole control plane on loopback: TLS, store, folders and all.
type server struct {
	t       *testing.T
	options Options
	folders string
	addr    string
	stop    func() error
}

func startServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, folders: t.TempDir()}
	s.options = Options{
		Mesh: "test", StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		TunnelRanges: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")}, RemovalHold: time.Hour, CertificateTTL: time.Hour, Version: "v1",
	}
	s.write("east", "name: east\npodCIDRs: [10.1.0.0/16]\n", "n1", "n2", "n3", "n4")
	s.write("west", "name: west\npodCIDRs: [10.2.0.0/16]\n", "n1")
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) write(name, cluster string, nodes ...string) {
	s.t.Helper()
	folder := filepath.Join(s.folders, name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		s.t.Fatal(err)
	}
	second := map[string]int{"east": 1, "west": 2}[name]
	var text strings.Builder
	for i, n := range nodes {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: 10.%d.%d.0/24, podCIDRs: [10.%d.%d.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 192.168.%d.%d}]}\n", n, second, i, second, i, second, i+1)
	}
	for file, content := range map[string]string{"nodes.yaml": text.String(), "cluster.yaml": cluster} {
		tmp := filepath.Join(folder, "."+file)
		if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(folder, file)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// listening is a log that tells where the control plane listens.
type listening struct {
	slog.Handler
	addr chan string
}

func (l listening) Enabled(context.Context, slog.Level) bool { return true }

func (l listening) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "listen" {
			l.addr <- a.Value.String()
		}
		return true
	})
	return nil
}

func (s *server) start() {
	s.t.Helper()
	log := listening{slog.DiscardHandler, make(chan string, 1)}
	s.options.Log = slog.New(log)
	s.options.Source = dir.New(s.folders, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, s.options) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case s.addr = <-log.addr:
	case err := <-ended:
		s.t.Fatalf("it ends: %v", err)
	case <-late.C:
		s.t.Fatal("it does not start")
	}
}

func (s *server) authority() *pki.Authority {
	s.t.Helper()
	a, err := pki.OpenAuthority(PKIDir(s.options.StateDir), s.options.Mesh)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *server) token(cluster, node string) string {
	s.t.Helper()
	token, err := s.authority().CreateToken(cluster, node, time.Hour, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// agent is one host: a WireGuard key, and what it has got with it.
type agent struct {
	s      *server
	node   mesh.NodeID
	key    *ecdh.PrivateKey
	bundle *pki.Bundle
}

func (s *server) agent(node string) *agent {
	s.t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	return &agent{s: s, node: id(node), key: key}
}

func (a *agent) PublicKey() mesh.PublicKey { return mesh.PublicKey(a.key.PublicKey().Bytes()) }

func (a *agent) Prove(serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) ([]byte, error) {
	return pki.Prove([32]byte(a.key.Bytes()), serverKey, cookie, node, subject)
}

// dial connects with a TLS configuration.
func (s *server) dial(cfg *tls.Config, err error) *grpc.ClientConn {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.ServerName = "controlplane"
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// join gets a certificate for a token.
func (a *agent) join(token string) error {
	ctx, cancel := context.WithTimeout(a.s.t.Context(), patience)
	defer cancel()
	key, csr, err := pki.NewCSR()
	if err != nil {
		return err
	}
	var chain, roots [][]byte
	if err := whenReady(ctx, func() (err error) {
		chain, roots, err = peering.NewAgent(a.s.dial(pki.JoinTLS(token)), a.node, a).Join(ctx, token, csr)
		return err
	}); err != nil {
		return err
	}
	a.bundle, err = pki.NewBundle(key, chain, roots)
	return err
}

// whenReady calls f again while the control plane says that it is not ready, as
// agents do.
func whenReady(ctx context.Context, f func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if !strings.Contains(status.Convert(err).Message(), "has not read its sources yet") {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// connect makes a connection with the agent's certificate.
func (a *agent) connect() *grpc.ClientConn {
	b := a.bundle
	return a.s.dial(pki.ClientTLS(b.Mesh(), b.Roots, func() (*tls.Certificate, error) { return b.Certificate(), nil }))
}

func (a *agent) register(conn *grpc.ClientConn) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(a.s.t.Context(), patience)
	defer cancel()
	var addrs []netip.Addr
	err := whenReady(ctx, func() (err error) {
		addrs, _, _, err = peering.NewAgent(conn, a.node, a).Register(ctx, peering.Registration{ListenPort: 51830, Device: "kernel", Version: "v1"})
		return err
	})
	return addrs, err
}

// up joins, registers and keeps its connection.
func (s *server) up(node string) (*agent, *grpc.ClientConn) {
	s.t.Helper()
	a := s.agent(node)
	if err := a.join(s.token(a.node.Cluster, "")); err != nil {
		s.t.Fatal(err)
	}
	conn := a.connect()
	if _, err := a.register(conn); err != nil {
		s.t.Fatal(err)
	}
	return a, conn
}

// mirror is what an agent has received.
type mirror struct {
	mu      sync.Mutex
	state   map[string]map[string]string // by type and name: versions
	sent    int                          // resources, and names that were removed
	answers int                          // of the newest stream
	changed chan struct{}
}

func newMirror() *mirror {
	m := &mirror{changed: make(chan struct{}, 1)}
	m.state = map[string]map[string]string{xds.PeerType: {}, xds.NodeConfigType: {}, xds.ClusterConfigType: {}}
	return m
}

func (m *mirror) run(ctx context.Context, conn *grpc.ClientConn, node mesh.NodeID) error {
	m.mu.Lock()
	m.answers = 0
	subs := []xds.Subscription{
		{TypeURL: xds.PeerType, Names: []string{"*"}, Versions: maps.Clone(m.state[xds.PeerType])},
		{TypeURL: xds.NodeConfigType, Names: []string{node.String()}, Versions: maps.Clone(m.state[xds.NodeConfigType])},
		{TypeURL: xds.ClusterConfigType, Names: []string{node.Cluster}, Versions: maps.Clone(m.state[xds.ClusterConfigType])},
	}
	m.mu.Unlock()
	return xds.Subscribe(ctx, conn, &core.Node{Id: "a lie"}, subs, func(u xds.Update) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.sent += len(u.Resources) + len(u.Removed)
		m.answers++
		for _, r := range u.Resources {
			m.state[u.TypeURL][r.GetName()] = r.GetVersion()
		}
		for _, n := range u.Removed {
			delete(m.state[u.TypeURL], n)
		}
		select {
		case m.changed <- struct{}{}:
		default:
		}
		return nil
	})
}

// String reads "peers [east/n1], node [west/n1], cluster [west]".
func (m *mirror) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := func(typeURL string) []string { return slices.Sorted(maps.Keys(m.state[typeURL])) }
	return fmt.Sprintf("peers %v, node %v, cluster %v", names(xds.PeerType), names(xds.NodeConfigType), names(xds.ClusterConfigType))
}

func (m *mirror) until(t *testing.T, want string) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for m.String() != want {
		select {
		case <-m.changed:
		case <-late.C:
			t.Fatalf("got %v, never %s", m, want)
		}
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("never: %s", what)
		}
	}
}

// end receives what must come.
func end(t *testing.T, ended <-chan error) error {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-ended:
		return err
	case <-late.C:
		t.Fatal("it does not end")
		return nil
	}
}

// oneTunnel is a report of one tunnel that is up.
type oneTunnel struct{ to mesh.NodeID }

func (o oneTunnel) All() map[mesh.NodeID]*mesh.TunnelStatus {
	return map[mesh.NodeID]*mesh.TunnelStatus{o.to: {State: mesh.Up, Reason: mesh.ReasonTunnel}}
}
func (oneTunnel) Changed() <-chan struct{}                    { return nil }
func (oneTunnel) Changes() map[mesh.NodeID]*mesh.TunnelStatus { return nil }

// ask is what the CLI does.
func (s *server) ask(method, path string, v any) error {
	return cli.Ask(s.t.Context(), "control plane", AdminSocket(s.options.StateDir), method, path, v)
}

func (s *server) status() (st Status) {
	s.t.Helper()
	if err := s.ask("GET", "/status", &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}
