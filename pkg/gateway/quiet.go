package gateway

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is how often a connection is looked at, at least: a compromise between
// what that costs and how much later than due it ends.
const lookEvery = 15 * time.Second

// quiet is what is known of a connection at rest. It is guarded by conn.mu.
//
// Deadlines on the sockets would have to be moved with every byte, in both
// directions; a look now and then costs nothing in between.
type quiet struct {
	timer  *time.Timer
	every  time.Duration
	looked time.Time // when the last look was
	moved  uint64    // what had moved then
	since  time.Time // since when nothing moves
	heard  [2]time.Time
}

func (q *quiet) stop() {
	if q.timer != nil {
		q.timer.Stop()
	}
}

// watch begins to look after the connection.
func (c *conn) watch() {
	o := &c.proxy.options
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		return
	}
	q, now := &c.quiet, time.Now()
	q.every = min(lookEvery, max(min(o.IdleTimeout, o.SilenceTimeout)/4, time.Millisecond))
	q.looked, q.since, q.heard = now, now, [2]time.Time{now, now}
	q.timer = time.AfterFunc(q.every, c.look)
}

// look ends the connection where nothing can be expected of it any more.
func (c *conn) look() {
	if why := c.verdict(time.Now()); why != "" {
		c.end(why)
	}
}

func (c *conn) verdict(now time.Time) End {
	o := &c.proxy.options
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		return ""
	}
	q := &c.quiet
	if moved := c.moved.Load(); moved != q.moved {
		q.moved, q.since = moved, now
	} else if now.Sub(q.since) >= o.IdleTimeout {
		return EndIdle
	}
	for i, s := range [...]*net.TCPConn{c.client, c.pod} {
		info, err := state(s)
		switch {
		case err == unix.ETIMEDOUT:
			return EndSilent
		case err != nil:
			return EndReset
		case !owes(info, now.Sub(q.looked)):
			q.heard[i] = now
		case now.Sub(q.heard[i]) >= o.SilenceTimeout:
			return EndSilent
		}
	}
	q.looked = now
	q.timer.Reset(q.every)
	return ""
}

// unansweredTries is how many times in a row the kernel has to have tried: single
// tries get lost, and answers to probes are limited in rate by the other end.
const unansweredTries = 3

// owes reports whether the other end of a connection should have acknowledged
// data that was sent again, or probes of its closed window, and has been quiet for
// the given time. That of a slow reader does answer: the kernel asks it ever less
// often, and the answer to the last question stands for so long.
//
// The kernel gives up on a dead end after some 15 minutes, and keepalive is only
// for connections where everything is acknowledged. TCP_USER_TIMEOUT is no help:
// it ends those too whose reader is alive and has closed its window.
func owes(info *unix.TCPInfo, since time.Duration) bool {
	data := info.Retransmits >= unansweredTries && info.Last_ack_recv > info.Last_data_sent
	probes := info.Probes >= unansweredTries
	return (data || probes) && time.Duration(info.Last_ack_recv)*time.Millisecond >= since
}

// state returns a socket's TCP state, or the error that it has: while splicing
// waits for one side it does not notice a reset of the other.
func state(s *net.TCPConn) (info *unix.TCPInfo, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var errno int
		if errno, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if err == nil {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}
	})
	if controlErr != nil {
		return nil, controlErr
	}
	return info, err
}
