package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
)

// The kernel's own defaults take more than two minutes.
func TestControlPlaneHostGone(t *testing.T) {
	gw, cp := nstest.New(t, "gateway"), nstest.New(t, "control plane")
	nstest.Veth(t, gw, "eth0", cp, "eth0", 1500)
	gw.Addr(t, "eth0", netip.MustParsePrefix("192.0.2.1/24"))
	cp.Addr(t, "eth0", netip.MustParsePrefix("192.0.2.2/24"))
	var l net.Listener
	if err := cp.Do(func() (err error) { l, err = net.Listen("tcp", "192.0.2.2:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var c net.Conn
	if err := gw.Do(func() (err error) { c, err = dialControlPlane(t.Context(), l.Addr().String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if err := cp.NL.LinkSetDown(cp.Link(t, "eth0")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("reading from a host that is gone: %v", err)
	}
}
