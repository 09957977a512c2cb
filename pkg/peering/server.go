package peering

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Authority says who a caller is and hands out identities.
type Authority interface {
	// Challenge returns a fresh challenge for a WireGuard key proof.
	Challenge() (serverKey [32]byte, cookie []byte, err error)
	// VerifyProof checks that its maker holds key, for this node and subject.
	VerifyProof(key mesh.PublicKey, cookie, mac []byte, node mesh.NodeID, subject []byte) error
	// VerifyToken returns what a join token is for; node is empty for one that
	// serves any node of the cluster.
	VerifyToken(token string) (cluster, node string, err error)
	// Issue signs a certificate for the node's agent over the CSR's key. An error
	// that is no gRPC status is the CSR's fault.
	Issue(node mesh.NodeID, csr []byte) (chain, roots [][]byte, err error)
	// Caller returns the node whose agent makes the call, from its certificate.
	// Its error is a gRPC status.
	Caller(ctx context.Context) (mesh.NodeID, error)

	// VerifyGatewayToken returns the gateway that a join token is for. An agent's
	// token is an error.
	VerifyGatewayToken(token string) (cluster, name string, err error)
	// IssueGateway is Issue for a gateway.
	IssueGateway(cluster, name string, csr []byte) (chain, roots [][]byte, err error)
	// GatewayCaller returns the gateway that makes the call, from its certificate.
	// It is false for every other caller, and for one without a good certificate:
	// of those Caller says what they are.
	GatewayCaller(ctx context.Context) (cluster, name string, ok bool)

	// IssueWorkload is Issue for the pods of a service account in a cluster.
	IssueWorkload(cluster, namespace, serviceAccount string, csr []byte) (chain, roots [][]byte, err error)
}

// Registration is what an agent says of its node.
type Registration struct {
	Node       mesh.NodeID
	Key        mesh.PublicKey
	Endpoints  []netip.AddrPort
	ListenPort uint16
	Device     string
	Version    string
	// TunnelAddrs are those that the node held before, to be kept if free.
	TunnelAddrs []netip.Addr
}

// Backend takes what agents say. Its errors are gRPC statuses whose text says
// what the person at the agent can do.
type Backend interface {
	// MayJoin reports whether a token for any node of the cluster may be used for
	// this one: not where another key is alive under that name.
	MayJoin(ctx context.Context, node mesh.NodeID, key mesh.PublicKey) error
	// Known reports whether the node still exists.
	Known(ctx context.Context, node mesh.NodeID) error
	// Register stores r and returns the node's tunnel addresses, and which
	// endpoint candidates were not taken and why.
	Register(ctx context.Context, r Registration) (addrs []netip.Addr, refused []string, err error)
	// Attach begins a report stream. The returned context ends, with a cause,
	// when the node loses its right to it.
	Attach(ctx context.Context, node mesh.NodeID) (Session, context.Context, error)

	// KnownGateway reports whether the gateway may have a certificate: its cluster
	// is one of the mesh, and it has not lost its right.
	KnownGateway(ctx context.Context, cluster, name string) error
	// Workload returns the service account of a pod that runs on the node, and an
	// error where none does that has this name and UID. An empty uid is that of a
	// source which has none.
	Workload(ctx context.Context, node mesh.NodeID, namespace, pod, uid string) (serviceAccount string, err error)
	// Paths tells how the node reaches a service or a pod's address. A target that
	// is neither, or that is not there, is an error.
	Paths(ctx context.Context, node mesh.NodeID, target string) ([]PathAnswer, error)
}

// Session takes one report stream's messages.
type Session interface {
	// Report replaces everything that the node said (full), or adds changes. A
	// nil status takes the tunnel off.
	Report(ctx context.Context, full bool, tunnels map[mesh.NodeID]*mesh.TunnelStatus) error
	// Close ends the session.
	Close()
}

const (
	// maxTunnels bounds one report; a node has at most one tunnel to each other.
	maxTunnels = 100_000
	// maxWord bounds words that are kept and shown: versions, reasons, UIDs.
	maxWord = 128
)

// Server implements the Peering service.
type Server struct {
	peeringv1.UnimplementedPeeringServer

	authority Authority
	backend   Backend
	log       *slog.Logger
	version   string
}

