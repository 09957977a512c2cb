package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/probe"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
	"github.com/flatmesh/flatmesh/pkg/xds/relay"
)

// wireGuardOverhead is what WireGuard adds to a packet over IPv6, the larger of
// the two: 40 for IP, 8 for UDP, 32 for its own header and tag.
const wireGuardOverhead = 80

// Agent is one node's agent.
type Agent struct {
	opts Options
	log  *slog.Logger

	key          wg.PrivateKey
	table        *route.Table
	prober       *probe.Prober
	mirror       *mirror
	reports      *reports
	conversation *conversation
	relay        *relay.Relay
	workloads    *workloads
	started      time.Time
	httpProblem  atomic.Pointer[error] // why metrics and health are not served

	// deviceMu: the device is for one goroutine at a time, and both the loop and
	// the prober read it.
	deviceMu sync.Mutex
	device   *wg.Device
}

// Run runs the agent until ctx ends. What it set up on the node stays: tunnels
// outlive the agent. Its error says what to do.
func Run(ctx context.Context, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the agent configures interfaces and routes: run it as root")
	}
	for _, dir := range []string{o.StateDir, o.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	unlock, err := lock(o.lockFile())
	if err != nil {
		return err
	}
	defer unlock()

	a := &Agent{opts: o, log: o.Log, started: time.Now()}
	if err := a.openState(); err != nil {
		return err
	}
	// The admin socket comes early: whoever looks at a node that does not come up
	// gets an answer.
	return a.run(ctx)
}

// openState reads what earlier runs left in the state directory.
func (a *Agent) openState() error {
	key, created, err := wg.LoadOrCreateKey(a.opts.keyFile())
	var corruptKey *wg.CorruptError
	switch {
	case errors.As(err, &corruptKey):
		a.log.Error("the WireGuard key was set aside; this node has a new one", "err", err)
	case err != nil:
		return err
	case created:
		a.log.Info("made a WireGuard key", "publicKey", key.PublicKey())
	}
	a.key = key

	a.mirror, err = openMirror(a.opts.peersFile(), a.opts.Node, key.PublicKey())
	var corrupt *corruptError
	if errors.As(err, &corrupt) {
		a.log.Error("the peers kept on disk were set aside; they come again from the control plane", "err", err)
	} else if err != nil {
		return err
	}
	a.reports = newReports()
	a.workloads = newWorkloads(a.opts.WorkloadDir(), a.opts.Node, a.log)
	return a.openRelay()
}

// openRelay opens what serves the node's workloads. The folder is theirs to see,
// the cache is not.
func (a *Agent) openRelay() (err error) {
	a.relay, err = relay.Open(relay.Options{
		Node: a.opts.Node, Version: a.opts.Version, Dir: a.opts.XDSDir(), CacheFile: a.opts.relayFile(), Log: a.log,
	})
	return err
}

func (a *Agent) run(ctx context.Context) error {
	var err error
	if a.opts.MTU == 0 {
		if a.opts.MTU, err = underlayMTU(); err != nil {
			return err
		}
	}
	a.deviceMu.Lock()
	a.device, err = a.openDevice(ctx)
	a.deviceMu.Unlock()
	if err != nil {
		return err
	}
	defer func() { a.device.Close() }()
	if a.table, err = route.Open(a.opts.Route); err != nil {
		return err
	}
	defer a.table.Close()
	id, err := openIdentity(a.opts, time.Now)
	if err != nil {
		return err
	}
	a.conversation = &conversation{
		opts: a.opts, log: a.opts.Log, key: a.key, kind: a.device.Kind(),
		identity: id, mirror: a.mirror, reports: a.reports, relay: a.relay, workloads: a.workloads,
	}

	g, ctx := errgroup.WithContext(ctx)
	l := &loop{Agent: a, kicked: make(chan struct{}, 1), due: make(chan struct{}, 1), left: map[mesh.NodeID]bool{}}
	if l.watched, err = a.table.Watch(ctx); err != nil {
		return err
	}
	a.prober = probe.New(probe.Options{
		Log: a.opts.Log, Link: a.opts.Interface, Version: a.opts.Version,
		LinkTx:  func() (uint64, error) { return linkTx(a.opts.Interface) },
		Traffic: l.traffic, Applied: l.held, NotForwarding: l.notForwarding,
		OnChange: l.onChange,
	})
	admin, err := a.listenAdmin(l)
	if err != nil {
		return err
	}
	a.log.Info("agent runs", "node", a.opts.Node, "version", a.opts.Version, "interface", a.opts.Interface, "device", a.device.Kind(), "publicKey", a.key.PublicKey())
	g.Go(func() error { return admin(ctx) })
	g.Go(func() error { return a.serveHTTP(ctx, l) })
	// Once before the first echo is answered: a peer must not be told that it is
	// not held by an agent that has only just started.
	l.round(ctx)
	g.Go(func() error { return a.prober.Run(ctx) })
	g.Go(func() error { return a.relay.Serve(ctx) })
	g.Go(func() error { a.conversation.run(ctx); return nil })
	g.Go(func() error { return l.run(ctx) })
	return g.Wait()
}

// openDevice opens the WireGuard device, and makes it where there is none.
func (a *Agent) openDevice(ctx context.Context) (*wg.Device, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return wg.Open(ctx, wg.Options{
		Name: a.opts.Interface, MTU: a.opts.MTU, Mode: a.opts.DeviceMode,
		// A process that ends at once is not waited for.
		Spawn: func(context.Context) error { return a.spawnDevice(cancel) },
	})
}

// spawnDevice starts the userspace device in a session of its own, so that it
// outlives this process and is touched by none of its signals. ended is called
// with the reason if it ends while this process lives.
func (a *Agent) spawnDevice(ended func(error)) error {
	path := filepath.Join(a.opts.RunDir, "device.log")
	cmd := exec.Command(a.opts.Executable, "device", "--interface", a.opts.Interface, "--mtu", strconv.Itoa(a.opts.MTU), "--log-file", path)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	a.log.Info("started the userspace device", "pid", cmd.Process.Pid, "log", path)
	go func() {
		err := fmt.Errorf("the userspace device ended (%v): %s", errors.Join(cmd.Wait()), lastLine(path))
		a.log.Warn("device process ended", "err", err)
		ended(err)
	}()
	return nil
}

// lastLine returns the last line of a log file, which says why its process
// ended.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// underlayMTU returns the MTU for the tunnel interface: that of the interface
// behind the default route, less WireGuard's overhead.
func underlayMTU() (int, error) {
	best := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil {
			return 0, fmt.Errorf("find the default route: %w", err)
		}
		for _, r := range routes {
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				continue
			}
			if mtu := link.Attrs().MTU; best == 0 || mtu < best {
				best = mtu
			}
		}
	}
	if best == 0 {
		best = 1500
	}
	return max(best-wireGuardOverhead, 576), nil
}

// linkTx returns how many packets the interface has sent.
func linkTx(name string) (uint64, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	if s := link.Attrs().Statistics; s != nil {
		return s.TxPackets, nil
	}
	return 0, fmt.Errorf("%s has no statistics", name)
}

// lock makes sure that one agent at a time uses a state directory.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another agent already runs here (it holds %s): stop it first", path)
	}
	return func() { f.Close() }, nil
}
