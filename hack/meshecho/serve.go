package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/flatmesh/flatmesh/hack/meshecho/v1"
)

// grace is how long calls under way have once the server was told to end.
const grace = 5 * time.Second

// server is a pod's server.
type server struct {
	pb.UnimplementedEchoServer
	pod, node, cluster string
	http, grpc         string // addresses to listen at
	mtls               bool
	secrets            string
	// ready is told "listening" and closed once HTTP is served, and gRPC too if
	// that needs no certificate.
	ready io.WriteCloser
}

func serveCommand() *cobra.Command {
	var s server
	var readyFD int
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Answer who was called, and who called",
		Long: `serve answers HTTP and gRPC with who was called and who called. With --mtls, gRPC
speaks TLS alone and wants a certificate of the same SPIFFE trust domain from each
client; it begins to listen when its own certificate has appeared, and follows
that from then on. SIGTERM lets calls under way finish.`,
		Example: "  meshecho serve --pod p1\n  meshecho serve --pod p1 --mtls --secrets /run/secrets/flatmesh.io",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if readyFD > 0 {
				s.ready = os.NewFile(uintptr(readyFD), "ready")
			}
			return s.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.pod, "pod", "", "who answers")
	f.StringVar(&s.node, "node", "", "its node")
	f.StringVar(&s.cluster, "cluster", "", "its cluster")
	f.StringVar(&s.http, "http", ":8080", "address for HTTP")
	f.StringVar(&s.grpc, "grpc", ":50051", "address for gRPC")
	f.BoolVar(&s.mtls, "mtls", false, "speak mTLS on the gRPC port")
	f.StringVar(&s.secrets, "secrets", secrets, "folder of tls.crt, tls.key and ca.crt")
	f.IntVar(&readyFD, "ready-fd", 0, "descriptor to write to once it listens")
	return cmd
}

func (s *server) run(ctx context.Context) error {
	var lc net.ListenConfig
	web, err := lc.Listen(ctx, "tcp", s.http)
	if err != nil {
		return err
	}
	var plain net.Listener
	if !s.mtls {
		if plain, err = lc.Listen(ctx, "tcp", s.grpc); err != nil {
			return err
		}
	}
	if s.ready != nil {
		_, err := io.WriteString(s.ready, "listening")
		if err := errors.Join(err, s.ready.Close()); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveHTTP(ctx, web) })
	g.Go(func() error {
		if plain != nil {
			return serveGRPC(ctx, plain, insecure.NewCredentials(), s)
		}
		return s.serveMTLS(ctx)
	})
	return g.Wait()
}

func (s *server) serveMTLS(ctx context.Context) error {
	id, err := openIdentity(s.secrets)
	if err != nil {
		return err
	}
	defer id.close()
	if err := id.await(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.grpc)
	if err != nil {
		return err
	}
	return serveGRPC(ctx, ln, id.server(), s)
}

// serveGRPC serves until ctx ends, and then for as long as calls are under way.
func serveGRPC(ctx context.Context, ln net.Listener, creds credentials.TransportCredentials, echo pb.EchoServer) error {
	g := grpc.NewServer(grpc.Creds(creds))
	pb.RegisterEchoServer(g, echo)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		last := time.AfterFunc(grace, g.Stop)
		defer last.Stop()
		g.GracefulStop()
	})
	err := g.Serve(ln)
	if !stop() {
		<-ended
		return nil
	}
	return err
}

// Call implements the service.
func (s *server) Call(ctx context.Context, r *pb.CallRequest) (*pb.CallReply, error) {
	if d := r.GetDelay().AsDuration(); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.C:
		}
	}
	p := peerOf(ctx)
	id, name := proven(p)
	return &pb.CallReply{
		Pod: s.pod, Node: s.node, Cluster: s.cluster,
		Address: address(p.LocalAddr), Caller: address(p.Addr), ClientId: id, ServerName: name,
	}, nil
}

// address writes IPv4 as such, whatever kind of socket it came over.
func address(a net.Addr) string {
	if a == nil {
		return ""
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
}

// answer is what HTTP says.
type answer struct {
	Pod     string `json:"pod"`
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	// Caller is an IP address without a port.
	Caller string `json:"caller"`
	// Address is the pod's own, IP:PORT.
	Address string `json:"address"`
}

func (s *server) serveHTTP(ctx context.Context, ln net.Listener) error {
	h := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := answer{Pod: s.pod, Node: s.node, Cluster: s.cluster}
			if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
				a.Caller = from.Addr().Unmap().String()
			}
			if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
				a.Address = address(at)
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(a); err != nil {
				fmt.Fprintln(os.Stderr, "answer", r.RemoteAddr, err)
			}
		}),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		_ = h.Shutdown(patience) // it fails where calls outlast the grace
	})
	err := h.Serve(ln)
	if !stop() {
		<-ended
		return nil
	}
	return err
}
