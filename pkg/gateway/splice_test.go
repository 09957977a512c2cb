package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// through opens a connection through a gateway and returns both of its ends, the
// pod's after the ClientHello.
func through(t testing.TB, o Options) (g *gate, client, server *net.TCPConn) {
	t.Helper()
	g = start(t, o)
	addr, conns := taken(t)
	g.Set(sni, []netip.AddrPort{addr})
	client, hello := g.open(sni)
	server = <-conns
	expect(t, server, hello)
	return g, client, server
}

func (g *gate) ended(e End) bool { return g.Stats().Ended[e] == 1 && g.Stats().Active == 0 }

// random returns n bytes that do not repeat.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// Every byte arrives, in order, however the ClientHello was cut up, and also what
// came right behind it.
func TestReplay(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	for _, c := range helloCases(t) {
		if c.want != "" || c.sni != sni {
			continue
		}
		for _, size := range []int{1, 700, 1 << 20} {
			want := append(bytes.Clone(c.bytes), random(50_000)...)
			conn := g.dial()
			go func() {
				for rest := want; len(rest) > 0; {
					n := min(size, len(rest))
					if len(want)-len(rest) > len(c.bytes) {
						n = len(rest)
					}
					if _, err := conn.Write(rest[:n]); err != nil {
						return // which the reader notices
					}
					rest = rest[n:]
				}
				_ = conn.CloseWrite()
			}()
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s in pieces of %d: %d bytes came back of %d: %v", c.name, size, len(got), len(want), err)
			}
			conn.Close()
		}
	}
}

func TestHalfClose(t *testing.T) {
	for _, first := range []string{"client", "pod"} {
		g, a, b := through(t, Options{})
		if first == "pod" {
			a, b = b, a
		}
		send(t, a, []byte("last words"))
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expect(t, b, []byte("last words"))
		expectEOF(t, b)
		for range 3 {
			send(t, b, []byte("still talking"))
			expect(t, a, []byte("still talking"))
		}
		if g.Stats().Active != 1 {
			t.Errorf("%s closed its half: no connection is active", first)
		}
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expectEOF(t, a)
		eventually(t, "it ended as closed", func() bool { return g.ended(EndClosed) })
	}
}

func TestReset(t *testing.T) {
	for _, first := range []string{"client", "pod"} {
		g, a, b := through(t, Options{})
		if first == "pod" {
			a, b = b, a
		}
		_ = a.SetLinger(0)
		a.Close()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the %s reset its connection; the other end got %v", first, err)
		}
		eventually(t, "it ended as reset", func() bool { return g.ended(EndReset) })
	}
}

// clog sends from one end until nothing more is taken.
func clog(t testing.TB, c *net.TCPConn) {
	t.Helper()
	for b := make([]byte, 1<<20); ; {
		if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Write(b); n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
}

// A reset is passed on also while the gateway waits for the other end to read.
func TestResetBehindFullBuffers(t *testing.T) {
	g, client, server := through(t, Options{IdleTimeout: 2 * time.Second})
	clog(t, client)
	_ = client.SetLinger(0)
	client.Close()
	eventually(t, "it ended as reset", func() bool { return g.ended(EndReset) })
	if _, err := io.Copy(io.Discard, server); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the pod got %v, want a reset", err)
	}
}

func TestIdle(t *testing.T) {
	g, client, server := through(t, Options{IdleTimeout: time.Second})
	// Bytes of one direction keep both open.
	began := time.Now()
	for time.Since(began) < 1500*time.Millisecond {
		send(t, client, []byte("x"))
		expect(t, server, []byte("x"))
	}
	expectEOF(t, client)
	expectEOF(t, server)
	eventually(t, "it ended as idle", func() bool { return g.ended(EndIdle) })
}

