package main

import (
	"bytes"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRoutesFollowServices(t *testing.T) {
	w := newWorld(t)
	g := w.runGateway(w.gatewayOptions())
	g.untilHealthy()
	for service, want := range map[string]string{"echo": "a", "other": "a", "hidden": refused, "nothing": refused} {
		if got := g.answer(service); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", service, got, want)
		}
	}

	c, _, err := g.connect("echo")
	if err != nil {
		t.Fatal(err)
	}
	w.services(map[string]string{"echo": "b", "other": "a", "hidden": "a", "new": "b"})
	g.untilAnswer("echo", "b")
	g.untilAnswer("new", "b")
	if err := say(c); err != nil {
		t.Errorf("a connection to a pod that is no longer ready: %v", err)
	}
	w.services(map[string]string{"echo": "ab", "new": "", "hidden": "a"})
	g.untilAnswer("other", refused)
	g.until("no pods", func(s gatewayStatus) bool {
		return len(s.Services) == 2 && s.Services[1].ServerName == sniOf("new") && len(s.Services[1].Pods) == 0
	})
	g.untilAnswer("new", "internal error")
	seen := map[string]bool{}
	eventually(t, "both pods answer", func() bool {
		seen[g.answer("echo")] = true
		return seen["a"] && seen["b"]
	})

	g.until("one connection", func(s gatewayStatus) bool { return s.Connections.Active == 1 })
	s := g.status()
	if !s.healthy() || s.Cluster != "east" || s.Name != "gw" || s.ControlPlane.CertificateUntil == nil || s.Connections.Refused["unknown-sni"] == 0 {
		t.Errorf("status %+v", s)
	}
	if !w.log.has("gateway connected cluster=east gateway=gw addresses=[192.0.2.10 2001:db8::10]") {
		t.Error("the control plane does not know where it is")
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "flatmesh_gateway_control_plane_connected 1\n"} {
		if code, body := g.get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestControlPlaneAway(t *testing.T) {
	w := newWorld(t)
	o := w.gatewayOptions()
	g := w.runGateway(o)
	g.untilHealthy()

	// Away while the gateway runs; nothing has changed when it comes back.
	w.stop()
	g.until("away", func(s gatewayStatus) bool { return !s.ControlPlane.Connected && s.ControlPlane.Error != "" })
	if got := g.answer("echo"); got != "a" {
		t.Errorf("while the control plane is away: %s", got)
	}
	if s := g.status(); s.healthy() || s.RoutesFrom != routesControlPlane {
		t.Errorf("status %+v", s)
	}
	w.start()
	g.untilHealthy()
	g.stop()

	// Away when the gateway starts, which needs no token any more.
	w.stop()
	if err := os.Remove(o.tokenFile); err != nil {
		t.Fatal(err)
	}
	g = w.runGateway(o)
	if s := g.status(); s.RoutesFrom != routesDisk || s.healthy() || len(s.Services) != 2 {
		t.Errorf("status %+v", s)
	}
	for service, want := range map[string]string{"echo": "a", "other": "a", "hidden": refused} {
		if got := g.answer(service); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", service, got, want)
		}
	}
	if code, body := g.get("/readyz"); code != http.StatusOK {
		t.Errorf("with the routes kept on disk it is not ready: %s", body)
	}
	g.until("away", func(s gatewayStatus) bool { return s.ControlPlane.Error != "" })

	// It catches up with what has changed.
	w.services(map[string]string{"echo": "b", "new": "a"})
	w.start()
	g.untilHealthy()
	g.untilAnswer("echo", "b")
	g.untilAnswer("new", "a")
	g.untilAnswer("other", refused)
}

func TestTokenOfAnother(t *testing.T) {
	w := newWorld(t)
	o := w.gatewayOptions()
	w.token(o.tokenFile, "other")
	g := w.runGateway(o)
	g.until("refused", func(s gatewayStatus) bool {
		return strings.Contains(s.ControlPlane.Error, "the token is for the gateway east/other, not for the gateway east/gw")
	})
	if s := g.status(); s.healthy() || s.RoutesFrom != routesNone {
		t.Errorf("status %+v", s)
	}
	if got := g.answer("echo"); !strings.Contains(got, refused) {
		t.Errorf("echo: %s", got)
	}
	if code, _ := g.get("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready: %d", code)
	}
	if code, _ := g.get("/healthz"); code != http.StatusOK {
		t.Errorf("not healthy: %d", code)
	}
	// A good token takes effect without a restart.
	w.token(o.tokenFile, "gw")
	g.untilHealthy()
}

