package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	httpRetry      = 5 * time.Second
	collectTimeout = 5 * time.Second
)

// serveHTTP serves metrics and health until ctx ends.
func (a *Agent) serveHTTP(ctx context.Context, l *loop) error {
	if a.opts.HTTP == "" {
		return nil
	}
	ln, err := a.listenHTTP(ctx)
	if err != nil {
		return nil // ctx has ended
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{life: ctx, agent: a, loop: l})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	// Healthy is the process alone: an agent must not be restarted because the
	// control plane is away or a peer is down.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, complete := a.mirror.view(); !complete {
			http.Error(w, "the peers of this node are not known yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return serve(ctx, ln, mux)
}

// listenHTTP opens the address for metrics and health. One that is taken must
// not keep a node without tunnels: it is told, and tried again.
func (a *Agent) listenHTTP(ctx context.Context) (net.Listener, error) {
	tick := time.NewTicker(httpRetry)
	defer tick.Stop()
	for {
		ln, err := net.Listen("tcp", a.opts.HTTP)
		if err != nil {
			err = fmt.Errorf("open the address for metrics and health (--http %s): %w", a.opts.HTTP, err)
			if old := a.httpProblem.Swap(&err); old == nil {
				a.log.Error("no metrics and health", "err", err)
			}
		} else {
			a.httpProblem.Store(nil)
			return ln, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// collector makes metrics of the status, so that the two never differ. It has
// no label per peer: a node may have thousands.
type collector struct {
	life  context.Context // the agent's: Prometheus hands none on
	agent *Agent
	loop  *loop
}

var (
	descTunnels   = prometheus.NewDesc("flatmesh_agent_tunnels", "Tunnels of this node by state and reason.", []string{"state", "reason"}, nil)
	descConnected = prometheus.NewDesc("flatmesh_agent_control_plane_connected", "1 while the agent is connected to the control plane.", nil, nil)
	descConflicts = prometheus.NewDesc("flatmesh_agent_conflicts", "Conflicts of address ranges that concern this node's cluster, by effect.", []string{"effect"}, nil)
	descUnrouted  = prometheus.NewDesc("flatmesh_agent_unrouted_prefixes", "Prefixes of others that are not routed here, by reason.", []string{"reason"}, nil)
	descProblems  = prometheus.NewDesc("flatmesh_agent_problems", "Things that the last round could not do.", nil, nil)
	descClients   = prometheus.NewDesc("flatmesh_agent_xds_clients", "Workloads' xDS streams on this node, by kind of client.", []string{"kind"}, nil)
	descResources = prometheus.NewDesc("flatmesh_agent_xds_resources", "Resources that this node's workloads subscribe to or have asked for, by kind of client, type and what the control plane says of them.", []string{"kind", "type", "answer"}, nil)
	descNACKs     = prometheus.NewDesc("flatmesh_agent_xds_nacks_total", "Resources that workloads refused.", []string{"kind", "type"}, nil)
	descDemoted   = prometheus.NewDesc("flatmesh_agent_xds_demoted_nodes", "Nodes whose pods are served through gateways because this node's tunnels to them cannot be used.", nil, nil)
	descBytes     = prometheus.NewDesc("flatmesh_agent_tunnel_bytes_total", "Bytes that the tunnels of this node carried.", []string{"direction"}, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTunnels, descConnected, descConflicts, descUnrouted, descProblems, descBytes, descClients, descResources, descNACKs, descDemoted} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.life, collectTimeout)
	defer cancel()
	s := c.agent.status(ctx, c.loop)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	tunnels := map[mesh.TunnelStatus]int{}
	var rx, tx uint64
	for _, p := range s.Peers {
		tunnels[mesh.TunnelStatus{State: p.State, Reason: p.Reason}]++
		rx, tx = rx+p.RxBytes, tx+p.TxBytes
	}
	for t, n := range tunnels {
		gauge(descTunnels, float64(n), t.State.String(), string(t.Reason))
	}
	connected := 0.0
	if s.ControlPlane.Connected {
		connected = 1
	}
	gauge(descConnected, connected)
	gauge(descProblems, float64(len(s.Problems)))
	conflicts := map[mesh.Effect]int{}
	for _, x := range s.Conflicts {
		conflicts[x.Effect]++
	}
	for e, n := range conflicts {
		gauge(descConflicts, float64(n), e.String())
	}
	unrouted := map[mesh.Reason]int{}
	for _, u := range s.Unrouted {
		unrouted[u.Reason]++
	}
	for r, n := range unrouted {
		gauge(descUnrouted, float64(n), string(r))
	}
	gauge(descDemoted, float64(len(s.Relay.Demoted)))
	for _, k := range s.Relay.Kinds {
		gauge(descClients, float64(k.Clients), string(k.Kind))
		for _, t := range k.Types {
			gauge(descResources, float64(t.Found), string(k.Kind), t.Type, "found")
			gauge(descResources, float64(t.Missing), string(k.Kind), t.Type, "missing")
			gauge(descResources, float64(t.Pending), string(k.Kind), t.Type, "pending")
			ch <- prometheus.MustNewConstMetric(descNACKs, prometheus.CounterValue, float64(t.NACKs), string(k.Kind), t.Type)
		}
	}
	ch <- prometheus.MustNewConstMetric(descBytes, prometheus.CounterValue, float64(rx), "received")
	ch <- prometheus.MustNewConstMetric(descBytes, prometheus.CounterValue, float64(tx), "sent")
}
