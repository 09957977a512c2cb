package credentials

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

	"github.com/flatmesh/flatmesh/pkg/pki"
)

// Options says whose credentials they are and where they lie. All is needed but
// TokenFile.
type Options struct {
	// Identity is an agent's or a gateway's.
	Identity pki.Identity
	// Dir is where the certificate and its key are kept; see pki.SaveCertificate.
	Dir string
	// TokenFile holds a join token; empty: there is none, and a certificate must be
	// in Dir.
	TokenFile string
	Log       *slog.Logger
	Now       func() time.Time
}

// Credentials is a member's certificate. It is safe for concurrent use.
type Credentials struct {
	o Options

	mu     sync.Mutex
	bundle *pki.Bundle
	// renewAt is when half of the bundle's life is over, counted from when it came:
	// it begins earlier, for clocks that are behind, which may be most of a short
	// life. Of one from an earlier run only the beginning is known.
	renewAt time.Time
	// dismissed: a certificate was given up once for another by the token.
	dismissed bool
}

// Open reads the certificate on disk, if there is one. One that is damaged is set
// aside, and one of somebody else is not used; the log says so.
func Open(o Options) (*Credentials, error) {
	if err := o.Identity.Validate(); err != nil {
		return nil, err
	}
	c := &Credentials{o: o}
	b, err := pki.LoadCertificate(o.Dir)
	var corrupt *pki.CorruptError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case errors.As(err, &corrupt):
		o.Log.Error("the certificate was set aside; joining again", "err", err)
		return c, nil
	case err != nil:
		return nil, err
	}
	if got := b.Identity(); got != o.Identity {
		o.Log.Warn("the certificate on disk is another's; joining again", "certificate", got, "identity", o.Identity)
		return c, nil
	}
	c.bundle, c.renewAt = b, middle(b.NotBefore(), b.NotAfter())
	return c, nil
}

// good returns the certificate if it can be used now.
func (c *Credentials) good() *pki.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bundle == nil || !c.o.Now().Before(c.bundle.NotAfter()) {
		return nil
	}
	return c.bundle
}

// Until returns when the certificate ends, and false where there is none that is
// good.
func (c *Credentials) Until() (time.Time, bool) {
	b := c.good()
	if b == nil {
		return time.Time{}, false
	}
	return b.NotAfter(), true
}

// TLS returns the configuration of the next connection to the control plane. With
// joined it shows the certificate; without, there is none that is good, and the
// connection is for Join alone: it trusts what the token pins. A token that pins
// another CA than the certificate's tells that the mesh has a new one since, under
// which the certificate is good for nothing.
func (c *Credentials) TLS() (cfg *tls.Config, joined bool, err error) {
	if b := c.good(); b != nil && !c.replaced(b) {
		cfg, err = pki.ClientTLS(b.Mesh(), b.Roots, c.certificate)
		return cfg, true, err
	}
	token, err := c.token()
	if err != nil {
		return nil, false, err
	}
	cfg, err = pki.JoinTLS(token)
	return cfg, false, err
}

func (c *Credentials) certificate() (*tls.Certificate, error) {
	b := c.good()
	if b == nil {
		return nil, errors.New("the certificate has expired")
	}
	return b.Certificate(), nil
}

func (c *Credentials) replaced(b *pki.Bundle) bool {
	if c.o.TokenFile == "" {
		return false
	}
	token, err := c.token()
	if err != nil {
		return false
	}
	pin, _, err := pki.PinOf(token)
	return err == nil && !b.Trusts(pin)
}

func (c *Credentials) token() (string, error) {
	advice := "make one at the control plane: " + tokenCommand(c.o.Identity)
	if c.o.TokenFile == "" {
		return "", fmt.Errorf("there is no good certificate in %s and no --token-file; %s", c.o.Dir, advice)
	}
	b, err := os.ReadFile(c.o.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read the join token: %w; %s", err, advice)
	}
	return strings.TrimSpace(string(b)), nil
}

func tokenCommand(id pki.Identity) string {
	if id.Role == pki.Gateway {
		return fmt.Sprintf("controlplane token create --cluster %s --gateway %s", id.Cluster, id.Name)
	}
	return fmt.Sprintf("controlplane token create --cluster %s --node %s", id.Node.Cluster, id.Node.Name)
}

// JoinFunc asks the control plane for a certificate in exchange for a token. What
// it returns is DER: the chain leaf first, and the roots.
type JoinFunc func(ctx context.Context, token string, csr []byte) (chain, roots [][]byte, err error)

// Join gets a certificate for the token. Its connection is of TLS without joined;
// the next one has the certificate.
func (c *Credentials) Join(ctx context.Context, join JoinFunc) error {
	token, err := c.token()
	if err != nil {
		return err
	}
	return c.replace("joined the mesh", func(csr []byte) ([][]byte, [][]byte, error) { return join(ctx, token, csr) })
}

// Dismiss gives up a certificate that the control plane refuses, for a new one by
// the token, and returns whether it did. It does so once in a run: of two hosts
// that both take one name, each with a token for it, one must end as the one that
// is refused.
func (c *Credentials) Dismiss() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dismissed || c.o.TokenFile == "" {
		return false
	}
	c.dismissed, c.bundle = true, nil
	return true
}

// replace gets a certificate for a new key.
func (c *Credentials) replace(what string, get func(csr []byte) (chain, roots [][]byte, err error)) error {
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
	now := c.o.Now()
	if !now.Before(b.NotAfter()) {
		return fmt.Errorf("the new certificate ended at %v, and by this host's clock it is %v: set the clock of this host", b.NotAfter().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if got := b.Identity(); got != c.o.Identity {
		return fmt.Errorf("the control plane's certificate is of %v, not of %v", got, c.o.Identity)
	}
	c.mu.Lock()
	c.bundle, c.renewAt = b, middle(now, b.NotAfter())
	c.mu.Unlock()
	c.o.Log.Info(what, "identity", c.o.Identity, "until", b.NotAfter())
	if _, err := pki.SaveCertificate(c.o.Dir, key, chain, roots); err != nil {
		// It serves for this run; the next start needs a token again.
		c.o.Log.Error("the certificate could not be kept on disk", "err", err)
	}
	return nil
}

func middle(a, b time.Time) time.Time { return a.Add(b.Sub(a) / 2) }
