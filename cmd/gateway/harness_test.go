package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/internal/cli"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
)

// patience bounds how long a test waits for what must come.
const patience = 30 * time.Second

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

// logged is a log that a test reads.
type logged struct {
	slog.Handler
	mu    *sync.Mutex
	lines *[]string
	addr  chan string // where a control plane listens
}

func newLogged() logged {
	return logged{slog.DiscardHandler, &sync.Mutex{}, &[]string{}, make(chan string, 1)}
}

func (l logged) Enabled(context.Context, slog.Level) bool { return true }

func (l logged) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		if a.Key == "listen" && r.Message == "control plane runs" {
			l.addr <- a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.lines = append(*l.lines, line)
	return nil
}

func (l logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range *l.lines {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// world is a real control plane, of one cluster, with pods on loopback that stand
// for those of the cluster.
type world struct {
	t       *testing.T
	options controlplane.Options
	folders string
	log     logged
	addr    string
	stop    func()
	cert    tls.Certificate
	pods    map[netip.AddrPort]string // where each really listens
}

func newWorld(t *testing.T) *world {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	server.Close()
	w := &world{t: t, folders: t.TempDir(), cert: server.TLS.Certificates[0], pods: map[netip.AddrPort]string{}}
	w.options = controlplane.Options{
		Mesh: "test", StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0",
		TunnelRanges: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")}, RemovalHold: time.Hour, CertificateTTL: time.Hour, Version: "v1",
	}
	for _, name := range []string{"a", "b"} {
		w.pod(name)
	}
	w.write("cluster.yaml", "name: east\npodCIDRs: [10.1.0.0/16]\n")
	w.write("nodes.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 192.168.1.1}]}\n")
	w.services(map[string]string{"echo": "a", "other": "a", "hidden": "a"})
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) write(file, content string) {
	w.t.Helper()
	folder := filepath.Join(w.folders, "east")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		w.t.Fatal(err)
	}
	tmp := filepath.Join(folder, "."+file)
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(folder, file)); err != nil {
		w.t.Fatal(err)
	}
}

// podAddr is where the control plane thinks that a pod is.
func podAddr(name string) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, name[0]}), 8080)
}

// services declares services by name with the names of their pods, in one letter
// each. That called hidden is not exported.
func (w *world) services(of map[string]string) {
	w.t.Helper()
	var text strings.Builder
	for name, pods := range of {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: demo, annotations: {flatmesh.io/export: %q}}\n", name, fmt.Sprint(name != "hidden"))
		fmt.Fprintf(&text, "spec: {clusterIP: None, clusterIPs: [None], ports: [{name: grpc, port: 80, targetPort: 8080, protocol: TCP, appProtocol: grpc}]}\n")
		fmt.Fprintf(&text, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-1, namespace: demo, labels: {kubernetes.io/service-name: %s}}\n", name, name)
		fmt.Fprintf(&text, "addressType: IPv4\nports: [{name: grpc, port: 8080, protocol: TCP}]\nendpoints:\n")
		for _, p := range pods {
			fmt.Fprintf(&text, "- {addresses: [%s], nodeName: n1, conditions: {ready: true, serving: true, terminating: false}}\n", podAddr(string(p)).Addr())
		}
	}
	w.write("services.yaml", text.String())
}

func sniOf(service string) string { return "outbound_.80_._." + service + ".demo.svc.cluster.local" }

// pod makes a pod that says its name to whoever connects, and then echoes.
func (w *world) pod(name string) {
	w.t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{w.cert}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	w.pods[podAddr(name)] = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.WriteString(c, name); err == nil {
					_, _ = io.Copy(c, c)
				}
			}()
		}
	}()
}

func (w *world) dialPod(ctx context.Context, pod netip.AddrPort) (*net.TCPConn, error) {
	at, ok := w.pods[pod]
	if !ok {
		return nil, fmt.Errorf("there is no pod %v", pod)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// start starts the control plane, again at the same address.
func (w *world) start() {
	w.t.Helper()
	w.log = newLogged()
	w.options.Log = slog.New(w.log)
	w.options.Source = dir.New(w.folders, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- controlplane.Run(ctx, w.options) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the control plane: %v", err)
		}
	})
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case w.addr = <-w.log.addr:
		w.options.Listen = w.addr
	case err := <-ended:
		w.t.Fatalf("the control plane ends: %v", err)
	case <-late.C:
		w.t.Fatal("the control plane does not start")
	}
}

