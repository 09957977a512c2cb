package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// bundleFile holds key, chain and roots together, so that they are replaced in
// one step and always belong together.
const bundleFile = "identity.pem"

// Bundle is the identity of an agent, a gateway or a workload: its certificate
// with its key, and the roots that it trusts.
type Bundle struct {
	Key crypto.Signer
	// Chain is DER, leaf first, without the root; Roots is DER.
	Chain, Roots [][]byte

	leaf *x509.Certificate
	id   Identity
	mesh string
}

// NewBundle checks that the parts belong together: the leaf is the key's, holds
// an identity, and is signed by one of the roots. It does not look at the time.
func NewBundle(key crypto.Signer, chain, roots [][]byte) (*Bundle, error) {
	if key == nil || len(chain) == 0 || len(roots) == 0 {
		return nil, errors.New("identity is incomplete: want a key, a certificate and a root")
	}
	b := &Bundle{Key: key, Chain: chain, Roots: roots}
	trusted, between := x509.NewCertPool(), x509.NewCertPool()
	for _, der := range roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
		if !isRoot(root) {
			return nil, fmt.Errorf("root certificate: %q does not sign itself", root.Subject)
		}
		trusted.AddCert(root)
	}
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		if i == 0 {
			b.leaf = cert
		} else {
			between.AddCert(cert)
		}
	}
	if !samePublic(key.Public(), b.leaf.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	verified, err := b.leaf.Verify(x509.VerifyOptions{
		Roots:         trusted,
		Intermediates: between,
		CurrentTime:   b.leaf.NotBefore,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	td, err := domainIn(verified[0])
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	if b.id, err = identityIn(td, verified[0]); err != nil {
		return nil, err
	}
	b.mesh = meshOf(td)
	return b, nil
}

// Identity returns whose certificate it is.
func (b *Bundle) Identity() Identity { return b.id }

// Mesh returns the name of the mesh that it belongs to.
func (b *Bundle) Mesh() string { return b.mesh }

// NotBefore and NotAfter bound the time in which the certificate is good.
func (b *Bundle) NotBefore() time.Time { return b.leaf.NotBefore }

// NotAfter is the end; see NotBefore.
func (b *Bundle) NotAfter() time.Time { return b.leaf.NotAfter }

// Certificate returns it in the form that crypto/tls wants.
func (b *Bundle) Certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: b.Chain, PrivateKey: b.Key, Leaf: b.leaf}
}

// SaveCertificate checks an agent's identity as NewBundle does and stores it in
// a directory (made with mode 0700 where it is missing), in place of the
// earlier one.
func SaveCertificate(dir string, key crypto.Signer, chain, roots [][]byte) (*Bundle, error) {
	b, err := NewBundle(key, chain, roots)
	if err != nil {
		return nil, err
	}
	data, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	for _, der := range append(append([][]byte{}, chain...), roots...) {
		data = append(data, encodeCertificate(der)...)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store the agent's identity: %w", err)
	}
	return b, writeFile(dir, bundleFile, data)
}

// LoadCertificate reads what SaveCertificate stored. An expired certificate is
// returned like any other. An error is fs.ErrNotExist where there is none yet,
// and *CorruptError where the file was damaged and has been set aside: in both
// cases the agent joins (again).
func LoadCertificate(dir string) (*Bundle, error) {
	return loadCertificate(dir, time.Now())
}

func loadCertificate(dir string, now time.Time) (*Bundle, error) {
	path := filepath.Join(dir, bundleFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the agent's identity: %w", err)
	}
	if err := checkMode(path, 0o077); err != nil {
		return nil, err
	}
	b, err := decodeBundle(data)
	if err != nil {
		return nil, setAside(path, now, err)
	}
	return b, nil
}

func decodeBundle(data []byte) (*Bundle, error) {
	key, rest, err := decodeKey(data)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCertificates(rest)
	if err != nil {
		return nil, err
	}
	var chain, roots [][]byte
	for _, cert := range certs {
		// Only a root is issued by itself; what lies between it and the leaf is not.
		if isRoot(cert) {
			roots = append(roots, cert.Raw)
		} else {
			chain = append(chain, cert.Raw)
		}
	}
	return NewBundle(key, chain, roots)
}