// An end that acknowledges nothing any more is given up, and the other told.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		gone   string
		closed bool // whether its window was closed before
	}{{"client", false}, {"pod", false}, {"pod", true}} {
		g, a, b := through(t, Options{SilenceTimeout: 400 * time.Millisecond})
		if c.gone == "pod" {
			a, b = b, a
		}
		if c.closed {
			clog(t, b)
		}
		deafen(t, a)
		if !c.closed {
			send(t, b, []byte("are you there?"))
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the %s is gone (window closed before: %v); the other end got %v, want a reset", c.gone, c.closed, err)
		}
		eventually(t, "it ended as silent", func() bool { return g.ended(EndSilent) })
	}
}

// A reader that takes its time is not gone: only rest ends its connection.
func TestSlowReaderIsNotSilent(t *testing.T) {
	g, _, server := through(t, Options{SilenceTimeout: 400 * time.Millisecond, IdleTimeout: 1600 * time.Millisecond})
	clog(t, server)
	eventually(t, "it ended", func() bool { return g.Stats().Active == 0 })
	if !g.ended(EndIdle) {
		t.Errorf("it ended as %v, want idle", g.Stats().Ended)
	}
}

// A reader that stalls bounds what the gateway takes from the other end.
func TestBackpressure(t *testing.T) {
	g, client, server := through(t, Options{})
	clog(t, client)
	before := g.Stats().ToPods
	want := make([]byte, before)
	if _, err := io.ReadFull(server, want[:len(want)/2]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes on", func() bool { return g.Stats().ToPods > before })
}

// ioCounters returns the bytes that this process has read and written by read(2)
// and write(2) and their like. splice(2) does not count there.
func ioCounters(t testing.TB) (read, written int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skipf("needs /proc/self/io to see whether bytes are copied: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "rchar: %d", &read)
		_, _ = fmt.Sscanf(line, "wchar: %d", &written)
	}
	return read, written
}

// No byte passes through user space, unless there are no pipes; then it does, and
// everything works as well.
func TestNoCopy(t *testing.T) {
	const size = 32 << 20
	data := random(size)
	for _, pipes := range []bool{true, false} {
		g := start(t, Options{})
		if !pipes {
			g.pipes.open = func([]int, int) error { return unix.EMFILE }
		}
		g.Set(sni, []netip.AddrPort{pod(t, func(c *net.TCPConn) {
			_, _ = io.CopyN(io.Discard, c, int64(len(helloFor(t, sni))))
			_, _ = c.Write(data)
		})})
		client, _ := g.open(sni)
		read, written := ioCounters(t)
		got, err := io.ReadAll(client)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes of %d arrived, or others: %v", len(got), size, err)
		}
		read2, written2 := ioCounters(t)
		read, written = read2-read, written2-written
		if copied := read+written > 3*size; copied == pipes {
			t.Errorf("with pipes: %v; %d bytes were read and %d written to carry %d", pipes, read, written, size)
		}
	}
}

// A quiet connection holds no pipes.
func TestQuietConnectionsHoldNoPipes(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	before := openFiles(t)
	for range 100 {
		g.echoed(sni)
	}
	// A client, a pod and the gateway's two ends, all in this process.
	eventually(t, "4 sockets a connection and a few pipes", func() bool {
		return openFiles(t)-before <= 4*100+2*idlePipes
	})
}

func TestListenOptions(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialTo(t, l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string][3]int{
		"TCP_NODELAY":   {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		"SO_KEEPALIVE":  {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"TCP_KEEPIDLE":  {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		"TCP_KEEPINTVL": {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
		"TCP_KEEPCNT":   {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		"SO_PROTOCOL":   {unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP},
	} {
		_ = raw.Control(func(fd uintptr) {
			if v, err := unix.GetsockoptInt(int(fd), o[0], o[1]); err != nil || v != o[2] {
				t.Errorf("%s of an accepted connection: %d, %v; want %d", name, v, err, o[2])
			}
		})
	}
	if _, err := Listen(t.Context(), "127.0.0.1:none"); err == nil {
		t.Error("listening on a port without number is no error")
	}
}
