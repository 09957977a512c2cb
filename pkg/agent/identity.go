package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// prover proves the node's WireGuard key.
type prover struct{ key wg.PrivateKey }

var _ peering.Prover = prover{}

func (p prover) PublicKey() mesh.PublicKey { return p.key.PublicKey() }

func (p prover) Prove(serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) ([]byte, error) {
	return pki.Prove(p.key, serverKey, cookie, node, subject)
}

// identity is the node's certificate: on disk, renewed, and got by a token
// where there is none that is good.
type identity struct {
	node      mesh.NodeID
	dir       string
	tokenFile string
	log       *slog.Logger
	now       func() time.Time

	mu     sync.Mutex
	bundle *pki.Bundle
	// dismissed: the certificate was given up once for another by the token.
	dismissed bool
}

// dismiss gives up a certificate that the control plane refuses, for a new one
// by the token. It does so once in a run: of two hosts that both take one node's
// name, each with a token for it, one must end as the one that is refused.
func (i *identity) dismiss() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.dismissed || i.tokenFile == "" {
		return false
	}
	i.dismissed, i.bundle = true, nil
	return true
}

// openIdentity reads the certificate on disk, if there is one.
func openIdentity(o Options, now func() time.Time) (*identity, error) {
	id := &identity{node: o.Node, dir: o.StateDir, tokenFile: o.TokenFile, log: o.Log, now: now}
	b, err := pki.LoadCertificate(o.StateDir)
	var corrupt *pki.CorruptError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return id, nil
	case errors.As(err, &corrupt):
		o.Log.Error("the certificate was set aside; joining again", "err", err)
		return id, nil
	case err != nil:
		return nil, err
	}
	if got := b.Identity(); got != pki.AgentOf(o.Node) {
		o.Log.Warn("the certificate on disk is another node's; joining again", "certificate", got, "node", o.Node)
		return id, nil
	}
	id.bundle = b
	return id, nil
}

// good returns the certificate if it can be used now.
func (i *identity) good() *pki.Bundle {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bundle == nil || !i.now().Before(i.bundle.NotAfter()) {
		return nil
	}
	return i.bundle
}

func (i *identity) certificate() (*tls.Certificate, error) {
	b := i.good()
	if b == nil {
		return nil, errors.New("the certificate has expired")
	}
	return b.Certificate(), nil
}

// tls returns the configuration of the next connection: with the certificate,
// or with the token's pin where there is none. joined says which.
func (i *identity) tls() (cfg *tls.Config, joined bool, err error) {
	if b := i.good(); b != nil && !i.replaced(b) {
		cfg, err = pki.ClientTLS(b.Mesh(), b.Roots, i.certificate)
		return cfg, true, err
	}
	token, err := i.token()
	if err != nil {
		return nil, false, err
	}
	cfg, err = pki.JoinTLS(token)
	return cfg, false, err
}

// replaced reports whether the token pins another CA than the certificate's: the
// mesh has a new one since, and the certificate is good for nothing.
func (i *identity) replaced(b *pki.Bundle) bool {
	if i.tokenFile == "" {
		return false
	}
	token, err := i.token()
	if err != nil {
		return false
	}
	pin, _, err := pki.PinOf(token)
	return err == nil && !b.Trusts(pin)
}

func (i *identity) token() (string, error) {
	advice := fmt.Sprintf("make one at the control plane: controlplane token create --cluster %s --node %s", i.node.Cluster, i.node.Name)
	if i.tokenFile == "" {
		return "", fmt.Errorf("there is no good certificate in %s and no --token-file; %s", i.dir, advice)
	}
	b, err := os.ReadFile(i.tokenFile)
	if err != nil {
		return "", fmt.Errorf("read the join token: %w; %s", err, advice)
	}
	return strings.TrimSpace(string(b)), nil
}

// join gets a certificate for the token, over a connection made with tls.
func (i *identity) join(ctx context.Context, conn *grpc.ClientConn, p peering.Prover) error {
	token, err := i.token()
	if err != nil {
		return err
	}
	return i.replace("joined the mesh", func(csr []byte) ([][]byte, [][]byte, error) {
		return peering.NewAgent(conn, i.node, p).Join(ctx, token, csr)
	})
}

// renew replaces the certificate by one of a new key.
func (i *identity) renew(ctx context.Context, peers *peering.Agent) error {
	return i.replace("certificate renewed", func(csr []byte) ([][]byte, [][]byte, error) { return peers.Renew(ctx, csr) })
}

func (i *identity) replace(what string, get func(csr []byte) (chain, roots [][]byte, err error)) error {
	key, csr, err := pki.NewCSR()
	if err != nil {
		return err
	}
	chain, roots, err := get(csr)
	if err != nil {
		return err
	}
	b, err := pki.NewBundle(key, chain, roots)
	if err != nil {
		return fmt.Errorf("the control plane's certificate: %w", err)
	}
	if now := i.now(); !now.Before(b.NotAfter()) {
		return fmt.Errorf("the new certificate ended at %v, and by this node's clock it is %v: set the clock of this node", b.NotAfter().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if got := b.Identity(); got != pki.AgentOf(i.node) {
		return fmt.Errorf("the control plane's certificate is of %v, not of %v", got, i.node)
	}
	i.mu.Lock()
	i.bundle = b
	i.mu.Unlock()
	i.log.Info(what, "node", i.node, "until", b.NotAfter())
	if _, err := pki.SaveCertificate(i.dir, key, chain, roots); err != nil {
		// It serves for this run; the next start needs a token again.
		i.log.Error("the certificate could not be kept on disk", "err", err)
	}
	return nil
}

// renewAt returns when to renew: at half of the certificate's life.
func (i *identity) renewAt() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bundle == nil {
		return i.now()
	}
	begin, end := i.bundle.NotBefore(), i.bundle.NotAfter()
	return begin.Add(end.Sub(begin) / 2)
}
