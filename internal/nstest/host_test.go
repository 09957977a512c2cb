package nstest_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/flatmesh/flatmesh/internal/nstest"
)

func TestHosts(t *testing.T) {
	a, b := nstest.New(t, "a"), nstest.New(t, "b")
	nstest.Veth(t, a, "up0", b, "up0", 1400)
	a.Addr(t, "up0", netip.MustParsePrefix("192.0.2.1/24"))
	b.Addr(t, "up0", netip.MustParsePrefix("192.0.2.2/24"))
	b.Addr(t, "lo", netip.MustParsePrefix("198.51.100.1/32"))
	a.Addr(t, "up0", netip.MustParsePrefix("2001:db8::1/64"))
	b.Addr(t, "up0", netip.MustParsePrefix("2001:db8::2/64"))
	a.Route(t, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParseAddr("192.0.2.2"), "")

	for _, to := range []string{"198.51.100.1:4000", "[2001:db8::2]:4000"} {
		t.Run(to, func(t *testing.T) {
			var server, client net.Conn
			must(t, b.Do(func() (err error) {
				server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
				return err
			}))
			defer server.Close()
			must(t, a.Do(func() (err error) {
				client, err = net.Dial("udp", to)
				return err
			}))
			defer client.Close()
			_, err := client.Write([]byte("hello"))
			must(t, err)
			buf := make([]byte, 16)
			n, err := server.Read(buf)
			must(t, err)
			if string(buf[:n]) != "hello" {
				t.Fatalf("got %q", buf[:n])
			}
		})
	}
}

func TestIsolation(t *testing.T) {
	a, b := nstest.New(t, "a"), nstest.New(t, "b")
	nstest.Veth(t, a, "fmx0", b, "fmy0", 1500)
	a.Sysctl(t, "net/ipv4/conf/fmx0/forwarding", "1")

	touch := func() error { return os.WriteFile("/run/wireguard/fmx0.sock", nil, 0o600) }
	must(t, a.Do(touch))
	if _, err := os.Stat("/run/wireguard/fmx0.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a host's /run/wireguard shows on the machine: %v", err)
	}
	if out, err := a.Run(t, "ls", "/run/wireguard"); err != nil || strings.TrimSpace(out) != "fmx0.sock" {
		t.Errorf("a child does not see its host's /run/wireguard: %q, %v", out, err)
	}
	if out, err := b.Run(t, "ls", "/run/wireguard", "/sys/class/net"); err != nil || strings.Contains(out, "fmx0") || !strings.Contains(out, "fmy0") {
		t.Errorf("hosts share files: %q, %v", out, err)
	}
}

func TestProcess(t *testing.T) {
	h := nstest.New(t, "a")
	p := h.Start(t, "sleep", "600")
	must(t, p.Signal(syscall.Signal(0)))
	p.Kill()
	if err := p.Wait(); err == nil {
		t.Error("a killed process ended well")
	}
	p.Kill()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
