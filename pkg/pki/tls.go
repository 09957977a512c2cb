package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// CertificateFunc returns the certificate of the moment, so that a renewed one
// is used from the next handshake on.
type CertificateFunc func() (*tls.Certificate, error)

// JoinTLS is for the first contact of an agent or a gateway, when it has a token
// and no certificate: it trusts the control plane whose chain ends in the root that
// the token pins. It sends no certificate.
func JoinTLS(token string) (*tls.Config, error) {
	pin, claims, err := PinOf(token)
	if err != nil {
		return nil, err
	}
	td, err := TrustDomain(claims.Mesh)
	if err != nil {
		return nil, err
	}
	return clientConfig(func(certs []*x509.Certificate) error {
		for _, cert := range certs {
			if got := pinOf(cert); bytes.Equal(got[:], pin) {
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				return verifyControlPlane(td, roots, certs)
			}
		}
		return errors.New("the server is not the control plane that made the token, or has a new CA since: check the address, or make a new token there")
	}), nil
}

// ClientTLS is for agents and gateways that have a certificate: both ends prove
// who they are. Roots are DER.
func ClientTLS(meshName string, roots [][]byte, current CertificateFunc) (*tls.Config, error) {
	td, pool, err := trust(meshName, roots)
	if err != nil {
		return nil, err
	}
	cfg := clientConfig(func(certs []*x509.Certificate) error { return verifyControlPlane(td, pool, certs) })
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return current() }
	return cfg, nil
}

// ServerTLS is for the control plane. A client may come without a certificate,
// to join; one that shows a certificate must show a valid one of this mesh.
// Who it is, handlers ask PeerIdentity. Roots are DER.
func ServerTLS(meshName string, roots [][]byte, current CertificateFunc) (*tls.Config, error) {
	td, pool, err := trust(meshName, roots)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  pool,
		// A resumed session would carry a certificate from an earlier time.
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			_, err := identityIn(td, cs.VerifiedChains[0])
			return err
		},
	}, nil
}

// PeerIdentity returns who the client of a ServerTLS connection is, and false
// where it came without a certificate. Connections outlive certificates, so it
// is asked on every call, and a certificate that is over by now is
// ErrCertificateExpired.
func PeerIdentity(cs tls.ConnectionState, now time.Time) (Identity, bool, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, false, nil
	}
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, false, errors.New("the peer's certificate was not verified")
	}
	chain := cs.VerifiedChains[0]
	// Where the root names none, ServerTLS compared the leaf's with the mesh's.
	td, err := domainIn(chain)
	if err != nil {
		return Identity{}, false, err
	}
	id, err := identityIn(td, chain)
	if err != nil {
		return Identity{}, false, err
	}
	if end := chain[0].NotAfter; now.After(end) {
		return Identity{}, false, refuse(ErrCertificateExpired, "the certificate of %v expired %s ago: renew it and connect again", id, short(now.Sub(end)))
	}
	return id, true, nil
}

func trust(meshName string, roots [][]byte) (spiffeid.TrustDomain, *x509.CertPool, error) {
	td, err := TrustDomain(meshName)
	if err != nil {
		return spiffeid.TrustDomain{}, nil, err
	}
	if len(roots) == 0 {
		return spiffeid.TrustDomain{}, nil, errors.New("no root certificate to trust")
	}
	pool := x509.NewCertPool()
	for i, der := range roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return spiffeid.TrustDomain{}, nil, fmt.Errorf("root certificate %d: %w", i, err)
		}
		if err := checkDomain(td, root); err != nil {
			return spiffeid.TrustDomain{}, nil, fmt.Errorf("root certificate %d: %w", i, err)
		}
		pool.AddCert(root)
	}
	return td, pool, nil
}

// clientConfig replaces crypto/tls's verification, which insists on host names,
// by one that checks chain and SPIFFE ID.
func clientConfig(verify func([]*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return verify(cs.PeerCertificates) },
	}
}

// verifyControlPlane reports whether a server's certificates, leaf first, are
// the control plane's under one of the roots.
func verifyControlPlane(td spiffeid.TrustDomain, roots *x509.CertPool, certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return errors.New("the server sent no certificate")
	}
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the control plane's certificate: %w: check this machine's clock, then the control plane's", err)
	case err != nil:
		return fmt.Errorf("the server is not the control plane of the mesh %q: %w", meshOf(td), err)
	}
	id, err := identityIn(td, chains[0])
	if err != nil {
		return fmt.Errorf("the server's certificate: %w", err)
	}
	if id.Role != ControlPlane {
		return fmt.Errorf("the server is %v, not the control plane", id)
	}
	return nil
}
