package peering

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// gatewayID names a gateway's process in messages.
type gatewayID struct{ cluster, name string }

// String returns "gateway cluster/name".
func (g gatewayID) String() string { return "gateway " + g.cluster + "/" + g.name }

// validate accepts a name as Kubernetes does for a pod's: a DNS subdomain.
func (g gatewayID) validate() error {
	if err := mesh.ValidateClusterName(g.cluster); err != nil {
		return err
	}
	if mesh.ValidateNodeName(g.name) != nil { // the same rule
		return fmt.Errorf("gateway name %q: want a lower-case DNS name of at most 253 characters", g.name)
	}
	return nil
}

// JoinGateway turns a gateway's token into a certificate.
func (s *Server) JoinGateway(ctx context.Context, req *peeringv1.JoinGatewayRequest) (*peeringv1.JoinGatewayResponse, error) {
	g := gatewayID{req.GetCluster(), req.GetName()}
	if err := g.validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	cluster, name, err := s.authority.VerifyGatewayToken(req.GetToken())
	if err != nil {
		s.log.Warn("join refused", "gateway", g, "err", err)
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if of := (gatewayID{cluster, name}); of != g {
		s.log.Warn("join refused", "gateway", g, "err", "the token is for the "+of.String())
		return nil, status.Errorf(codes.PermissionDenied, "the token is for the %s, not for the %s: make one with: controlplane token create --cluster %s --gateway %s", of, g, g.cluster, g.name)
	}
	if err := s.backend.KnownGateway(ctx, g.cluster, g.name); err != nil {
		return nil, err
	}
	chain, roots, err := s.authority.IssueGateway(g.cluster, g.name, req.GetCsr())
	if err != nil {
		return nil, notIssued(g, err)
	}
	s.log.Info("gateway joined", "gateway", g)
	return &peeringv1.JoinGatewayResponse{Certificates: chain, Roots: roots}, nil
}

func (s *Server) renewGateway(ctx context.Context, cluster, name string, req *peeringv1.RenewRequest) (*peeringv1.RenewResponse, error) {
	if err := s.backend.KnownGateway(ctx, cluster, name); err != nil {
		return nil, err
	}
	chain, roots, err := s.authority.IssueGateway(cluster, name, req.GetCsr())
	if err != nil {
		return nil, notIssued(gatewayID{cluster, name}, err)
	}
	return &peeringv1.RenewResponse{Certificates: chain, Roots: roots}, nil
}

// Gateway is the gateway's side of the conversation.
type Gateway struct {
	id  gatewayID
	rpc peeringv1.PeeringClient
}

// NewGateway returns the client of conn for a cluster's gateway.
func NewGateway(conn grpc.ClientConnInterface, cluster, name string) *Gateway {
	return &Gateway{id: gatewayID{cluster, name}, rpc: peeringv1.NewPeeringClient(conn)}
}

// Join shows a token and returns a certificate chain for the CSR's key, leaf
// first, and the mesh's roots; all DER.
func (g *Gateway) Join(ctx context.Context, token string, csr []byte) (chain, roots [][]byte, err error) {
	resp, err := g.rpc.JoinGateway(ctx, &peeringv1.JoinGatewayRequest{Token: token, Cluster: g.id.cluster, Name: g.id.name, Csr: csr})
	if err != nil {
		return nil, nil, fmt.Errorf("join as %s: %w", g.id, err)
	}
	return resp.GetCertificates(), resp.GetRoots(), nil
}

// Renew returns a new certificate chain, as Join does.
func (g *Gateway) Renew(ctx context.Context, csr []byte) (chain, roots [][]byte, err error) {
	resp, err := g.rpc.Renew(ctx, &peeringv1.RenewRequest{Csr: csr})
	if err != nil {
		return nil, nil, fmt.Errorf("renew the certificate of %s: %w", g.id, err)
	}
	return resp.GetCertificates(), resp.GetRoots(), nil
}
