package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func (g *gate) refusals(r Reason) int { return int(g.Stats().Refused[r]) }

// What cannot be admitted is refused with the right word, and counted.
func TestRefuse(t *testing.T) {
	g := start(t, Options{HelloTimeout: time.Second, MaxHello: 20000})
	g.SetRoutes(Routes{sni: {pod(t, echo)}, "empty.demo": nil, "dead.demo": {refusedPort(t)}})
	big := clientHello(t, &tls.Config{ServerName: sni, NextProtos: manyALPNs(120)})
	for _, c := range []struct {
		name string
		send []byte
		want Reason
		says string // how the answer begins
	}{
		{"unknown name", helloFor(t, "other.demo"), UnknownSNI, string(fatalAlert(112))},
		{"part of a name", helloFor(t, strings.TrimPrefix(sni, "outbound_")), UnknownSNI, string(fatalAlert(112))},
		{"address as name", bytes.Replace(helloFor(t, "sniname.x"), []byte("sniname.x"), []byte("127.0.0.1"), 1), UnknownSNI, string(fatalAlert(112))},
		{"no name", clientHello(t, &tls.Config{InsecureSkipVerify: true}), NoSNI, string(fatalAlert(109))},
		{"no ready pods", helloFor(t, "empty.demo"), NoBackend, string(fatalAlert(80))},
		{"dead pods", helloFor(t, "dead.demo"), ConnectFailed, string(fatalAlert(80))},
		{"HTTP", []byte("POST /x HTTP/1.1\r\nHost: a\r\n\r\n"), Plaintext, "HTTP/1.1 400 "},
		{"gRPC without TLS", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Plaintext, "HTTP/1.1 400 "},
		{"another protocol", []byte("SSH-2.0-OpenSSH_9.9\r\n"), Plaintext, ""},
		{"garbage", []byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, BadHello, "\x15\x03"},
		{"too large", big, HelloTooLarge, string(fatalAlert(80))},
		{"half a hello", helloFor(t, sni)[:100], HelloTimeout, ""},
		{"nothing", nil, HelloTimeout, ""},
	} {
		before := g.refusals(c.want)
		conn := g.dial()
		send(t, conn, c.send)
		got, err := io.ReadAll(conn)
		if !strings.HasPrefix(string(got), c.says) || c.says == "" && len(got) > 0 {
			t.Errorf("%s: answered %q, want %q", c.name, got, c.says)
		}
		if c.says != "" && err != nil {
			t.Errorf("%s: after the answer: %v", c.name, err)
		}
		eventually(t, c.name+" counted as "+string(c.want), func() bool { return g.refusals(c.want) == before+1 })
	}
	// One that closes before it has said all, as health checks of load balancers do.
	conn := g.dial()
	send(t, conn, helloFor(t, sni)[:100])
	conn.Close()
	eventually(t, "a client that went is counted", func() bool { return g.refusals(ClientGone) == 1 })
	if n := g.log.count("client-gone"); n != 0 {
		t.Errorf("clients that went are in the log %d times", n)
	}
}

// A TLS client is told why, in words of its own.
func TestRefuseTellsTLSClients(t *testing.T) {
	g := start(t, Options{})
	g.Set(sni, nil)
	for name, want := range map[string]string{
		"other.demo": "tls: unrecognized name",
		"":           "tls: missing extension",
		sni:          "tls: internal error",
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			err := tls.Client(g.dial(), &tls.Config{ServerName: name, InsecureSkipVerify: true, MaxVersion: version}).Handshake()
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("name %q, version %x: %v, want %s", name, version, err, want)
			}
		}
	}
}

// An answer reaches a client that has sent more than was read.
func TestRefuseWithUnreadBytes(t *testing.T) {
	g := start(t, Options{})
	conn := g.dial()
	send(t, conn, append(helloFor(t, "other.demo"), make([]byte, 100<<10)...))
	expect(t, conn, fatalAlert(112))
	expectEOF(t, conn)
}

// The log names the variable that gRPC clients without SNI lack, once.
func TestNoSNILog(t *testing.T) {
	g := start(t, Options{})
	for range 20 {
		conn := g.dial()
		send(t, conn, clientHello(t, &tls.Config{InsecureSkipVerify: true}))
		expect(t, conn, fatalAlert(109))
		conn.Close()
	}
	eventually(t, "20 counted", func() bool { return g.refusals(NoSNI) == 20 })
	if n := g.log.count("GRPC_EXPERIMENTAL_XDS_SNI=true"); n != 1 {
		t.Errorf("the log tells of it %d times, want once", n)
	}
}

// Clients that say nothing make room for those that do, and take no more memory
// or goroutines than they are allowed.
func TestDalliersMakeRoom(t *testing.T) {
	g := start(t, Options{HelloTimeout: time.Hour, MaxHellos: 8, MaxConnections: 64})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	running := g.echoed(sni)
	var silent []*net.TCPConn
	for range 40 {
		c := g.dial()
		send(t, c, []byte{22, 3, 1}) // and no more
		silent = append(silent, c)
	}
	for range 10 {
		g.echoed(sni).Close()
	}
	eventually(t, "no more than 8 wait", func() bool { return g.Stats().Waiting <= 8 })
	if n := g.refusals(TooMany); n < 40-8 {
		t.Errorf("%d refused, want the oldest %d at least", n, 40-8)
	}
	if _, err := io.ReadAll(silent[0]); err == nil {
		t.Error("the oldest was closed without a reset")
	}
	send(t, running, []byte("still here"))
	expect(t, running, []byte("still here"))
}

func TestTooManyConnections(t *testing.T) {
	g := start(t, Options{MaxConnections: 3})
	g.Set(sni, []netip.AddrPort{pod(t, echo)})
	var open []*net.TCPConn
	for range 3 {
		open = append(open, g.echoed(sni))
	}
	c, err := net.Dial("tcp", g.addr) // the reset may come before it returns
	if err == nil {
		_, err = io.ReadAll(c)
		c.Close()
	}
	if err == nil {
		t.Error("one too many was not reset")
	}
	eventually(t, "it is counted", func() bool { return g.refusals(TooMany) == 1 })
	open[0].Close()
	eventually(t, "there is room", func() bool { return g.Stats().Active == 2 && g.Stats().Waiting == 0 })
	g.echoed(sni)
}

// A connection that is cut before it is admitted is counted as such.
func TestRefusedByDrain(t *testing.T) {
	g := start(t, Options{HelloTimeout: time.Hour})
	c := g.dial()
	send(t, c, []byte{22})
	eventually(t, "it is in", func() bool { return g.Stats().Waiting == 1 })
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Drain(now); err == nil {
		t.Error("Drain says nothing of the connection")
	}
	if g.refusals(Draining) != 1 {
		t.Errorf("refused: %v", g.Stats().Refused)
	}
}
