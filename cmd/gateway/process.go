package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/gateway"
	"github.com/flatmesh/flatmesh/pkg/pki/credentials"
)

// process is a gateway that runs.
type process struct {
	o            options
	started      time.Time
	proxy        *gateway.Proxy
	feed         *feed
	conversation *conversation
	listeners    []net.Listener
	// unsaved is why the routes are not on disk as they are.
	unsaved  atomic.Pointer[error]
	draining atomic.Bool
}

// run runs a gateway until ctx ends, and then until it has drained.
func run(ctx context.Context, o options) error {
	if err := o.validate(); err != nil {
		return err
	}
	for _, dir := range []string{o.stateDir, o.runDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	unlock, err := lock(o.lockFile())
	if err != nil {
		return err
	}
	defer unlock()
	p := &process{o: o, started: time.Now().UTC()}
	if err := p.open(); err != nil {
		return err
	}
	admin, err := listenAdmin(ctx, o.runDir)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := p.listen(ctx); err != nil {
		return err
	}
	defer p.close()
	var observed net.Listener
	if o.http != "" {
		if observed, err = (&net.ListenConfig{}).Listen(ctx, "tcp", o.http); err != nil {
			return fmt.Errorf("open the address for metrics and health (--http): %w", err)
		}
		defer observed.Close()
	}
	checkFiles(o)
	return p.serve(ctx, admin, observed)
}

// open reads what an earlier run left, and makes the parts of p.
func (p *process) open() error {
	o := p.o
	routes, problem, err := loadRoutes(o.routesFile(), o.cluster)
	if err != nil {
		return err
	}
	if problem != nil {
		o.log.Error("no routes from an earlier run; they come from the control plane", "err", problem)
	}
	creds, err := credentials.Open(credentials.Options{
		Identity: o.identity(), Dir: o.stateDir, TokenFile: o.tokenFile, Log: o.log, Now: o.now,
	})
	if err != nil {
		return err
	}
	p.proxy = gateway.New(gateway.Options{
		Log: o.log, MaxConnections: o.maxConnections, Dial: o.dial,
		HelloTimeout: o.helloTimeout, ConnectTimeout: o.connectTimeout, IdleTimeout: o.idleTimeout,
	})
	p.conversation = &conversation{o: o, log: o.log, creds: creds}
	p.feed = newFeed(p.proxy, routes, p.conversation.heard, o.log)
	p.conversation.feed = p.feed
	return nil
}

// listen opens all ports, or none.
func (p *process) listen(ctx context.Context) error {
	for _, at := range p.o.endpoints() {
		l, err := gateway.Listen(ctx, at)
		if err != nil {
			p.close()
			if errors.Is(err, unix.EADDRINUSE) {
				err = fmt.Errorf("%w: another program has this port: stop it, or choose others by --ports, --standby-ports or --listen-address", err)
			}
			return err
		}
		p.listeners = append(p.listeners, l)
	}
	return nil
}

func (p *process) close() {
	for _, l := range p.listeners {
		l.Close()
	}
}

// serve runs everything until ctx ends, and drains.
func (p *process) serve(ctx context.Context, admin, observed net.Listener) error {
	// All but the conversation outlives ctx: it is needed to drain.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, life := errgroup.WithContext(life)
	conversing, hush := context.WithCancel(life)
	defer context.AfterFunc(ctx, hush)()
	defer hush()

	p.o.log.Info("gateway runs", "cluster", p.o.cluster, "gateway", p.o.name, "version", p.o.version,
		"listen", p.o.endpoints(), "addresses", p.o.addresses, "routes", p.feed.source())
	for _, l := range p.listeners {
		g.Go(func() error { return p.proxy.Serve(life, l) })
	}
	g.Go(func() error { return serveHTTP(life, admin, p.admin()) })
	if observed != nil {
		g.Go(func() error { return serveHTTP(life, observed, p.observed()) })
	}
	g.Go(func() error { p.feed.keep(life, p.o.routesFile(), p.o.cluster, p.kept); return nil })
	g.Go(func() error {
		p.conversation.run(conversing)
		if life.Err() == nil {
			p.drain(life)
			end()
		}
		return nil
	})
	return g.Wait()
}

// kept notes whether the routes are on disk, and tells what is new.
func (p *process) kept(err error) {
	old := p.unsaved.Swap(&err)
	failed := old != nil && *old != nil
	switch {
	case err != nil && !failed:
		p.o.log.Error("routes not kept on disk; trying again", "err", err)
	case err == nil && failed:
		p.o.log.Info("routes kept on disk again")
	}
}

// drain ends the proxy after the control plane has been left: first it lets clients
// learn that, then connections end. A signal ends it at once.
func (p *process) drain(ctx context.Context) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	p.draining.Store(true)
	p.o.log.Info("ending: new connections are accepted until clients have learned of it", "for", p.o.drainDelay, "connections", p.proxy.Stats().Active)
	timer := time.NewTimer(p.o.drainDelay)
	select {
	case <-timer.C:
	case <-ctx.Done():
		timer.Stop()
	}
	p.o.log.Info("no more connections are accepted", "connections", p.proxy.Stats().Active, "wait", p.o.drainTime)
	ctx, cancel := context.WithTimeout(ctx, p.o.drainTime)
	defer cancel()
	if err := p.proxy.Drain(ctx); err != nil {
		p.o.log.Warn("ended before all connections did", "err", err)
	}
}

// checkFiles warns where the system would refuse connections before the gateway
// does.
func checkFiles(o options) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	// Two sockets for each connection; those that move data at the time have a pipe
	// each way too, which is four more.
	if want := 2 * uint64(o.maxConnections); limit.Cur < want {
		o.log.Warn("the limit of open files is below what --max-connections may need: raise it (ulimit -n), or lower --max-connections", "limit", limit.Cur, "want", want)
	}
}

// lock makes sure that one gateway at a time uses a state directory.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another gateway already runs here (it holds %s): stop it first, or choose another --state-dir", path)
	}
	return func() { f.Close() }, nil
}
