package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
)

func TestWholeServer(t *testing.T) {
	s := startServer(t)
	east, eastConn := s.up("east/n1")
	west, westConn := s.up("west/n1")

	// Each receives what concerns its own cluster and node.
	m := newMirror()
	ended := make(chan error, 2)
	go func() { ended <- m.run(t.Context(), westConn, west.node) }()
	m.until(t, "peers [east/n1], node [west/n1], cluster [west]")
	s.up("east/n2")
	m.until(t, "peers [east/n1 east/n2], node [west/n1], cluster [west]")

	// It reports, and the CLI sees it.
	go func() { ended <- peering.NewAgent(westConn, west.node, west).Report(t.Context(), oneTunnel{east.node}) }()
	eventually(t, "the tunnel is seen", func() bool { return s.status().Tunnels.Up == 1 })
	if st := s.status(); st.Nodes != (NodeCounts{5, 3, 1}) || st.Tunnels != (TunnelCounts{Expected: 4, Up: 1}) || st.Healthy() {
		t.Errorf("got %+v %+v", st.Nodes, st.Tunnels)
	}
	var tunnels Tunnels
	if err := s.ask("GET", "/tunnels/west/n1", &tunnels); err != nil || fmt.Sprint(tunnels) != "map[east/n1:{Up tunnel}]" {
		t.Errorf("got %v, %v", tunnels, err)
	}
	if err := s.ask("POST", "/confirm/north", new(Confirmed)); err == nil || !strings.Contains(err.Error(), "north") {
		t.Errorf("confirm: %v", err)
	}

	// A renewed certificate serves, and once it is used the old one no longer.
	key, csr, err := pki.NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, roots, err := peering.NewAgent(eastConn, east.node, east).Renew(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	old := *east
	if east.bundle, err = pki.NewBundle(key, chain, roots); err != nil {
		t.Fatal(err)
	}
	if _, err := old.register(old.connect()); err != nil {
		t.Errorf("with the old one, while the new one is not used: %v", err)
	}
	if _, err := east.register(east.connect()); err != nil {
		t.Errorf("with the new one: %v", err)
	}
	_, err = old.register(old.connect())
	expect(t, err, codes.Unauthenticated, "another agent has joined as east/n1")

	// A restart costs the streams, and nothing else: what is equal is not sent again.
	sent := m.sent
	if err := s.stop(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	for range 2 {
		if err := end(t, ended); status.Code(errors.Unwrap(err)) != codes.Unavailable {
			t.Errorf("a stream ends with %v", err)
		}
	}
	s.start()
	westConn = west.connect()
	go func() { ended <- m.run(t.Context(), westConn, west.node) }()
	if addrs, err := west.register(westConn); err != nil || len(addrs) != 1 {
		t.Errorf("after a restart: %v, %v", addrs, err)
	}
	eventually(t, "all types are answered", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.answers == len(m.state)
	})
	if m.sent != sent {
		t.Errorf("%d resources were sent again", m.sent-sent)
	}

	// A node that is deleted is nobody's peer any more, and may do nothing.
	s.write("east", "name: east\npodCIDRs: [10.1.0.0/16]\n", "n1", "n2", "n3")
	go func() { ended <- peering.NewAgent(westConn, west.node, west).Report(t.Context(), oneTunnel{east.node}) }()
	s.write("west", "name: west\npodCIDRs: [10.2.0.0/16]\n", "n2")
	eventually(t, "the removal is held", func() bool {
		st := s.status()
		return len(st.Clusters[1].Held) == 1 && st.Clusters[1].HeldUntil != nil
	})
	var c Confirmed
	if err := s.ask("POST", "/confirm/west", &c); err != nil || fmt.Sprint(c.Removed) != "[n1]" {
		t.Errorf("confirm: %v, %v", c, err)
	}
	for range 2 {
		err := end(t, ended)
		if status.Code(errors.Unwrap(err)) != codes.PermissionDenied || !strings.Contains(err.Error(), "node west/n1 is no longer in the source of cluster west") {
			t.Errorf("a stream ends with %v", err)
		}
	}
	_, err = west.register(westConn)
	expect(t, err, codes.FailedPrecondition, "node west/n1 is not in")
	_, _, err = peering.NewAgent(westConn, west.node, west).Renew(t.Context(), csr)
	expect(t, err, codes.FailedPrecondition, "node west/n1 is not in")
	if err := west.join(s.token("west", "n1")); err == nil {
		t.Error("it may join again")
	}
}

func TestRunRefuses(t *testing.T) {
	s := startServer(t)
	run := func(change func(*Options)) error {
		o := s.options
		o.StateDir = filepath.Join(t.TempDir(), "state")
		o.Log = slog.New(slog.DiscardHandler)
		o.Source = dir.New(s.folders, o.Log)
		change(&o)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return Run(ctx, o)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"a port in use":             {func(o *Options) { o.Listen = ln.Addr().String() }, "open the gRPC address (--listen " + ln.Addr().String()},
		"the other port in use":     {func(o *Options) { o.HTTP = ln.Addr().String() }, "open the HTTP address (--http " + ln.Addr().String()},
		"a second control plane":    {func(o *Options) { o.StateDir = s.options.StateDir }, "in use by another process"},
		"the state of another mesh": {func(o *Options) { o.StateDir, o.Mesh = s.options.StateDir, "other" }, "other"},
		"no folders":                {func(o *Options) { o.Source = dir.New("/does/not/exist", slog.New(slog.DiscardHandler)) }, "read clusters from /does/not/exist"},
		"bad options": {func(o *Options) {
			o.Mesh, o.RemovalHold, o.CertificateTTL, o.TunnelRanges = "A b", -1, time.Second, []netip.Prefix{netip.MustParsePrefix("198.19.0.1/16")}
		}, "--mesh"},
		"all of them": {func(o *Options) {
			o.Mesh, o.RemovalHold, o.CertificateTTL, o.TunnelRanges = "A b", -1, time.Second, []netip.Prefix{netip.MustParsePrefix("198.19.0.1/16")}
		}, "--certificate-ttl: want at least 1m"},
	} {
		if err := run(c.change); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if st := s.status(); len(st.Clusters) != 2 {
		t.Errorf("the one that ran: %+v", st)
	}
}

// A file of state that is damaged is set aside with a message; the control plane
// runs, and waits for the agents before it publishes.
func TestCorruptStore(t *testing.T) {
	s := startServer(t)
	a, _ := s.up("east/n1")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.options.StateDir, "state.db")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i] ^= 0x55
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	if aside, err := filepath.Glob(path + ".corrupt-*"); err != nil || len(aside) != 1 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	conn := a.connect()
	eventually(t, "it registers again", func() bool { _, err := a.register(conn); return err == nil })
}
