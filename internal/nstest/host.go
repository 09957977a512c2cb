// Package nstest makes hosts for tests: network namespaces, joined by veth
// pairs, in which a test opens sockets and starts processes.
//
// A Host is one OS thread that has left the test's network and mount
// namespaces. It has no name on disk, so nothing is left behind even when the
// test process is killed: the kernel drops the namespaces with their last user.
//
// It is for tests that need real interfaces and routes. It is not the lab: it
// knows nothing of clusters, agents or pods.
package nstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/testenv"
)

// Host is a network namespace together with a mount namespace of its own, whose
// /sys shows that network and whose /run/wireguard is private and empty.
type Host struct {
	// Name is for messages only.
	Name string
	// NS refers to the network namespace, for example to move a link into it.
	NS netns.NsHandle
	// NL speaks rtnetlink in the namespace, from any goroutine.
	NL *netlink.Handle

	calls chan func()
}

// New makes a host with its loopback up. It is removed when the test ends, with
// everything that Start started. The test needs root.
func New(t testing.TB, name string) *Host {
	t.Helper()
	testenv.NeedRoot(t)
	h := &Host{Name: name, calls: make(chan func())}
	ready := make(chan error)
	go h.serve(ready)
	if err := <-ready; err != nil {
		t.Fatalf("host %s: %v", name, err)
	}
	t.Cleanup(func() {
		h.NL.Close()
		close(h.calls)
		if err := h.NS.Close(); err != nil {
			t.Errorf("host %s: close namespace: %v", name, err)
		}
	})
	lo, err := h.NL.LinkByName("lo")
	if err == nil {
		err = h.NL.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("host %s: bring up loopback: %v", name, err)
	}
	return h
}

// serve is the host's thread. It never unlocks it, so that the thread, being
// in the wrong namespaces for everything else, ends with the goroutine.
func (h *Host) serve(ready chan<- error) {
	runtime.LockOSThread()
	if err := h.enter(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for f := range h.calls {
		f()
	}
}

func (h *Host) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	// Else the mounts below would show on the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/wireguard", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/wireguard", "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount /run/wireguard: %w", err)
	}
	// sysfs shows the network namespace of whoever mounted it.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	ns, err := netns.Get()
	if err != nil {
		return err
	}
	// Without the family it fails on kernels that lack, say, XFRM.
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	h.NS, h.NL = ns, nl
	return nil
}

// Do runs f on the host's thread. Sockets that f opens, links it looks up and
// processes it starts are the host's; goroutines that f starts are not, so
// sockets are opened in f and used elsewhere. Calls of one host run one after
// another: f must end soon, and must not call Do of the same host.
func (h *Host) Do(f func() error) error {
	err := make(chan error, 1)
	h.calls <- func() { err <- f() }
	return <-err
}

// Veth joins two hosts by a link, up at both ends.
func Veth(t testing.TB, a *Host, aIf string, b *Host, bIf string, mtu int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = aIf, mtu, netlink.NsFd(a.NS)
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: bIf, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(b.NS),
	}
	// Made from inside, so that no name on the machine can be in the way.
	if err := a.NL.LinkAdd(veth); err != nil {
		t.Fatalf("join %s:%s and %s:%s: %v", a.Name, aIf, b.Name, bIf, err)
	}
	a.Up(t, aIf)
	b.Up(t, bIf)
}

// Link finds an interface of the host.
func (h *Host) Link(t testing.TB, dev string) netlink.Link {
	t.Helper()
	l, err := h.NL.LinkByName(dev)
	if err != nil {
		t.Fatalf("%s: interface %s: %v", h.Name, dev, err)
	}
	return l
}

// Up brings an interface up.
func (h *Host) Up(t testing.TB, dev string) {
	t.Helper()
	if err := h.NL.LinkSetUp(h.Link(t, dev)); err != nil {
		t.Fatalf("%s: bring up %s: %v", h.Name, dev, err)
	}
}

// Addr adds an address with its prefix length. An IPv6 address is usable at
// once: duplicate address detection would only cost a test time.
func (h *Host) Addr(t testing.TB, dev string, p netip.Prefix) {
	t.Helper()
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.NL.AddrAdd(h.Link(t, dev), a); err != nil {
		t.Fatalf("%s: add %v to %s: %v", h.Name, p, dev, err)
	}
}

// Route adds a route to the main table: by a gateway where via is valid, else
// straight out of dev. dev may be empty where via says enough.
func (h *Host) Route(t testing.TB, dst netip.Prefix, via netip.Addr, dev string) {
	t.Helper()
	r := &netlink.Route{Dst: ipNet(dst)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else if dst.Addr().Is4() {
		r.Scope = unix.RT_SCOPE_LINK
	}
	if dev != "" {
		r.LinkIndex = h.Link(t, dev).Attrs().Index
	}
	if err := h.NL.RouteAdd(r); err != nil {
		t.Fatalf("%s: add route to %v via %v dev %q: %v", h.Name, dst, via, dev, err)
	}
}

// Sysctl writes a network setting, named as below /proc/sys:
// "net/ipv4/ip_forward".
func (h *Host) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	err := h.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	})
	if err != nil {
		t.Fatalf("%s: set %s to %s: %v", h.Name, name, value, err)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
