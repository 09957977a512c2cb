package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/gateway"
)

// A client gets through flatmesh's gateway to the pods what it gets without it.
func TestLoadThroughTheGateway(t *testing.T) {
	config, err := podTLS()
	if err != nil {
		t.Fatal(err)
	}
	listen := func(handle func(net.Conn) error) netip.AddrPort {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go acceptAll(ln, handle)
		return ln.Addr().(*net.TCPAddr).AddrPort()
	}
	bulkPod, briefPod := listen(func(c net.Conn) error { return sendRecords(c, config) }), listen(answerOnce)
	p := gateway.New(gateway.Options{})
	p.SetRoutes(gateway.Routes{bulkName: {bulkPod}, briefName: {briefPod}})
	ln, err := gateway.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go p.Serve(t.Context(), ln) //nolint:errcheck // it ends with the test
	hello, err := clientHello(t.Context(), briefName)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{briefPod.String(), ln.Addr().String()} {
		if err := brief(t.Context(), to, hello); err != nil {
			t.Errorf("brief to %s: %v", to, err)
		}
	}
	for _, to := range []string{bulkPod.String(), ln.Addr().String()} {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := tls.Client(c, &tls.Config{ServerName: bulkName, InsecureSkipVerify: true}).Handshake(); err != nil {
			t.Errorf("handshake with %s: %v", to, err)
		}
		if n, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
			t.Errorf("bulk from %s: %d bytes: %v", to, n, err)
		}
	}
}

func TestHAProxyConfig(t *testing.T) {
	file, err := writeHAProxyConfig(t.TempDir(), 2, []string{"192.0.2.1:15443"}, netip.MustParseAddr("10.2.0.3"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nbthread 2\n", "  bind 192.0.2.1:15443\n  tcp-request", "req.ssl_sni -i " + bulkName, "  server pod3 10.2.0.3:9083\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the configuration lacks %q:\n%s", want, b)
		}
	}
}
