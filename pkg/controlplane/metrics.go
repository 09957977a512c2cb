package controlplane

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// collector makes metrics of the status, so that the two never differ. Labels
// are clusters at most: there may be thousands of nodes.
type collector struct {
	loop    *loop
	version string
}

var (
	descNodes     = prometheus.NewDesc("flatmesh_nodes", "Nodes by cluster and whether their agent has registered.", []string{"cluster", "registered"}, nil)
	descConnected = prometheus.NewDesc("flatmesh_agents_connected", "Agents with a report stream open.", nil, nil)
	descTunnels   = prometheus.NewDesc("flatmesh_tunnels", "Directed tunnels as connected agents report them, by state.", []string{"state"}, nil)
	descExpected  = prometheus.NewDesc("flatmesh_tunnels_expected", "Directed tunnels that there should be.", nil, nil)
	descConflicts = prometheus.NewDesc("flatmesh_conflicts", "Conflicts of address ranges by effect.", []string{"effect"}, nil)
	descSource    = prometheus.NewDesc("flatmesh_source_refused", "1 while the source's newest state is refused and its last good one in force.", []string{"source"}, nil)
	descHeld      = prometheus.NewDesc("flatmesh_nodes_held", "Nodes that the source no longer has and that are still in force.", []string{"cluster"}, nil)
	descUnsaved   = prometheus.NewDesc("flatmesh_state_unsaved", "1 while state cannot be written.", nil, nil)
	descNACKs     = prometheus.NewDesc("flatmesh_xds_nacks_total", "Responses that clients refused, by type.", []string{"type"}, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descNodes, descConnected, descTunnels, descExpected, descConflicts, descSource, descHeld, descUnsaved, descNACKs} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.loop.life, 5*time.Second)
	defer cancel()
	var s Status
	sources := map[string]bool{}
	nacks := map[string]int{}
	err := c.loop.do(ctx, func(l *loop) error {
		s = l.status(c.version)
		for name, text := range l.sources {
			sources[name] = text != ""
		}
		l.nackMu.Lock()
		defer l.nackMu.Unlock()
		for t, n := range l.nacks {
			nacks[t] = n
		}
		return nil
	})
	if err != nil {
		return // stopping: there is nothing to tell any more
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for _, k := range s.Clusters {
		gauge(descNodes, k.Registered, k.Name, "true")
		gauge(descNodes, k.Nodes-k.Registered, k.Name, "false")
		gauge(descHeld, len(k.Held), k.Name)
	}
	gauge(descConnected, s.Nodes.Connected)
	gauge(descTunnels, s.Tunnels.Up, mesh.Up.String())
	gauge(descTunnels, s.Tunnels.Down, mesh.Down.String())
	gauge(descTunnels, s.Tunnels.Unknown, mesh.Unknown.String())
	gauge(descExpected, s.Tunnels.Expected)
	byEffect := map[mesh.Effect]int{}
	for _, x := range s.Conflicts {
		byEffect[x.Effect]++
	}
	for e := mesh.Listed; e <= mesh.NoTunnels; e++ {
		gauge(descConflicts, byEffect[e], e.String())
	}
	one := map[bool]int{true: 1}
	for name, refused := range sources {
		gauge(descSource, one[refused], name)
	}
	gauge(descUnsaved, one[s.Unsaved != ""])
	for t, n := range nacks {
		ch <- prometheus.MustNewConstMetric(descNACKs, prometheus.CounterValue, float64(n), t)
	}
}

// nacked counts a client's refusal.
func (l *loop) nacked(typeURL string) {
	l.nackMu.Lock()
	defer l.nackMu.Unlock()
	// A hostile client may refuse types of its own making.
	if _, served := viewOfClient(mesh.NodeID{}, nil, typeURL); !served {
		typeURL = "other"
	}
	l.nacks[typeURL]++
}
