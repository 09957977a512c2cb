package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/flatmesh/flatmesh/pkg/xds"
)

// serverOrder is what an xDS server is told, one field at a time.
type serverOrder struct {
	// Begin is the first one.
	Begin  *serverBegin `json:"begin,omitempty"`
	Change *change      `json:"change,omitempty"`
	Flip   *flip        `json:"flip,omitempty"`
	Usage  *usageOrder  `json:"usage,omitempty"`
}

type serverBegin struct {
	System string `json:"system"`
	World  world  `json:"world"`
}

// change makes another generation of a service.
type change struct {
	Service    int `json:"service"`
	Generation int `json:"generation"`
}

// flip turns a client's tunnel to the first far node.
type flip struct {
	Client int  `json:"client"`
	Down   bool `json:"down"`
}

// usageOrder asks what the server has used; Collect has it collect garbage first.
type usageOrder struct {
	Collect bool `json:"collect"`
}

// serverAnswer is what an xDS server answers.
type serverAnswer struct {
	Address string `json:"address,omitempty"` // to begin
	// At is when a change or flip began, Took how long it was until the call that
	// makes it returned.
	At    moment        `json:"at,omitempty"`
	Took  time.Duration `json:"took,omitempty"`
	Usage *serverUsage  `json:"usage,omitempty"`
	Error string        `json:"error,omitempty"`
}

// serverUsage is what a process has used so far: CPU of all threads, user and
// system; memory that is resident, that was at most, and that is live on the heap,
// in bytes.
type serverUsage struct {
	CPU  time.Duration `json:"cpu"`
	RSS  int64         `json:"rss"`
	Peak int64         `json:"peak"`
	Heap int64         `json:"heap"`
}

// moment is a time of the machine's monotonic clock, which all processes share.
type moment int64

func thisMoment() moment {
	var t unix.Timespec
	// It fails only where the clock is not known.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return moment(t.Nano())
}

func (m moment) sub(o moment) time.Duration { return time.Duration(m - o) }

// xdsServerCommand is an xDS server in a process of its own, so that what it uses
// is what serving takes. It reads orders from standard input and answers each.
func xdsServerCommand() *cobra.Command {
	return &cobra.Command{Use: "xds-server", Short: "Serve xDS to be measured", Args: cobra.NoArgs, Hidden: true, RunE: func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
		var s *xdsServer
		for {
			var o serverOrder
			if err := in.Decode(&o); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			var a serverAnswer
			var err error
			if o.Begin != nil {
				s, err = startXDSServer(ctx, *o.Begin)
				if err == nil {
					a.Address = s.address
				}
			} else {
				a, err = s.obey(o)
			}
			if err != nil {
				a.Error = err.Error()
			}
			if err := out.Encode(a); err != nil {
				return err
			}
		}
	}}
}

type xdsServer struct {
	system  xdsSystem
	address string
}

func startXDSServer(ctx context.Context, o serverBegin) (*xdsServer, error) {
	system, err := newXDSSystem(ctx, o.System, o.World)
	if err != nil {
		return nil, err
	}
	// The kernel's probes of thousands of idle connections come at the same moment,
	// more than the queue of one machine takes, and gRPC's TCP_USER_TIMEOUT ends a
	// connection after one that is lost.
	ln, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	gs := grpc.NewServer(xds.ServerOptions()...)
	discovery.RegisterAggregatedDiscoveryServiceServer(gs, system.ads)
	go gs.Serve(ln) //nolint:errcheck // it ends with the process
	return &xdsServer{system: system, address: ln.Addr().String()}, nil
}

func (s *xdsServer) obey(o serverOrder) (serverAnswer, error) {
	if o.Usage != nil {
		if o.Usage.Collect {
			runtime.GC()
			runtime.GC() // what the first one found in pools
		}
		u, err := ownUsage()
		return serverAnswer{Usage: &u}, err
	}
	var do func() error
	err := errors.New("nothing to do")
	switch {
	case o.Change != nil:
		do, err = s.system.change(o.Change.Service, o.Change.Generation)
	case o.Flip != nil && s.system.flip != nil:
		do, err = s.system.flip(o.Flip.Client, o.Flip.Down)
	}
	if err != nil {
		return serverAnswer{}, err
	}
	a := serverAnswer{At: thisMoment()}
	err = do()
	a.Took = thisMoment().sub(a.At)
	return a, err
}

// ownUsage is what this process has used.
func ownUsage() (u serverUsage, err error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return u, err
	}
	u.CPU, u.Peak = time.Duration(r.Utime.Nano()+r.Stime.Nano()), r.Maxrss<<10
	rss, err := rssOf([]int{os.Getpid()})
	if err != nil {
		return u, err
	}
	u.RSS = int64(rss[0] * (1 << 20))
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Heap = int64(m.HeapAlloc)
	return u, nil
}
