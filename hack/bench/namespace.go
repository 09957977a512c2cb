package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// hostsOf returns a lab's hosts by name.
func hostsOf(l *lab.Lab) (map[string]lab.Host, error) {
	list, err := l.Hosts()
	if err != nil {
		return nil, err
	}
	out := make(map[string]lab.Host, len(list))
	for _, h := range list {
		out[h.Name] = h
	}
	return out, nil
}

// inside runs f on a thread in the host's network namespace. Sockets that f
// opens stay there, whoever uses them; goroutines that f starts are not there.
func inside(h lab.Host, f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.GetFromName(h.Namespace)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- fmt.Errorf("enter %s: %w", h.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// withNetlink runs f with netlink in the host's network namespace.
func withNetlink(h lab.Host, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromName(h.Namespace)
	if err != nil {
		return fmt.Errorf("open %s: %w", h.Name, err)
	}
	defer ns.Close()
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", h.Name, err)
	}
	defer nl.Close()
	return f(nl)
}

func listenTCP(ctx context.Context, h lab.Host) (ln net.Listener, err error) {
	err = inside(h, func() error {
		ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(h.Addresses[0], 0).String())
		return err
	})
	return ln, err
}

func listenUDP(h lab.Host) (c *net.UDPConn, err error) {
	err = inside(h, func() error {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.Addresses[0], 0)))
		return err
	})
	return c, err
}

// dial connects from a host to where a listener of another host is.
func dial(ctx context.Context, h lab.Host, to net.Addr) (c net.Conn, err error) {
	err = inside(h, func() error {
		c, err = (&net.Dialer{}).DialContext(ctx, to.Network(), to.String())
		return err
	})
	return c, err
}