// The clock of the gateway goes ahead, so that it renews its certificate when it
// starts again.
func TestRenewal(t *testing.T) {
	w := newWorld(t)
	o := w.gatewayOptions()
	g := w.runGateway(o)
	g.untilHealthy()
	g.stop()
	path := filepath.Join(o.stateDir, "identity.pem")
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(o.tokenFile); err != nil {
		t.Fatal(err)
	}
	o.now = func() time.Time { return time.Now().Add(40 * time.Minute) }
	g = w.runGateway(o)
	eventually(t, "another certificate is on disk", func() bool {
		second, err := os.ReadFile(path)
		return err == nil && !bytes.Equal(first, second)
	})
	g.untilHealthy()
	if got := g.answer("echo"); got != "a" {
		t.Errorf("echo: %s", got)
	}
}

func TestDrain(t *testing.T) {
	w := newWorld(t)
	o := w.gatewayOptions()
	o.drainDelay = time.Hour // until it is hurried
	g := w.runGateway(o)
	g.untilHealthy()
	g.end()
	g.until("draining", func(s gatewayStatus) bool { return s.Draining })
	eventually(t, "the control plane knows", func() bool { return w.log.has("gateway disconnected") })
	// Clients have not heard of it yet.
	c, name, err := g.connect("echo")
	if err != nil || name != "a" {
		t.Fatalf("got %q %v", name, err)
	}
	if s := g.status(); s.healthy() || s.ControlPlane.Connected {
		t.Errorf("status %+v", s)
	}
	if code, body := g.get("/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready: %s", body)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := g.ended(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	if err := say(c); err == nil {
		t.Error("the connection outlives the gateway")
	}
	if !g.log.has("1 connections had not ended in time") {
		t.Error("the log does not tell of the connection that was cut")
	}
}

func TestDrainWaitsForConnections(t *testing.T) {
	w := newWorld(t)
	g := w.runGateway(w.gatewayOptions())
	g.untilHealthy()
	c, _, err := g.connect("echo")
	if err != nil {
		t.Fatal(err)
	}
	at := g.status().Listening[0]
	g.end()
	eventually(t, "it stops accepting", func() bool {
		c, err := net.Dial("tcp", at)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if err := say(c); err != nil {
		t.Errorf("while it drains: %v", err)
	}
	c.Close()
	if err := g.ended(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}

func TestRefusesToStart(t *testing.T) {
	w := newWorld(t)
	o := w.gatewayOptions()
	g := w.runGateway(o)
	g.untilHealthy()
	taken := netip.MustParseAddrPort(g.status().Listening[0]).Port()

	for name, c := range map[string]struct {
		change func(*options)
		says   []string
	}{
		"the same state":      {func(o *options) { o.stateDir = g.o.stateDir }, []string{"another gateway already runs here", "--state-dir"}},
		"the same run folder": {func(o *options) { o.runDir = g.o.runDir }, []string{"another gateway already answers", "--run-dir"}},
		"a port in use":       {func(o *options) { o.ports = []uint16{0, taken} }, []string{"address already in use", "--ports"}},
		"the HTTP address":    {func(o *options) { o.http = g.o.http }, []string{"--http", "address already in use"}},
		"no such address":     {func(o *options) { o.listen = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, []string{"192.0.2.1"}},
		"bad options":         {func(o *options) { o.cluster = "East"; o.controlPlane = "x" }, []string{"--cluster", "--control-plane"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := w.gatewayOptions()
			c.change(&o)
			o.log = slog.New(slog.DiscardHandler)
			err := run(t.Context(), o)
			for _, s := range c.says {
				if err == nil || !strings.Contains(err.Error(), s) {
					t.Errorf("got %v, want %q in it", err, s)
				}
			}
		})
	}
	// None of them has done the first one any harm.
	if got := g.answer("echo"); got != "a" || !g.status().healthy() {
		t.Errorf("echo: %s, status %+v", got, g.status())
	}
}
