package peering

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	// maxTarget is more than the longest name of a service with its port.
	maxTarget = 512
	// maxPaths bounds an answer in bytes: some 100,000 endpoints, where gRPC's own
	// limit is at one of a service with 20,000.
	maxPaths = 32 << 20
)

// PathAnswer is how a node reaches one endpoint of a service, or a pod.
type PathAnswer struct {
	// Service is "namespace/name"; empty where the address is that of no service's
	// endpoint. Then Port and the port of Address are 0.
	Service string `json:"service"`
	Port    uint16 `json:"port"`
	// Address is the endpoint's own.
	Address netip.AddrPort `json:"address"`
	// Node is the endpoint's, "cluster/name"; empty where it is not known.
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	// Path says how, Reason why, as mesh.Resolve does; Detail says more for people.
	Path   mesh.PathKind `json:"path"`
	Reason mesh.Reason   `json:"reason"`
	Detail string        `json:"detail,omitempty"`
	// Gateways are those that serve the endpoint where the path is not direct, or
	// stand by where it is.
	Gateways []netip.AddrPort `json:"gateways,omitempty"`
	// Ready: one that is not is served to nobody.
	Ready bool `json:"ready"`
}

// Paths tells how the caller's node reaches a target.
func (s *Server) Paths(ctx context.Context, req *peeringv1.PathsRequest) (*peeringv1.PathsResponse, error) {
	node, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if n := len(req.GetTarget()); n == 0 || n > maxTarget {
		return nil, status.Errorf(codes.InvalidArgument, "target of %d bytes: want a service, as in echo.demo:80, or a pod's address", n)
	}
	answers, err := s.backend.Paths(ctx, node, req.GetTarget())
	if err != nil {
		return nil, err
	}
	resp := &peeringv1.PathsResponse{}
	for _, a := range answers {
		resp.Answers = append(resp.Answers, a.message())
	}
	return resp, nil
}

// Paths asks how the agent's node reaches a service, as clients write it, or a
// pod by its address.
func (a *Agent) Paths(ctx context.Context, target string) ([]PathAnswer, error) {
	resp, err := a.rpc.Paths(ctx, &peeringv1.PathsRequest{Target: target}, grpc.MaxCallRecvMsgSize(maxPaths))
	if err != nil {
		return nil, fmt.Errorf("ask for the path from %s to %s: %w", a.node, target, err)
	}
	answers := make([]PathAnswer, 0, len(resp.GetAnswers()))
	for _, m := range resp.GetAnswers() {
		answer, err := parsePathAnswer(m)
		if err != nil {
			return nil, fmt.Errorf("the path from %s to %s: %w", a.node, target, err)
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func (a PathAnswer) message() *peeringv1.PathAnswer {
	m := &peeringv1.PathAnswer{
		Service: a.Service, Port: uint32(a.Port), Node: a.Node, Cluster: a.Cluster,
		Path: a.Path.String(), Reason: string(a.Reason), Detail: a.Detail, Ready: a.Ready,
	}
	if a.Address.IsValid() {
		m.Address = a.Address.String()
	}
	for _, g := range a.Gateways {
		m.Gateways = append(m.Gateways, g.String())
	}
	return m
}

func parsePathAnswer(m *peeringv1.PathAnswer) (PathAnswer, error) {
	a := PathAnswer{
		Service: m.GetService(), Port: uint16(m.GetPort()), Node: m.GetNode(), Cluster: m.GetCluster(),
		Reason: mesh.Reason(m.GetReason()), Detail: m.GetDetail(), Ready: m.GetReady(),
	}
	if p := m.GetPort(); p > 65535 {
		return PathAnswer{}, fmt.Errorf("port %d", p)
	}
	if err := a.Path.UnmarshalText([]byte(m.GetPath())); err != nil {
		return PathAnswer{}, err
	}
	var err error
	if m.GetAddress() != "" {
		if a.Address, err = netip.ParseAddrPort(m.GetAddress()); err != nil {
			return PathAnswer{}, fmt.Errorf("address: %w", err)
		}
	}
	for _, g := range m.GetGateways() {
		gateway, err := netip.ParseAddrPort(g)
		if err != nil {
			return PathAnswer{}, fmt.Errorf("gateway: %w", err)
		}
		a.Gateways = append(a.Gateways, gateway)
	}
	return a, nil
}
