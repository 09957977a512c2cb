package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/probe"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// listenAdmin opens the socket for the CLI, root's alone, and returns what
// serves it until its context ends.
func (a *Agent) listenAdmin(l *loop) (func(context.Context) error, error) {
	path := a.opts.AdminSocket()
	// The lock on the state directory says that no other agent is there: a socket
	// that is was left by one that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old admin socket: %w", err)
	}
	old := unix.Umask(0o177)
	ln, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// The client that went away is the only one to tell of an error.
		_ = json.NewEncoder(w).Encode(a.status(r.Context(), l))
	})
	mux.HandleFunc("GET /path", func(w http.ResponseWriter, r *http.Request) {
		p, err := l.paths(r.Context(), r.FormValue("to"))
		if err != nil {
			for cause := err; cause != nil; cause = errors.Unwrap(cause) {
				if s, ok := cause.(interface{ GRPCStatus() *status.Status }); ok {
					err = errors.New(s.GRPCStatus().Message())
				}
			}
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p) // as above
	})
	return func(ctx context.Context) error { return serve(ctx, ln, mux) }, nil
}

// serve serves until ctx ends.
func serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// status gathers what `agent status` shows.
func (a *Agent) status(ctx context.Context, l *loop) Status {
	now := time.Now()
	done := l.snapshot()
	s := Status{
		Node: a.opts.Node, Version: a.opts.Version, At: now.UTC(), Started: a.started.UTC(),
		ControlPlane: a.conversation.status(), Complete: done.complete,
		Peers: []PeerStatus{}, Prefixes: []netip.Prefix{}, Refused: []mesh.RefusedPrefix{}, Barriers: []mesh.Barrier{},
		Unrouted: []Unrouted{}, Conflicts: []mesh.Conflict{}, Problems: append([]string{}, done.problems...),
		Device: DeviceStatus{
			Interface: a.opts.Interface, PublicKey: a.key.PublicKey(), TunnelAddrs: []netip.Addr{},
		},
	}
	a.deviceMu.Lock()
	s.Device.Kind = a.device.Kind().String()
	actual, err := a.device.Observe(ctx)
	a.deviceMu.Unlock()
	if err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	s.Device.ListenPort, s.Device.MTU = actual.ListenPort, actual.MTU
	if err := a.httpProblem.Load(); err != nil {
		s.Problems = append(s.Problems, (*err).Error())
	}
	if err := a.prober.Err(); err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	s.Relay, s.Workloads = a.relay.Status(), a.workloads.status()
	s.Problems = append(s.Problems, s.Relay.Cache.Problems...)
	if v, ok := a.mirror.view(); ok {
		s.Prefixes = append(s.Prefixes, v.node.Prefixes...)
		s.Refused = append(s.Refused, v.node.Refused...)
		s.Barriers = append(s.Barriers, v.node.Barriers...)
		s.Conflicts = append(s.Conflicts, v.cluster.Conflicts...)
		s.Device.TunnelAddrs = append(s.Device.TunnelAddrs, v.node.TunnelAddrs...)
	}
	for _, r := range done.plan.refused {
		u := Unrouted{Prefix: r.Prefix, Reason: r.Reason, Detail: r.Detail}
		if r.Node != (mesh.NodeID{}) {
			u.Node = r.Node.String()
		}
		s.Unrouted = append(s.Unrouted, u)
	}
	s.Peers = append(s.Peers, peerStatuses(done.plan, actual, a.prober.Snapshot())...)
	return s
}

// peerStatuses joins what was planned with what the device and the probes say.
func peerStatuses(p plan, actual wg.Actual, results []probe.Result) []PeerStatus {
	planned := map[string]wg.Peer{}
	for _, q := range p.device.Peers {
		planned[q.Name] = q
	}
	out := make([]PeerStatus, 0, len(results))
	for _, r := range results {
		q := planned[r.Node.String()]
		s := PeerStatus{
			Node: r.Node, State: r.Status.State, Reason: r.Status.Reason, Since: r.Since.UTC(),
			RTT: r.RTT.Seconds(), Loss: r.Loss, Active: r.Active, Key: q.Key,
			Candidates: append([]netip.AddrPort{}, q.Candidates...), AllowedIPs: append([]netip.Prefix{}, q.AllowedIPs...),
			TunnelAddrs: []netip.Addr{r.Addr},
		}
		if have, ok := actual.Peer(q.Key); ok {
			s.Endpoint, s.RxBytes, s.TxBytes = have.Endpoint, have.RxBytes, have.TxBytes
			if !have.LastHandshake.IsZero() {
				at := have.LastHandshake.UTC()
				s.Handshake = &at
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Node.Compare(b.Node) })
	return out
}
