package agent

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/pki/credentials"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// prover proves the node's WireGuard key.
type prover struct{ key wg.PrivateKey }

var _ peering.Prover = prover{}

func (p prover) PublicKey() mesh.PublicKey { return p.key.PublicKey() }

func (p prover) Prove(serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) ([]byte, error) {
	return pki.Prove(p.key, serverKey, cookie, node, subject)
}

// identity is the node's certificate.
type identity struct {
	*credentials.Credentials
	node mesh.NodeID
}

// openIdentity reads the certificate on disk, if there is one.
func openIdentity(o Options, now func() time.Time) (*identity, error) {
	c, err := credentials.Open(credentials.Options{
		Identity: pki.AgentOf(o.Node), Dir: o.StateDir, TokenFile: o.TokenFile, Log: o.Log, Now: now,
	})
	if err != nil {
		return nil, err
	}
	return &identity{c, o.Node}, nil
}

// join gets a certificate for the token.
func (i *identity) join(ctx context.Context, conn *grpc.ClientConn, p peering.Prover) error {
	return i.Join(ctx, peering.NewAgent(conn, i.node, p).Join)
}
