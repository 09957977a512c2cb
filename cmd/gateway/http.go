package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// listenAdmin opens the socket for the CLI, its owner's alone.
func listenAdmin(ctx context.Context, runDir string) (net.Listener, error) {
	path := adminSocket(runDir)
	// The lock is on the state directory: another gateway may have this one.
	if c, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another gateway already answers on %s: stop it first, or choose another --run-dir", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old admin socket: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	return l, nil
}

// admin is what the CLI asks.
func (p *process) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// The client that went away is the only one to tell of an error.
		_ = json.NewEncoder(w).Encode(p.status())
	})
	return mux
}

// observed is metrics and health.
func (p *process) observed() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(p.proxy, collector{p})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	// Healthy is the process alone: a gateway must not be restarted because the
	// control plane is away.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case p.draining.Load():
			http.Error(w, "the gateway ends", http.StatusServiceUnavailable)
		case p.feed.source() == routesNone:
			http.Error(w, "the services of this cluster are not known yet", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	return mux
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// collector makes metrics of the status; the proxy has its own.
type collector struct{ p *process }

var _ prometheus.Collector = collector{}

var (
	descConnected   = prometheus.NewDesc("flatmesh_gateway_control_plane_connected", "1 while the gateway is connected to the control plane.", nil, nil)
	descCertificate = prometheus.NewDesc("flatmesh_gateway_certificate_expiry_timestamp_seconds", "When the gateway's certificate ends.", nil, nil)
	descProblems    = prometheus.NewDesc("flatmesh_gateway_problems", "Things that the gateway could not do.", nil, nil)
	descDraining    = prometheus.NewDesc("flatmesh_gateway_draining", "1 when the gateway was asked to end.", nil, nil)
)

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConnected, descCertificate, descProblems, descDraining} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.p.status()
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	truth := map[bool]float64{true: 1}
	gauge(descConnected, truth[s.ControlPlane.Connected])
	gauge(descDraining, truth[s.Draining])
	gauge(descProblems, float64(len(s.Problems)))
	if until := s.ControlPlane.CertificateUntil; until != nil {
		gauge(descCertificate, float64(until.Unix()))
	}
}
