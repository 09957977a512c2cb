package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is what we have open on one of our tunnel addresses.
type socket struct {
	addr   netip.Addr
	udp    *net.UDPConn
	pinger *pinger // nil where raw sockets are not permitted
	broken bool    // guarded by Prober.mu
}

// listen opens a socket on a tunnel address, bound to the tunnel device, so that
// nothing of ours can leave by another. That there is no pinger is no error: it
// is returned apart.
func listen(ctx context.Context, addr netip.Addr, port uint16, link string, id uint16) (s *socket, pingErr, err error) {
	network := "udp4"
	if addr.Is6() {
		network = "udp6"
	}
	c, err := listenConfig(link).ListenPacket(ctx, network, netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return nil, nil, fmt.Errorf("listen for echoes on UDP %v: %w", netip.AddrPortFrom(addr, port), err)
	}
	s = &socket{addr: addr, udp: c.(*net.UDPConn)}
	s.pinger, pingErr = listenICMP(ctx, addr, link, id)
	return s, pingErr, nil
}

func (s *socket) close() {
	s.udp.Close()
	if s.pinger != nil {
		s.pinger.conn.Close()
	}
}

func listenConfig(link string) *net.ListenConfig {
	return &net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if link == "" {
			return nil
		}
		var bindErr error
		err := c.Control(func(fd uintptr) { bindErr = unix.BindToDevice(int(fd), link) })
		if bindErr != nil {
			return fmt.Errorf("bind to device %s: %w", link, bindErr)
		}
		return err
	}}
}

// tellsOfTunnel reports whether a failed send counts as a lost probe: the far end
// refused, or there is no route or no peer to it. Every other failure is ours (no
// buffers, a firewall, an address or a device that went) and says nothing.
func tellsOfTunnel(err error) bool {
	for _, errno := range []unix.Errno{unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENOKEY, unix.EDESTADDRREQ, unix.ECONNREFUSED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// tellsOfSocket reports whether a failure means that the socket has outlived its
// address or its device and must be opened anew.
func tellsOfSocket(err error) bool {
	for _, errno := range []unix.Errno{unix.ENODEV, unix.ENXIO, unix.EADDRNOTAVAIL, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
