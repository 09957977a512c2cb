package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// listenAdmin opens the socket for the CLI, its owner's alone, and returns what
// serves it until its context ends.
func listenAdmin(o Options, l *loop) (func(context.Context) error, error) {
	path := AdminSocket(o.StateDir)
	// The store's lock says that no other control plane is there: a socket that is
	// was left by one that was killed.
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
		var s Status
		reply(w, &s, l.do(r.Context(), func(l *loop) error { s = l.status(o.Version); return nil }))
	})
	mux.HandleFunc("GET /tunnels/{cluster}/{node}", func(w http.ResponseWriter, r *http.Request) {
		var t Tunnels
		id := mesh.NodeID{Cluster: r.PathValue("cluster"), Name: r.PathValue("node")}
		reply(w, &t, l.do(r.Context(), func(l *loop) error { t = l.tunnels(id); return nil }))
	})
	mux.HandleFunc("GET /path", func(w http.ResponseWriter, r *http.Request) { servePath(w, r, l) })
	mux.HandleFunc("POST /confirm/{cluster}", func(w http.ResponseWriter, r *http.Request) {
		var c Confirmed
		reply(w, &c, l.do(r.Context(), func(l *loop) (err error) {
			c.Removed, err = l.confirm(r.PathValue("cluster"))
			return err
		}))
	})
	return func(ctx context.Context) error { return serve(ctx, ln, mux) }, nil
}

// Confirmed is what `controlplane confirm` removed.
type Confirmed struct {
	Removed []string `json:"removed"`
}

func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// A client that went away is the only one to tell of an error.
	_ = json.NewEncoder(w).Encode(v)
}

func serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// serveHTTP serves metrics and health until ctx ends.
func serveHTTP(ctx context.Context, o Options, l *loop) error {
	if o.HTTP == "" {
		return nil
	}
	ln, err := net.Listen("tcp", o.HTTP)
	if err != nil {
		return fmt.Errorf("open the HTTP address (--http %s): %w", o.HTTP, err)
	}
	mux := observed(o, l)
	mux.HandleFunc("GET /debug/path", func(w http.ResponseWriter, r *http.Request) {
		// It tells of addresses and services, so it is for this host alone, whatever
		// address metrics are served on.
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "this is answered on the control plane's own host alone: ask 127.0.0.1, or use: controlplane path", http.StatusForbidden)
			return
		}
		servePath(w, r, l)
	})
	return serve(ctx, ln, mux)
}

// servePath answers how the node in "from" reaches the service or pod in "to".
func servePath(w http.ResponseWriter, r *http.Request, l *loop) {
	from, err := mesh.ParseNodeID(r.FormValue("from"))
	if err != nil {
		http.Error(w, "from: "+err.Error(), http.StatusBadRequest)
		return
	}
	answers, err := paths(l.catalog, from, r.FormValue("to"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	reply(w, answers, nil)
}

// observed answers for metrics and health.
func observed(o Options, l *loop) *http.ServeMux {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{loop: l, version: o.Version})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		// Healthy: the loop answers.
		if err := l.do(r.Context(), func(*loop) error { return nil }); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		err := l.do(r.Context(), func(l *loop) error {
			if !l.synced {
				return errors.New("the sources have not been read yet")
			}
			return nil
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
