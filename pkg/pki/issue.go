package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// Issue makes a certificate that binds an identity to a public key, good as TLS
// server and client. It is valid from a few minutes before now until ttl after
// it, within the root's own time. The chain is DER, leaf first, without the
// root.
func (a *Authority) Issue(id Identity, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([][]byte, error) {
	uri, err := id.URI(a.td)
	if err != nil {
		return nil, err
	}
	if err := checkKey(pub); err != nil {
		return nil, fmt.Errorf("certificate for %v: %w", id, err)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("certificate for %v: a time to live of %v: want a positive one", id, ttl)
	}
	if now.Before(a.root.NotBefore) || !now.Before(a.root.NotAfter) {
		return nil, fmt.Errorf("certificate for %v: the mesh CA is valid from %s to %s, and it is %s now", id,
			a.root.NotBefore.Format(time.RFC3339), a.root.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"flatmesh"}},
		URIs:                  []*url.URL{uri},
		NotBefore:             latest(now.Add(-backdate), a.root.NotBefore),
		NotAfter:              earliest(now.Add(ttl), a.root.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %v: %w", id, err)
	}
	return [][]byte{der}, nil
}

// ControlPlaneCertificate makes a key and a certificate for the control plane.
// Its chain ends with the root, in which agents that join look for the pin of
// their token.
func (a *Authority) ControlPlaneCertificate(now time.Time, ttl time.Duration) (*tls.Certificate, error) {
	key, csr, err := NewCSR()
	if err != nil {
		return nil, err
	}
	pub, err := ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	chain, err := a.Issue(Identity{Role: ControlPlane}, pub, now, ttl)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("certificate for the control plane: %w", err)
	}
	return &tls.Certificate{Certificate: append(chain, a.root.Raw), PrivateKey: key, Leaf: leaf}, nil
}

// newSerial returns 127 random bits: positive, at most 20 octets and without
// meaning, as RFC 5280 (4.1.2.2) wants them.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
