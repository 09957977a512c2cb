package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive notices within 45 s that the other end of a quiet connection is gone,
// well before a NAT or a stateful firewall on the way forgets the connection.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 10 * time.Second, Count: 3}
}

// Listen opens a listener for Serve on a TCP address such as ":15443". Unlike
// net.Listen it takes no multipath TCP, which cannot be spliced, and it sets
// keepalive once on the listening socket, from which accepted ones inherit it.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	k := keepAlive()
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var setErr error
		err := c.Control(func(fd uintptr) {
			seconds := func(d time.Duration) int { return int(d / time.Second) }
			setErr = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(k.Idle)),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(k.Interval)),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Count),
			)
		})
		return errors.Join(err, setErr)
	}}
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("gateway: listen on TCP %s: %w", address, err)
	}
	return l, nil
}