// NewServer returns the service. version is the control plane's, told to agents.
func NewServer(a Authority, b Backend, log *slog.Logger, version string) *Server {
	return &Server{authority: a, backend: b, log: log, version: version}
}

// Challenge begins a key proof.
func (s *Server) Challenge(context.Context, *peeringv1.ChallengeRequest) (*peeringv1.ChallengeResponse, error) {
	key, cookie, err := s.authority.Challenge()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "make a challenge: %v", err)
	}
	return &peeringv1.ChallengeResponse{ServerKey: key[:], Cookie: cookie}, nil
}

// Join turns a token into a certificate.
func (s *Server) Join(ctx context.Context, req *peeringv1.JoinRequest) (*peeringv1.JoinResponse, error) {
	node, err := mesh.ParseNodeID(req.GetNode())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	cluster, name, err := s.authority.VerifyToken(req.GetToken())
	if err != nil {
		s.log.Warn("join refused", "node", node, "err", err)
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if cluster != node.Cluster || (name != "" && name != node.Name) {
		want := cluster
		if name != "" {
			want += "/" + name
		}
		s.log.Warn("join refused", "node", node, "err", "the token is for "+want)
		return nil, status.Errorf(codes.PermissionDenied, "the token is for %s, not for %s: make one with: controlplane token create --cluster %s --node %s", want, node, node.Cluster, node.Name)
	}
	key, err := s.proof(node, req.GetProof(), req.GetCsr())
	if err != nil {
		return nil, err
	}
	if err := s.backend.Known(ctx, node); err != nil {
		return nil, err
	}
	if name == "" {
		if err := s.backend.MayJoin(ctx, node, key); err != nil {
			s.log.Warn("join refused", "node", node, "err", err)
			return nil, err
		}
	}
	chain, roots, err := s.authority.Issue(node, req.GetCsr())
	if err != nil {
		return nil, notIssued(node, err)
	}
	s.log.Info("agent joined", "node", node, "key", key)
	return &peeringv1.JoinResponse{Certificates: chain, Roots: roots}, nil
}

// Renew replaces the caller's certificate, be it an agent or a gateway.
func (s *Server) Renew(ctx context.Context, req *peeringv1.RenewRequest) (*peeringv1.RenewResponse, error) {
	if cluster, name, ok := s.authority.GatewayCaller(ctx); ok {
		return s.renewGateway(ctx, cluster, name, req)
	}
	node, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	chain, roots, err := s.authority.Issue(node, req.GetCsr())
	if err != nil {
		return nil, notIssued(node, err)
	}
	return &peeringv1.RenewResponse{Certificates: chain, Roots: roots}, nil
}

// notIssued makes a gRPC status of why there is no certificate: what is none is
// the CSR's fault.
func notIssued(whom fmt.Stringer, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Errorf(codes.InvalidArgument, "issue a certificate for %s: %v", whom, err)
}

// Register stores where the caller's WireGuard is.
func (s *Server) Register(ctx context.Context, req *peeringv1.RegisterRequest) (*peeringv1.RegisterResponse, error) {
	node, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	r := Registration{Node: node, Device: req.GetDevice(), Version: req.GetVersion(), ListenPort: uint16(req.GetListenPort())}
	if p := req.GetListenPort(); p == 0 || p > 65535 {
		return nil, status.Errorf(codes.InvalidArgument, "listen port %d: want 1 to 65535", p)
	}
	if len(req.GetEndpoints()) > 32 || len(req.GetTunnelAddresses()) > 2 {
		return nil, status.Error(codes.InvalidArgument, "at most 32 endpoints and 2 tunnel addresses are taken")
	}
	if len(req.GetDevice()) > maxWord || len(req.GetVersion()) > maxWord {
		return nil, status.Errorf(codes.InvalidArgument, "device and version: at most %d bytes each are taken", maxWord)
	}
	if r.Key, err = s.proof(node, req.GetProof(), nil); err != nil {
		return nil, err
	}
	for _, e := range req.GetEndpoints() {
		ap, err := netip.ParseAddrPort(e)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "endpoint %q: %v", e, err)
		}
		r.Endpoints = append(r.Endpoints, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	for _, a := range req.GetTunnelAddresses() {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "tunnel address %q: %v", a, err)
		}
		r.TunnelAddrs = append(r.TunnelAddrs, addr)
	}
	addrs, refused, err := s.backend.Register(ctx, r)
	if err != nil {
		return nil, err
	}
	resp := &peeringv1.RegisterResponse{Version: s.version, RefusedEndpoints: refused}
	for _, a := range addrs {
		resp.TunnelAddresses = append(resp.TunnelAddresses, a.String())
	}
	return resp, nil
}