// token writes a token for a gateway to a file.
func (w *world) token(file, gateway string) {
	w.t.Helper()
	a, err := pki.OpenAuthority(controlplane.PKIDir(w.options.StateDir), w.options.Mesh)
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := a.CreateGatewayToken("east", gateway, time.Hour, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// gatewayOptions are those of a gateway on loopback, with a token.
func (w *world) gatewayOptions() options {
	w.t.Helper()
	folder := w.t.TempDir()
	o := options{
		cluster: "east", name: "gw", controlPlane: w.addr, tokenFile: filepath.Join(folder, "token"),
		stateDir: filepath.Join(folder, "state"), runDir: filepath.Join(folder, "run"),
		addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
		listen:    []netip.Addr{netip.MustParseAddr("127.0.0.1")}, ports: []uint16{0}, http: freeAddr(w.t),
		drainTime: patience, maxConnections: 100, helloTimeout: patience, connectTimeout: patience, idleTimeout: time.Hour,
		version: "v1", now: time.Now, dial: w.dialPod,
	}
	w.token(o.tokenFile, o.name)
	return o
}

// freeAddr returns an address where nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// running is a gateway that runs.
type running struct {
	t     *testing.T
	o     options
	log   logged
	end   func() // asks it to end
	ended func() error
}

func (w *world) runGateway(o options) *running {
	w.t.Helper()
	g := &running{t: w.t, o: o, log: newLogged()}
	o.log = slog.New(g.log)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, o) }()
	g.end = cancel
	g.ended = sync.OnceValue(func() error {
		late := time.NewTimer(2 * patience)
		defer late.Stop()
		select {
		case err := <-ended:
			return err
		case <-late.C:
			return errors.New("it does not end")
		}
	})
	w.t.Cleanup(g.stop)
	eventually(w.t, "the gateway answers", func() bool {
		var s gatewayStatus
		if cli.Ask(w.t.Context(), "gateway", adminSocket(o.runDir), "GET", "/status", &s) == nil {
			return true
		}
		if len(ended) > 0 {
			w.t.Fatalf("the gateway ends: %v", g.ended())
		}
		return false
	})
	return g
}

// stop ends the gateway.
func (g *running) stop() {
	g.end()
	if err := g.ended(); err != nil {
		g.t.Errorf("the gateway: %v", err)
	}
}

func (g *running) status() (s gatewayStatus) {
	g.t.Helper()
	if err := cli.Ask(context.Background(), "gateway", adminSocket(g.o.runDir), "GET", "/status", &s); err != nil {
		g.t.Fatal(err)
	}
	return s
}

// until waits for a status.
func (g *running) until(what string, ok func(gatewayStatus) bool) {
	g.t.Helper()
	eventually(g.t, what, func() bool { return ok(g.status()) })
}

// untilHealthy waits until the gateway knows everything from the control plane.
func (g *running) untilHealthy() {
	g.t.Helper()
	g.until("healthy", gatewayStatus.healthy)
}

// connect opens a connection to a service and returns which pod answers.
func (g *running) connect(service string) (net.Conn, string, error) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: patience},
		Config:    &tls.Config{ServerName: sniOf(service), InsecureSkipVerify: true},
	}
	c, err := d.DialContext(g.t.Context(), "tcp", g.status().Listening[0])
	if err != nil {
		return nil, "", err
	}
	g.t.Cleanup(func() { c.Close() })
	name, err := read(c, 1)
	return c, name, err
}

// answer returns which pod of a service answers, or the error instead.
func (g *running) answer(service string) string {
	c, name, err := g.connect(service)
	if err != nil {
		return err.Error()
	}
	c.Close()
	return name
}

func (g *running) untilAnswer(service, want string) {
	g.t.Helper()
	eventually(g.t, service+" answers "+want, func() bool { return strings.Contains(g.answer(service), want) })
}

const refused = "unrecognized name"

// say sends a byte over a connection and reports whether it comes back.
func say(c net.Conn) error {
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	got, err := read(c, 1)
	if err == nil && got != "x" {
		return fmt.Errorf("got %q back", got)
	}
	return err
}

func read(c net.Conn, n int) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	return string(b), err
}

// get asks the HTTP address.
func (g *running) get(path string) (code int, body string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "GET", "http://"+g.o.http+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
