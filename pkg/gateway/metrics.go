package gateway

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Stats is what a Proxy has done since New, and does now.
type Stats struct {
	// Waiting counts the open connections that are not yet admitted, those whose
	// refusal is under way included; Active those that are.
	Waiting, Active int
	// Services counts the server names known.
	Services int
	// Admitted counts the connections that reached a pod, Ended those of them that
	// have ended, Refused all others that have been decided on.
	Admitted uint64
	Ended    map[End]uint64
	Refused  map[Reason]uint64
	// ToPods and ToClients are bytes, as the side that they go to has taken them.
	ToPods, ToClients uint64
	// ConnectFailures counts single tries to connect to a pod, AcceptFailures
	// failures to accept from a listener.
	ConnectFailures, AcceptFailures uint64
}

// counts holds the counters behind Stats. The maps do not change after newCounts.
type counts struct {
	active                          atomic.Int64
	admitted                        atomic.Uint64
	ended                           map[End]*atomic.Uint64
	refused                         map[Reason]*atomic.Uint64
	toPods, toClients               atomic.Uint64
	connectFailures, acceptFailures atomic.Uint64
}

func newCounts(c *counts) {
	c.ended, c.refused = map[End]*atomic.Uint64{}, map[Reason]*atomic.Uint64{}
	for _, e := range ends() {
		c.ended[e] = new(atomic.Uint64)
	}
	for _, r := range reasons() {
		c.refused[r] = new(atomic.Uint64)
	}
}

// Stats returns the counters. They are read one after the other while connections
// go on, so that sums need not agree to the last one.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	k := &p.counts
	active := int(k.active.Load())
	s := Stats{
		Waiting: max(open-active, 0), Active: active, Services: p.routes.len(), Admitted: k.admitted.Load(),
		Ended: map[End]uint64{}, Refused: map[Reason]uint64{},
		ToPods: k.toPods.Load(), ToClients: k.toClients.Load(),
		ConnectFailures: k.connectFailures.Load(), AcceptFailures: k.acceptFailures.Load(),
	}
	for e, n := range k.ended {
		s.Ended[e] = n.Load()
	}
	for r, n := range k.refused {
		s.Refused[r] = n.Load()
	}
	return s
}

// sayEvery is how often the log tells of one thing that clients or pods cause.
const sayEvery = time.Minute

// sayings limits what is logged.
type sayings struct {
	refused         map[Reason]*rate.Sometimes
	connect, accept rate.Sometimes
}

func newSayings(s *sayings) {
	s.refused = map[Reason]*rate.Sometimes{}
	for _, r := range reasons() {
		s.refused[r] = &rate.Sometimes{Interval: sayEvery}
	}
	s.connect.Interval, s.accept.Interval = sayEvery, sayEvery
}

func (p *Proxy) refused(r Reason, client net.Addr, sni string) {
	n := p.counts.refused[r].Add(1)
	text := advice(r)
	if text == "" {
		return
	}
	p.say.refused[r].Do(func() {
		// A client may send 64 KiB of name; those of the DNS have 253 bytes at most.
		p.options.Log.Warn(text, "reason", string(r), "client", client, "sni", sni[:min(len(sni), 253)], "refused", n)
	})
}

func (p *Proxy) connectFailed(sni string, b *backend, err error) {
	p.counts.connectFailures.Add(1)
	p.say.connect.Do(func() {
		p.options.Log.Warn("connecting to a pod failed; another is tried where there is one", "sni", sni, "pod", b.addr, "error", err)
	})
}

func (p *Proxy) acceptFailed(listener net.Addr, err error) {
	p.counts.acceptFailures.Add(1)
	p.say.accept.Do(func() {
		p.options.Log.Error("accepting connections failed, trying again; where file descriptors are short raise their limit", "listener", listener, "error", err)
	})
}

var (
	descConnections = prometheus.NewDesc("flatmesh_gateway_connections_total", "Connections by result: admitted, or the reason for which they were refused.", []string{"result"}, nil)
	descActive      = prometheus.NewDesc("flatmesh_gateway_connections_active", "Open connections: admitted ones, and those still waiting for it.", []string{"state"}, nil)
	descEnded       = prometheus.NewDesc("flatmesh_gateway_connections_ended_total", "Admitted connections that have ended, by how.", []string{"end"}, nil)
	descBytes       = prometheus.NewDesc("flatmesh_gateway_bytes_total", "Bytes passed on.", []string{"direction"}, nil)
	descConnects    = prometheus.NewDesc("flatmesh_gateway_connect_failures_total", "Tries to connect to a pod that failed, retried ones included.", nil, nil)
	descAccepts     = prometheus.NewDesc("flatmesh_gateway_accept_failures_total", "Failures to accept a connection.", nil, nil)
	descServices    = prometheus.NewDesc("flatmesh_gateway_services", "Server names that are known.", nil, nil)
)

var _ prometheus.Collector = (*Proxy)(nil)

// Describe implements prometheus.Collector.
func (p *Proxy) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConnections, descActive, descEnded, descBytes, descConnects, descAccepts, descServices} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *Proxy) Collect(ch chan<- prometheus.Metric) {
	s := p.Stats()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	send(descConnections, prometheus.CounterValue, float64(s.Admitted), "admitted")
	for r, n := range s.Refused {
		send(descConnections, prometheus.CounterValue, float64(n), string(r))
	}
	send(descActive, prometheus.GaugeValue, float64(s.Active), "admitted")
	send(descActive, prometheus.GaugeValue, float64(s.Waiting), "waiting")
	for e, n := range s.Ended {
		send(descEnded, prometheus.CounterValue, float64(n), string(e))
	}
	send(descBytes, prometheus.CounterValue, float64(s.ToPods), "to_pod")
	send(descBytes, prometheus.CounterValue, float64(s.ToClients), "to_client")
	send(descConnects, prometheus.CounterValue, float64(s.ConnectFailures))
	send(descAccepts, prometheus.CounterValue, float64(s.AcceptFailures))
	send(descServices, prometheus.GaugeValue, float64(s.Services))
}
