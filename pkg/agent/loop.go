package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/probe"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// rotateAfter is how long a tunnel is down before another endpoint candidate is
// tried: WireGuard itself repeats a handshake every 5 s (REKEY_TIMEOUT), so each
// candidate gets at least one full try.
const rotateAfter = 6 * time.Second

// saveEvery is how often what the control plane told is written, if it changed.
const saveEvery = time.Second

// loop makes the node agree with the plan, again and again.
type loop struct {
	*Agent
	kicked  chan struct{} // one slot: a tunnel has been down for a while
	watched <-chan struct{}

	due chan struct{} // one slot: what is refused may have to change

	// What the loop's own goroutine knows of packets that are refused.
	refused      []netip.Prefix
	refusedKnown bool
	// left are nodes that were peers: their endpoints are no longer direct.
	left map[mesh.NodeID]bool

	mu        sync.Mutex
	refuseErr error
	// applied is what the last round left behind, for status and the echo.
	applied applied
	// unsaved is why the peers could last not be written.
	unsaved error
}

// applied is what a round knows and has done.
type applied struct {
	plan     plan
	actual   wg.Actual
	forward  map[mesh.Family]bool
	complete bool
	problems []string
	foreign  []string
}

// run is the loop; it ends with ctx.
func (l *loop) run(ctx context.Context) error {
	resync := time.NewTicker(l.opts.Resync)
	defer resync.Stop()
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	defer l.save() // what came since the last tick
	for {
		select {
		case <-save.C:
			l.save()
			continue
		case <-ctx.Done():
			return nil
		case <-l.due:
			l.refuse(ctx)
			continue
		case <-l.mirror.changed:
		case <-l.kicked:
		case _, ok := <-l.watched:
			if !ok {
				// Without it the resync finds what changes, only later.
				l.watched = nil
				if ctx.Err() == nil {
					l.log.Error("the kernel no longer tells of changes; they are found by the resync alone", "every", l.opts.Resync)
				}
			}
		case <-resync.C:
			l.refusedKnown = false // somebody may have changed it
		}
		l.round(ctx)
	}
}

// save keeps what the control plane told on disk. Many changes cost one write.
func (l *loop) save() {
	err := l.mirror.save()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && l.unsaved == nil {
		l.log.Error("the peers cannot be kept on disk; a restart without the control plane would lack the latest", "err", err)
	}
	l.unsaved = err
}

// round plans, observes, and applies the difference, once.
func (l *loop) round(ctx context.Context) {
	next, err := l.reconcile(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		next.problems = append(next.problems, split(err)...)
	}
	l.mu.Lock()
	old := l.applied
	l.applied = next
	l.mu.Unlock()
	l.refuse(ctx)
	l.tell(old, next)
	if next.complete && !old.complete {
		l.save() // from here on the node can do without the control plane
	}
}

// reconcile does a round's work. Where it fails it returns what it has found out.
func (l *loop) reconcile(ctx context.Context) (applied, error) {
	l.mu.Lock()
	next := applied{plan: l.applied.plan, actual: l.applied.actual, forward: l.applied.forward}
	l.mu.Unlock()

	device, err := l.observeDevice(ctx)
	if err != nil {
		return next, err
	}
	next.actual = device
	kernel, local, err := l.table.Observe(ctx)
	if err != nil {
		return next, err
	}
	next.forward = map[mesh.Family]bool{mesh.IPv4: kernel.Forwarding4, mesh.IPv6: kernel.Forwarding6}
	next.foreign = slices.Concat(kernel.Foreign, kernel.Notes)

	v, complete := l.mirror.view()
	if !complete {
		// What an earlier run left stays until we know better; a device of our own
		// still needs its key, so that peers which know us can reach us.
		return next, nil
	}
	next.complete = true
	local.Protected = v.cluster.Protected
	local.Hosts = l.hosts(v, device)
	next.plan = makePlan(inputs{view: v, local: local, rotate: l.stale(), key: l.key, port: l.opts.ListenPort, mark: l.opts.Route.Mark})
	if !l.mirror.confirmed() {
		next.plan.keep(device, kernel)
	}
	if err := next.plan.device.Validate(); err != nil {
		return next, fmt.Errorf("the plan contradicts itself and is not applied: %w", err)
	}

	l.leave(ctx, next.plan)
	// Addresses, then peers, then the routes to them: a packet finds its way only
	// once someone takes it.
	wgOps := wg.Diff(device, next.plan.device)
	routeOps := route.Diff(kernel, next.plan.route, l.opts.Route)
	l.logOps(ctx, slices.Concat(texts(wgOps), texts(routeOps)))
	var errs []error
	if len(wgOps) > 0 {
		errs = append(errs, l.applyDevice(ctx, wgOps))
	}
	if len(routeOps) > 0 {
		errs = append(errs, l.table.Apply(ctx, routeOps))
	}
	l.prober.SetAddrs(next.plan.route.Addrs)
	l.prober.SetTargets(next.plan.targets)
	l.report()
	return next, errors.Join(errs...)
}

// logOps tells what is about to be done, one by one where it is little.
func (l *loop) logOps(ctx context.Context, ops []string) {
	level := slog.LevelInfo
	if len(ops) > 20 {
		l.log.Info("apply many", "operations", len(ops))
		level = slog.LevelDebug
	}
	for _, op := range ops {
		l.log.Log(ctx, level, "apply", "op", op)
	}
}

func texts[T fmt.Stringer](in []T) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