// Report takes the caller's tunnel states.
func (s *Server) Report(str peeringv1.Peering_ReportServer) error {
	node, err := s.caller(str.Context())
	if err != nil {
		return err
	}
	session, ctx, err := s.backend.Attach(str.Context(), node)
	if err != nil {
		return err
	}
	defer session.Close()

	// Recv does not watch ctx, which ends when the node loses its right: this
	// handler returns then, which ends the stream and with it the Recv below.
	done := make(chan error, 1)
	go func() { done <- receive(ctx, str, session) }()
	select {
	case err = <-done:
	case <-ctx.Done():
	}
	switch {
	case str.Context().Err() != nil:
		return status.FromContextError(str.Context().Err()).Err()
	case ctx.Err() != nil:
		return refusal(context.Cause(ctx))
	default:
		return err
	}
}

// refusal makes a gRPC status of why a node lost its right to a stream.
func refusal(cause error) error {
	if _, ok := status.FromError(cause); ok {
		return cause
	}
	return status.Error(codes.PermissionDenied, cause.Error())
}

func receive(ctx context.Context, str peeringv1.Peering_ReportServer, session Session) error {
	for first := true; ; first = false {
		req, err := str.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case first != req.GetFull():
			return status.Error(codes.InvalidArgument, "the first message of a stream, and no other, carries every tunnel")
		case len(req.GetTunnels()) > maxTunnels:
			return status.Errorf(codes.ResourceExhausted, "%d tunnels in one report, at most %d are taken", len(req.GetTunnels()), maxTunnels)
		}
		tunnels, err := parseTunnels(req.GetTunnels())
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if err := session.Report(ctx, req.GetFull(), tunnels); err != nil {
			return err
		}
		if err := str.Send(&peeringv1.ReportResponse{Sequence: req.GetSequence()}); err != nil {
			return err
		}
	}
}

var states = map[peeringv1.TunnelReport_State]mesh.TunnelState{
	peeringv1.TunnelReport_UNKNOWN: mesh.Unknown,
	peeringv1.TunnelReport_UP:      mesh.Up,
	peeringv1.TunnelReport_DOWN:    mesh.Down,
}

func parseTunnels(in []*peeringv1.TunnelReport) (map[mesh.NodeID]*mesh.TunnelStatus, error) {
	out := make(map[mesh.NodeID]*mesh.TunnelStatus, len(in))
	for _, t := range in {
		id, err := mesh.ParseNodeID(t.GetNode())
		if err != nil {
			return nil, err
		}
		if t.GetState() == peeringv1.TunnelReport_GONE {
			out[id] = nil
			continue
		}
		state, ok := states[t.GetState()]
		if !ok {
			return nil, fmt.Errorf("tunnel to %s: state %d is not known here", id, t.GetState())
		}
		// Reasons of a newer agent pass as they are, for people; their length is
		// all that is not trusted.
		out[id] = &mesh.TunnelStatus{State: state, Reason: mesh.Reason(fmt.Sprintf("%.*s", maxWord, t.GetReason()))}
	}
	return out, nil
}

// caller returns the calling node and checks that it still exists.
func (s *Server) caller(ctx context.Context) (mesh.NodeID, error) {
	node, err := s.authority.Caller(ctx)
	if err != nil {
		return mesh.NodeID{}, err
	}
	return node, s.backend.Known(ctx, node)
}

func (s *Server) proof(node mesh.NodeID, p *peeringv1.KeyProof, subject []byte) (mesh.PublicKey, error) {
	key, err := mesh.PublicKeyFrom(p.GetPublicKey())
	if err != nil {
		return key, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.authority.VerifyProof(key, p.GetCookie(), p.GetMac(), node, subject); err != nil {
		s.log.Warn("key proof refused", "node", node, "key", key, "err", err)
		return key, status.Errorf(codes.Unauthenticated, "%s does not prove that it holds the key %s: %v", node, key, err)
	}
	return key, nil
}
