package gateway

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"
)

func BenchmarkReadHello(b *testing.B) {
	hello, config := helloFor(b, sni), helloConfig()
	buf := make([]byte, 0, firstRead)
	b.ReportAllocs()
	for b.Loop() {
		h := &helloReader{src: bytes.NewReader(hello), limit: 64 << 10, buf: buf}
		if r := h.readHello(config); r != "" {
			b.Fatal(r)
		}
	}
}

// BenchmarkConnections is a whole connection: ClientHello through to the pod and
// back, and the end of both sides. "direct" is the same without the gateway.
func BenchmarkConnections(b *testing.B) {
	for _, way := range []string{"direct", "gateway"} {
		b.Run(way, func(b *testing.B) {
			g := start(b, Options{})
			echoes := pod(b, echo)
			g.Set(sni, []netip.AddrPort{echoes})
			addr := g.addr
			if way == "direct" {
				addr = echoes.String()
			}
			hello := helloFor(b, sni)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = c.Write(hello)
					_ = c.(*net.TCPConn).CloseWrite()
					if n, err := io.Copy(io.Discard, c); err != nil || int(n) != len(hello) {
						b.Errorf("%d bytes came back: %v", n, err)
					}
					c.Close()
				}
			})
		})
	}
}

// BenchmarkThroughput sends one way. "direct" is the same without the gateway.
func BenchmarkThroughput(b *testing.B) {
	for _, way := range []string{"direct", "gateway", "gateway without pipes"} {
		b.Run(way, func(b *testing.B) {
			g := start(b, Options{})
			done := make(chan struct{})
			addr := pod(b, func(c *net.TCPConn) {
				buf := make([]byte, 256<<10)
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, buf)
				done <- struct{}{}
			})
			g.Set(sni, []netip.AddrPort{addr})
			if way == "gateway without pipes" {
				g.pipes.open = func([]int, int) error { return io.ErrClosedPipe }
			}
			to := g.addr
			if way == "direct" {
				to = addr.String()
			}
			c := dialTo(b, to)
			send(b, c, helloFor(b, sni))
			block := make([]byte, 256<<10)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				send(b, c, block)
			}
			_ = c.CloseWrite()
			<-done
		})
	}
}

// BenchmarkRoundTrip is one small message there and back on an open connection.
func BenchmarkRoundTrip(b *testing.B) {
	for _, way := range []string{"direct", "gateway", "gateway without pipes"} {
		b.Run(way, func(b *testing.B) {
			g := start(b, Options{})
			echoes := pod(b, echo)
			g.Set(sni, []netip.AddrPort{echoes})
			if way == "gateway without pipes" {
				g.pipes.open = func([]int, int) error { return io.ErrClosedPipe }
			}
			addr := g.addr
			if way == "direct" {
				addr = echoes.String()
			}
			c, hello := dialTo(b, addr), helloFor(b, sni)
			send(b, c, hello)
			expect(b, c, hello)
			message := make([]byte, 200)
			b.ReportAllocs()
			for b.Loop() {
				send(b, c, message)
				expect(b, c, message)
			}
		})
	}
}