// observeDevice reads the device and opens it anew where it has gone: its
// process died, or somebody deleted the interface.
func (l *loop) observeDevice(ctx context.Context) (wg.Actual, error) {
	l.deviceMu.Lock()
	defer l.deviceMu.Unlock()
	a, err := l.device.Observe(ctx)
	if err == nil {
		return a, l.device.EnsureLink()
	}
	if !errors.Is(err, wg.ErrGone) {
		return a, err
	}
	l.log.Warn("the device is gone; making it again", "err", err)
	d, err := l.openDevice(ctx)
	if err != nil {
		return a, err
	}
	if err := l.device.Close(); err != nil {
		l.log.Warn("close the old device", "err", err)
	}
	l.device = d
	return d.Observe(ctx)
}

func (l *loop) applyDevice(ctx context.Context, ops []wg.Op) error {
	l.deviceMu.Lock()
	defer l.deviceMu.Unlock()
	return l.device.Apply(ctx, ops)
}

// hosts lists the addresses that no route may cover: where peers' WireGuard is,
// by what we were told and by where they really are, and the control plane.
func (l *loop) hosts(v view, device wg.Actual) []route.Host {
	var out []route.Host
	for _, p := range v.peers {
		for _, e := range p.Endpoints {
			out = append(out, route.Host{Addr: e.Addr(), What: "the endpoint of " + p.Node.String()})
		}
		if a, ok := device.Peer(p.Key); ok && a.Endpoint.IsValid() {
			out = append(out, route.Host{Addr: a.Endpoint.Addr().Unmap(), What: "the endpoint of " + p.Node.String()})
		}
	}
	for _, a := range l.conversation.controlPlaneAddrs() {
		out = append(out, route.Host{Addr: a, What: "the control plane"})
	}
	return out
}

// stale returns the nodes whose tunnels have been down for so long that another
// endpoint should be tried.
func (l *loop) stale() map[mesh.NodeID]bool {
	out := map[mesh.NodeID]bool{}
	now := time.Now()
	for _, r := range l.prober.Snapshot() {
		s := r.Status
		lost := s.Reason == mesh.ReasonProbeLost || s.Reason == mesh.ReasonNoHandshake
		if s.State == mesh.Down && lost && now.Sub(r.Since) >= rotateAfter {
			out[r.Node] = true
		}
	}
	return out
}

// report hands the states of all tunnels to the report stream.
func (l *loop) report() {
	l.reports.replace(func() map[mesh.NodeID]mesh.TunnelStatus {
		states := map[mesh.NodeID]mesh.TunnelStatus{}
		for _, r := range l.prober.Snapshot() {
			states[r.Node] = r.Status
		}
		return states
	})
}

// onChange is the prober's: it tells each transition once and reports.
func (l *loop) onChange(changes []probe.Change) {
	states := map[mesh.NodeID]mesh.TunnelStatus{}
	for _, c := range changes {
		l.log.Info("tunnel", "peer", c.Node, "state", c.New.State, "reason", c.New.Reason, "was", c.Old.State, "wasReason", c.Old.Reason)
		states[c.Node] = c.New
		mark(l.due)
		if c.New.State == mesh.Down {
			time.AfterFunc(rotateAfter, func() { mark(l.kicked) })
		}
	}
	l.reports.update(states)
	l.demote()
}

// held is the prober's: the digest of what this node holds of the node with
// that tunnel address.
func (l *loop) held(a netip.Addr) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied.plan.owner[a]
}

// notForwarding is the prober's: the families that this node does not forward
// to its pods.
func (l *loop) notForwarding() []mesh.Family {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []mesh.Family
	for _, f := range mesh.Families {
		if forwards, known := l.applied.forward[f]; known && !forwards {
			out = append(out, f)
		}
	}
	return out
}

// traffic is the prober's: WireGuard's counters of each node.
func (l *loop) traffic(ctx context.Context) (map[mesh.NodeID]probe.Counters, error) {
	l.deviceMu.Lock()
	a, err := l.device.Observe(ctx)
	l.deviceMu.Unlock()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[mesh.NodeID]probe.Counters, len(a.Peers))
	for _, p := range l.applied.plan.device.Peers {
		id, err := mesh.ParseNodeID(p.Name)
		if err != nil {
			continue // kept from an earlier run, and not probed
		}
		if have, ok := a.Peer(p.Key); ok {
			out[id] = probe.Counters{Sent: have.TxBytes, Shaken: !have.LastHandshake.IsZero()}
		}
	}
	return out, nil
}

// tell logs what a round found that the one before did not.
func (l *loop) tell(old, now applied) {
	was := map[string]bool{}
	for _, p := range slices.Concat(old.problems, old.foreign) {
		was[p] = true
	}
	for _, p := range now.problems {
		if !was[p] {
			l.log.Error("problem", "err", p)
		}
	}
	for _, p := range now.foreign {
		if !was[p] {
			l.log.Warn("not ours", "detail", p)
		}
	}
	refused := map[refusal]bool{}
	for _, r := range old.plan.refused {
		refused[r] = true
	}
	for _, r := range now.plan.refused {
		if !refused[r] {
			l.log.Warn("not routed", "peer", r.Node, "prefix", r.Prefix, "reason", r.Reason, "detail", r.Detail)
		}
	}
	if now.complete && !old.complete {
		l.log.Info("complete: all peers are known", "peers", len(now.plan.targets))
	}
}

// split takes a joined error apart, so that each part is a line.
func split(err error) []string {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []string
		for _, e := range j.Unwrap() {
			out = append(out, split(e)...)
		}
		return out
	}
	return []string{err.Error()}
}

// snapshot returns what the last round left.
func (l *loop) snapshot() applied {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.applied
	for _, err := range []error{l.unsaved, l.refuseErr} {
		if err != nil {
			a.problems = append(slices.Clone(a.problems), err.Error())
		}
	}
	a.plan.owner = maps.Clone(a.plan.owner)
	return a
}
