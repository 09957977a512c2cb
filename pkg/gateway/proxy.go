package gateway

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Proxy admits connections from any number of listeners. Make it with New; all
// of its methods may be called at any time from any goroutine.
type Proxy struct {
	options     Options
	helloConfig *tls.Config
	hellos      sync.Pool // of *helloReader
	routes      table
	pipes       pipes
	counts      counts
	say         sayings

	// tasks counts calls of Serve and connections. A connection joins while its
	// Serve is counted, so that Drain, which waits for none, misses no one.
	tasks sync.WaitGroup

	mu        sync.Mutex
	listeners map[*net.Listener]struct{}
	draining  chan struct{} // closed by Drain
	open      int           // connections, in either list or about to leave
	waiting   list.List     // of *conn without a ClientHello, the oldest first
	admitted  list.List     // of *conn beyond that
}

// New returns a Proxy without routes, which refuses everything.
func New(options Options) *Proxy {
	p := &Proxy{
		options:     options.withDefaults(),
		helloConfig: helloConfig(),
		listeners:   map[*net.Listener]struct{}{},
		draining:    make(chan struct{}),
	}
	newCounts(&p.counts)
	newSayings(&p.say)
	p.pipes.open = unix.Pipe2
	return p
}

// SetRoutes replaces all routes. Connections that run stay as they are, also
// those to pods that are not in routes any more; the same goes for Set and Remove.
func (p *Proxy) SetRoutes(routes Routes) { p.routes.replace(routes) }

// Set replaces the pods of one server name, and makes it known.
func (p *Proxy) Set(sni string, pods []netip.AddrPort) { p.routes.set(sni, pods) }

// Remove makes a server name unknown. One that is unknown already is no error.
func (p *Proxy) Remove(sni string) { p.routes.remove(sni) }

// Serve admits connections from l, best one of Listen, until ctx ends or Drain is
// called; then it returns nil. It closes l, and leaves running connections to Drain. Where accepting fails, for want of file descriptors for
// instance, it tries again; an error means that l was closed by someone else or is
// of the wrong kind.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if !p.begin(&l) {
		return nil
	}
	defer p.finish(&l)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	connections := context.WithoutCancel(ctx)
	for pause := time.Duration(0); ; {
		accepted, err := l.Accept()
		if err != nil {
			switch {
			case ctx.Err() != nil || p.isDraining():
				return nil
			case errors.Is(err, net.ErrClosed):
				return fmt.Errorf("gateway: accept on %v: %w", l.Addr(), err)
			}
			p.acceptFailed(l.Addr(), err)
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.pause(ctx, pause)
			continue
		}
		pause = 0
		client, ok := accepted.(*net.TCPConn)
		if !ok {
			accepted.Close()
			return fmt.Errorf("gateway: accept on %v: got a %T, which cannot be spliced: give Serve a TCP listener", l.Addr(), accepted)
		}
		if c := p.enter(client); c != nil {
			go c.serve(connections)
		}
	}
}

func (p *Proxy) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-p.draining:
	}
}

// CutError is Drain's error where it had to cut connections.
type CutError struct {
	// Connections is how many were cut.
	Connections int
}

// Error implements error.
func (e *CutError) Error() string {
	return fmt.Sprintf("gateway: %d connections had not ended in time and were cut", e.Connections)
}

// Drain ends the Proxy: it closes all listeners at once, waits for the connections
// to end by themselves until ctx ends, and then cuts those that remain, which its
// error, a *CutError, counts. Clients should have been led elsewhere before. When
// it returns nothing of the Proxy runs or is open any more.
func (p *Proxy) Drain(ctx context.Context) error {
	p.mu.Lock()
	if !p.isDraining() {
		close(p.draining)
	}
	for l := range p.listeners {
		(*l).Close()
	}
	p.mu.Unlock()

	done := make(chan struct{})
	go func() {
		defer close(done)
		p.tasks.Wait()
	}()
	cut := 0
	select {
	case <-done:
	case <-ctx.Done():
		cut = p.cut(done)
	}
	p.pipes.closeFree()
	if cut > 0 {
		return &CutError{Connections: cut}
	}
	return nil
}

// cut ends every connection and returns how many that were.
func (p *Proxy) cut(done <-chan struct{}) (n int) {
	// A Serve that has just accepted may still add one.
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		var all []*conn
		p.mu.Lock()
		for _, l := range []*list.List{&p.waiting, &p.admitted} {
			for e := l.Front(); e != nil; e = e.Next() {
				all = append(all, e.Value.(*conn))
			}
		}
		p.mu.Unlock()
		for _, c := range all {
			if c.end(EndDrained) {
				n++
			}
		}
		select {
		case <-done:
			return n
		case <-again.C:
		}
	}
}

func (p *Proxy) isDraining() bool {
	select {
	case <-p.draining:
		return true
	default:
		return false
	}
}

// begin registers a Serve, and refuses it once Drain has begun.
func (p *Proxy) begin(l *net.Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isDraining() {
		return false
	}
	p.listeners[l] = struct{}{}
	p.tasks.Add(1)
	return true
}

func (p *Proxy) finish(l *net.Listener) {
	p.mu.Lock()
	delete(p.listeners, l)
	p.mu.Unlock()
	p.tasks.Done()
}

// enter takes a connection in, or refuses it and returns nil.
func (p *Proxy) enter(client *net.TCPConn) *conn {
	c := &conn{proxy: p, client: client}
	p.mu.Lock()
	if p.open >= p.options.MaxConnections {
		p.mu.Unlock()
		p.refused(TooMany, client.RemoteAddr(), "")
		_ = client.SetLinger(0)
		client.Close()
		return nil
	}
	p.open++
	p.tasks.Add(1)
	p.move(c, &p.waiting)
	var oldest *conn
	if p.waiting.Len() > p.options.MaxHellos {
		oldest = p.waiting.Front().Value.(*conn)
		p.move(oldest, nil)
	}
	p.mu.Unlock()
	if oldest != nil {
		oldest.end(endEvicted)
	}
	return c
}

// promote takes a connection out of those that may have to make room. It returns
// false where it has had to.
func (p *Proxy) promote(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.list == nil {
		return false
	}
	p.move(c, &p.admitted)
	return true
}

// leave forgets a connection that has ended.
func (p *Proxy) leave(c *conn) {
	p.mu.Lock()
	p.move(c, nil)
	p.open--
	p.mu.Unlock()
	p.tasks.Done()
}

// move puts a connection at the end of a list, or in none. Must hold p.mu.
func (p *Proxy) move(c *conn, to *list.List) {
	if c.list != nil {
		c.list.Remove(c.place)
	}
	if c.list = to; to != nil {
		c.place = to.PushBack(c)
	}
}

// newHello returns a reader of a ClientHello from src.
func (p *Proxy) newHello(src *net.TCPConn) *helloReader {
	h, _ := p.hellos.Get().(*helloReader)
	if h == nil {
		h = &helloReader{buf: make([]byte, 0, firstRead)}
	}
	h.src, h.limit = src, p.options.MaxHello
	return h
}

// keepHello takes a reader back that is not needed any more. Large ones are rare
// and not worth keeping.
func (p *Proxy) keepHello(h *helloReader) {
	if cap(h.buf) == firstRead {
		*h = helloReader{buf: h.buf[:0]}
		p.hellos.Put(h)
	}
}
