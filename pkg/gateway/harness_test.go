package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	patience = 20 * time.Second
	sni      = "outbound_.80_._.echo.demo.svc.cluster.local"
)

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

// gate is a Proxy that serves on loopback.
type gate struct {
	*Proxy
	t    testing.TB
	addr string
	log  *logBuffer
}

// start runs a proxy until the test ends, and checks then that it leaves nothing.
func start(t testing.TB, o Options) *gate {
	t.Helper()
	checkLeaks(t)
	log := &logBuffer{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	g := &gate{Proxy: New(o), t: t, log: log}
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	g.serve(l)
	return g
}

func (g *gate) serve(l net.Listener) {
	served := make(chan error, 1)
	go func() { served <- g.Serve(context.Background(), l) }()
	g.t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		var cut *CutError
		if err := g.Drain(now); err != nil && !errors.As(err, &cut) {
			g.t.Errorf("Drain: %v", err)
		}
		if err := <-served; err != nil {
			g.t.Errorf("Serve: %v", err)
		}
	})
}

// checkLeaks fails the test when at its end there are more goroutines or file
// descriptors than now.
func checkLeaks(t testing.TB) {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		eventually(t, "as few goroutines as before", func() bool { return runtime.NumGoroutine() <= goroutines })
		eventually(t, "as few file descriptors as before", func() bool { return openFiles(t) <= files })
	})
}

func openFiles(t testing.TB) int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// dial opens a client's connection to the gateway.
func (g *gate) dial() *net.TCPConn { return dialTo(g.t, g.addr) }

func dialTo(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// open dials and sends a ClientHello for name, which it returns.
func (g *gate) open(name string) (*net.TCPConn, []byte) {
	g.t.Helper()
	c, hello := g.dial(), helloFor(g.t, name)
	send(g.t, c, hello)
	return c, hello
}

// echoed opens a connection to an echo pod and sees that it works.
func (g *gate) echoed(name string) *net.TCPConn {
	g.t.Helper()
	c, hello := g.open(name)
	expect(g.t, c, hello)
	return c
}

func send(t testing.TB, c io.Writer, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatalf("send: %v", err)
	}
}

func expect(t testing.TB, c io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("got %d bytes of %d: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("got other bytes than were sent: %.40q, want %.40q", got, want)
	}
}

func expectEOF(t testing.TB, c io.Reader) {
	t.Helper()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Fatalf("got %.40q, %v; want the end", b, err)
	}
}

// pod is a server whose connections are each given to handle, and closed after.
func pod(t testing.TB, handle func(c *net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return podOn(t, l, handle)
}

func podOn(t testing.TB, l *net.TCPListener, handle func(c *net.TCPConn)) netip.AddrPort {
	var mu sync.Mutex
	conns := map[*net.TCPConn]bool{}
	closed := false
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		closed = true
		for c := range conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			if closed {
				c.Close()
			}
			mu.Unlock()
			go func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func echo(c *net.TCPConn) {
	// Without its types io.Copy holds no pipe, which a test counts.
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	_ = c.CloseWrite()
}

// taken gives the test the connections that a pod has.
func taken(t testing.TB) (netip.AddrPort, <-chan *net.TCPConn) {
	ch := make(chan *net.TCPConn, 64)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	addr := pod(t, func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Now().Add(patience))
		ch <- c
		<-release
	})
	return addr, ch
}

// refusedPort is an address at which nobody listens.
func refusedPort(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func helloFor(t testing.TB, name string) []byte {
	t.Helper()
	return clientHello(t, &tls.Config{ServerName: name, InsecureSkipVerify: true})
}

// clientHello returns what crypto/tls sends first.
func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, config).Handshake()
		client.Close()
	}()
	var all []byte
	for message := []byte(nil); ; {
		header := make([]byte, 5)
		if _, err := io.ReadFull(server, header); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, binary.BigEndian.Uint16(header[3:]))
		if _, err := io.ReadFull(server, body); err != nil {
			t.Fatal(err)
		}
		all = append(append(all, header...), body...)
		message = append(message, body...)
		if want := 4 + int(message[1])<<16 + int(message[2])<<8 + int(message[3]); len(message) >= want {
			return all
		}
	}
}
