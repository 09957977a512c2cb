package gateway

import (
	"container/list"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// End is how an admitted connection ended.
type End string

// The ends, as metrics have them.
const (
	EndClosed  End = "closed"  // both sides had finished
	EndReset   End = "reset"   // one side broke it, and the other was reset
	EndIdle    End = "idle"    // no byte moved for Options.IdleTimeout
	EndSilent  End = "silent"  // one side is gone without a word, see Options.SilenceTimeout; the other was reset
	EndDrained End = "drained" // cut by Drain
)

func ends() []End { return []End{EndClosed, EndReset, EndIdle, EndSilent, EndDrained} }

// endEvicted is the end of a connection that was never admitted: another one took
// its place while it said nothing.
const endEvicted End = "evicted"

// conn is one client's connection, from accept until both sides have ended.
type conn struct {
	proxy  *Proxy
	client *net.TCPConn
	// place is where it stands in list; both are guarded by Proxy.mu.
	place *list.Element
	list  *list.List

	moved atomic.Uint64 // bytes, both ways

	mu     sync.Mutex         // guards what follows
	pod    *net.TCPConn       // nil until connected
	cancel context.CancelFunc // ends the connect under way; may be nil
	why    End                // "" while it runs
	quiet  quiet
}

// serve is the whole life of a connection. ctx does not end by itself.
func (c *conn) serve(ctx context.Context) {
	p := c.proxy
	defer p.leave(c)
	h := p.newHello(c.client)
	svc, reason := c.hello(h)
	var b *backend
	if reason == "" {
		b, reason = c.connect(ctx, h.sni, svc)
	}
	if reason != "" {
		c.refuse(reason, h)
		p.keepHello(h)
		return
	}
	defer b.end()
	p.counts.admitted.Add(1)
	p.counts.active.Add(1)
	c.run(h)
	p.counts.active.Add(-1)
	p.counts.ended[c.ended()].Add(1)
}

// hello reads the ClientHello and finds its service.
func (c *conn) hello(h *helloReader) (*service, Reason) {
	p := c.proxy
	if err := c.client.SetReadDeadline(time.Now().Add(p.options.HelloTimeout)); err != nil {
		return nil, ClientGone
	}
	if reason := h.readHello(p.helloConfig); reason != "" {
		return nil, reason
	}
	svc := p.routes.find(h.sni)
	switch {
	case svc == nil:
		return nil, UnknownSNI
	case len(svc.backends) == 0:
		return nil, NoBackend
	case !p.promote(c):
		return nil, TooMany
	case c.client.SetReadDeadline(time.Time{}) != nil:
		return nil, ClientGone
	}
	return svc, ""
}

// connect finds a pod that accepts, which then has one connection more.
func (c *conn) connect(ctx context.Context, sni string, svc *service) (*backend, Reason) {
	p := c.proxy
	deadline := time.Now().Add(p.options.ConnectBudget)
	var tried []*backend
	for range p.options.ConnectTries {
		now := time.Now()
		if !now.Before(deadline) {
			break
		}
		b := svc.choose(now, tried)
		if b == nil {
			break
		}
		failures := b.failures.Load()
		err := c.dial(ctx, b, min(p.options.ConnectTimeout, deadline.Sub(now)))
		if err == nil {
			b.succeeded()
			return b, ""
		}
		b.end()
		if c.ended() != "" {
			break
		}
		tried = append(tried, b)
		if !isOurs(err) {
			b.failed(failures, errors.Is(err, unix.ECONNREFUSED), time.Now())
		}
		p.connectFailed(sni, b, err)
	}
	return nil, ConnectFailed
}

func (c *conn) dial(ctx context.Context, b *backend, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	pod, err := c.proxy.options.Dial(ctx, b.addr)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		pod.Close()
		return net.ErrClosed
	}
	c.pod = pod
	return nil
}

// isOurs reports whether a connect failed for want of something in this process
// or host, which says nothing about the pod.
func isOurs(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// run replays the ClientHello and moves bytes until both sides have ended.
func (c *conn) run(h *helloReader) {
	p := c.proxy
	c.watch()
	n, err := c.pod.Write(h.buf)
	c.toPod(n)
	p.keepHello(h)
	if err != nil {
		c.end(EndReset)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.half(c.client, c.pod, c.toClient)
	}()
	c.half(c.pod, c.client, c.toPod)
	<-done
	c.end(EndClosed)
}

// half moves one direction. Its end is passed on as what it was: the end of the
// stream, with the other direction going on, or a reset of both.
func (c *conn) half(dst, src *net.TCPConn, moved func(int)) {
	err := c.proxy.pipes.splice(dst, src, moved)
	if err == nil {
		err = dst.CloseWrite()
	}
	switch {
	case errors.Is(err, unix.ETIMEDOUT): // by keepalive, or by the kernel's own patience
		c.end(EndSilent)
	case err != nil:
		c.end(EndReset)
	}
}

func (c *conn) toPod(n int) {
	c.moved.Add(uint64(n))
	c.proxy.counts.toPods.Add(uint64(n))
}

func (c *conn) toClient(n int) {
	c.moved.Add(uint64(n))
	c.proxy.counts.toClients.Add(uint64(n))
}

// end closes the connection, which all of its goroutines notice, and reports
// whether it was still running: the first reason counts.
func (c *conn) end(why End) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != "" {
		return false
	}
	c.why = why
	c.quiet.stop()
	if c.cancel != nil {
		c.cancel()
	}
	for _, s := range []*net.TCPConn{c.client, c.pod} {
		if s == nil {
			continue
		}
		if why == EndReset || why == EndSilent || why == endEvicted {
			_ = s.SetLinger(0) // closes with a reset: what was broken must not look whole
		}
		s.Close()
	}
	return true
}

// ended returns why the connection has ended, "" while it runs.
func (c *conn) ended() End {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// refuse counts, and tells the client and, once in a while, the operator.
func (c *conn) refuse(reason Reason, h *helloReader) {
	p := c.proxy
	switch c.ended() {
	case endEvicted:
		reason = TooMany
	case EndDrained:
		reason = Draining
	}
	p.refused(reason, c.client.RemoteAddr(), h.sni)
	if b := answer(reason, h); b != nil {
		tell(c.client, b)
	}
	c.end(EndClosed)
}
