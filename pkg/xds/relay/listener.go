package relay

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// How many connections there may be. A gRPC client has one for each of its
// targets, an Envoy one.
const (
	maxConns    = 8192
	maxPodConns = 256
)

// podID tells pods apart: the cookie of a network namespace (SO_NETNS_COOKIE). All
// that runs in one pod has it in common, and so has all that runs in the host's.
type podID uint64

// client is who is at the other end of a connection, as the kernel knows it.
type client struct {
	pod podID
	// pid is 0 where this process cannot see that one.
	pid int32
}

// Network implements net.Addr.
func (client) Network() string { return "unix" }

// String names the client in logs.
func (c client) String() string { return fmt.Sprintf("pid %d of network namespace %d", c.pid, c.pod) }

// listener bounds the connections of each pod, so that one that opens many takes
// no other's.
type listener struct {
	*net.UnixListener
	refused atomic.Uint64

	mu   sync.Mutex
	open int
	pods map[podID]int
}

func newListener(l *net.UnixListener) *listener {
	return &listener{UnixListener: l, pods: map[podID]int{}}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		who, err := identify(c)
		if err == nil && l.admit(who.pod) {
			return &conn{UnixConn: c, client: who, release: sync.OnceFunc(func() { l.release(who.pod) })}, nil
		}
		l.refused.Add(1)
		_ = c.Close() // the client sees just that
	}
}

func (l *listener) admit(p podID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= maxConns || l.pods[p] >= maxPodConns {
		return false
	}
	l.open++
	l.pods[p]++
	return true
}

func (l *listener) release(p podID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.pods[p]--; l.pods[p] == 0 {
		delete(l.pods, p)
	}
}

func (l *listener) conns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// conn is a connection whose remote address says who the client is.
type conn struct {
	*net.UnixConn
	client  client
	release func()
}

// RemoteAddr returns the client.
func (c *conn) RemoteAddr() net.Addr { return c.client }

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.UnixConn.Close()
	c.release()
	return err
}

// identify asks the kernel who has connected.
func identify(c *net.UnixConn) (client, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return client{}, err
	}
	var who client
	var serr error
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who.pid = cred.Pid
		}
		// An accepted Unix socket is of the network namespace of who connected.
		var cookie uint64
		if cookie, serr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); serr == unix.ENOPROTOOPT {
			serr = nil // before Linux 5.14 all pods count as one
		}
		who.pod = podID(cookie)
	})
	if err == nil {
		err = serr
	}
	return who, err
}
