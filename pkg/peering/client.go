package peering

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Prover holds a WireGuard key and proves it.
type Prover interface {
	PublicKey() mesh.PublicKey
	// Prove returns the proof's MAC for a challenge.
	Prove(serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) ([]byte, error)
}

// Agent is the agent's side of the conversation, for one node.
type Agent struct {
	node   mesh.NodeID
	prover Prover
	rpc    peeringv1.PeeringClient
}

// NewAgent returns the client of conn for node.
func NewAgent(conn grpc.ClientConnInterface, node mesh.NodeID, prover Prover) *Agent {
	return &Agent{node: node, prover: prover, rpc: peeringv1.NewPeeringClient(conn)}
}

func (a *Agent) prove(ctx context.Context, subject []byte) (*peeringv1.KeyProof, error) {
	c, err := a.rpc.Challenge(ctx, &peeringv1.ChallengeRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for a challenge: %w", err)
	}
	if len(c.GetServerKey()) != 32 {
		return nil, fmt.Errorf("challenge: server key has %d bytes, want 32", len(c.GetServerKey()))
	}
	mac, err := a.prover.Prove([32]byte(c.GetServerKey()), c.GetCookie(), a.node, subject)
	if err != nil {
		return nil, fmt.Errorf("prove the WireGuard key: %w", err)
	}
	key := a.prover.PublicKey()
	return &peeringv1.KeyProof{PublicKey: key[:], Cookie: c.GetCookie(), Mac: mac}, nil
}

// Join shows a token and returns a certificate chain for the CSR's key, leaf
// first, and the mesh's roots; all DER.
func (a *Agent) Join(ctx context.Context, token string, csr []byte) (chain, roots [][]byte, err error) {
	proof, err := a.prove(ctx, csr)
	if err != nil {
		return nil, nil, err
	}
	resp, err := a.rpc.Join(ctx, &peeringv1.JoinRequest{Token: token, Node: a.node.String(), Csr: csr, Proof: proof})
	if err != nil {
		return nil, nil, fmt.Errorf("join as %s: %w", a.node, err)
	}
	return resp.GetCertificates(), resp.GetRoots(), nil
}

// Renew returns a new certificate chain, as Join does.
func (a *Agent) Renew(ctx context.Context, csr []byte) (chain, roots [][]byte, err error) {
	resp, err := a.rpc.Renew(ctx, &peeringv1.RenewRequest{Csr: csr})
	if err != nil {
		return nil, nil, fmt.Errorf("renew the certificate of %s: %w", a.node, err)
	}
	return resp.GetCertificates(), resp.GetRoots(), nil
}

// Register says where the node's WireGuard is; r.Node and r.Key are the client's
// own. It returns the node's tunnel addresses, the control plane's version and
// the endpoint candidates that were not taken, with why.
func (a *Agent) Register(ctx context.Context, r Registration) (addrs []netip.Addr, version string, refused []string, err error) {
	proof, err := a.prove(ctx, nil)
	if err != nil {
		return nil, "", nil, err
	}
	req := &peeringv1.RegisterRequest{Proof: proof, ListenPort: uint32(r.ListenPort), Version: r.Version, Device: r.Device}
	for _, e := range r.Endpoints {
		req.Endpoints = append(req.Endpoints, e.String())
	}
	for _, t := range r.TunnelAddrs {
		req.TunnelAddresses = append(req.TunnelAddresses, t.String())
	}
	resp, err := a.rpc.Register(ctx, req)
	if err != nil {
		return nil, "", nil, fmt.Errorf("register %s: %w", a.node, err)
	}
	for _, s := range resp.GetTunnelAddresses() {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, "", nil, fmt.Errorf("register %s: tunnel address %q: %w", a.node, s, err)
		}
		addrs = append(addrs, addr)
	}
	return addrs, resp.GetVersion(), resp.GetRefusedEndpoints(), nil
}

// Reports is where Report takes tunnel states from.
type Reports interface {
	// All returns every tunnel's status and forgets what Changes would have said.
	All() map[mesh.NodeID]*mesh.TunnelStatus
	// Changed is marked when Changes has something to say.
	Changed() <-chan struct{}
	// Changes returns what changed since the last call of All or Changes: a nil
	// status for a tunnel that is gone.
	Changes() map[mesh.NodeID]*mesh.TunnelStatus
}

// Report runs one report stream until ctx ends or the stream fails. One message
// is under way at a time: changes gather while the control plane takes in the
// last, so that a flapping mesh costs it no more than it can bear.
func (a *Agent) Report(ctx context.Context, from Reports) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	str, err := a.rpc.Report(ctx)
	if err != nil {
		return fmt.Errorf("open the report stream: %w", err)
	}
	acks := make(chan error)
	go func() {
		for {
			_, err := str.Recv()
			select {
			case acks <- err:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	req := &peeringv1.ReportRequest{Full: true, Sequence: 1, Tunnels: tunnelMessages(from.All())}
	for {
		// What ended the stream comes from Recv, not from Send.
		_ = str.Send(req)
		select {
		case err := <-acks:
			if err != nil {
				return fmt.Errorf("report stream: %w", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-from.Changed():
			req = &peeringv1.ReportRequest{Sequence: req.GetSequence() + 1, Tunnels: tunnelMessages(from.Changes())}
		case err := <-acks:
			if err == nil {
				err = errors.New("an answer to nothing")
			}
			return fmt.Errorf("report stream: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func tunnelMessages(in map[mesh.NodeID]*mesh.TunnelStatus) []*peeringv1.TunnelReport {
	out := make([]*peeringv1.TunnelReport, 0, len(in))
	for id, t := range in {
		m := &peeringv1.TunnelReport{Node: id.String(), State: peeringv1.TunnelReport_GONE}
		if t != nil {
			m.Reason = string(t.Reason)
			switch t.State {
			case mesh.Up:
				m.State = peeringv1.TunnelReport_UP
			case mesh.Down:
				m.State = peeringv1.TunnelReport_DOWN
			case mesh.Unknown:
				m.State = peeringv1.TunnelReport_UNKNOWN
			}
		}
		out = append(out, m)
	}
	return out
}
