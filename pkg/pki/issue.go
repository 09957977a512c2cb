package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"
)

// Issue makes a certificate that binds the identity of the control plane, an
// agent or a gateway to a public key, good as TLS server and client. It is valid
// from a few minutes before now until ttl after it, within its CA's own time.
// The chain is DER, leaf first, without the root. An agent's or gateway's is of
// its cluster's CA, which stands in the chain and is made where there is none.
func (a *Authority) Issue(id Identity, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([][]byte, error) {
	switch id.Role {
	case Agent:
		return a.issueIn(id.Node.Cluster, id, pub, now, ttl)
	case Gateway:
		return a.issueIn(id.Cluster, id, pub, now, ttl)
	case Workload:
		return nil, fmt.Errorf("certificate for %v: a workload's is issued in a cluster", id)
	case ControlPlane:
	}
	if err := a.mayIssue(id, pub, now, ttl); err != nil {
		return nil, err
	}
	return a.ca.leaf(a.td, id, pub, now, ttl)
}

// IssueWorkload makes a certificate for the pods of a service account that run
// in a cluster, by that cluster's CA, and otherwise as Issue does. That the pod
// is one, and there, is for the caller to know.
func (a *Authority) IssueWorkload(cluster, namespace, serviceAccount string, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([][]byte, error) {
	return a.issueIn(cluster, WorkloadOf(namespace, serviceAccount), pub, now, ttl)
}

func (a *Authority) issueIn(cluster string, id Identity, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([][]byte, error) {
	if err := a.mayIssue(id, pub, now, ttl); err != nil {
		return nil, err
	}
	ca, err := a.clusterCA(cluster, now)
	if err != nil {
		return nil, fmt.Errorf("certificate for %v: %w", id, err)
	}
	return ca.leaf(a.td, id, pub, now, ttl)
}

func (a *Authority) mayIssue(id Identity, pub crypto.PublicKey, now time.Time, ttl time.Duration) error {
	if err := id.Validate(); err != nil {
		return err
	}
	if err := checkKey(pub); err != nil {
		return fmt.Errorf("certificate for %v: %w", id, err)
	}
	if ttl <= 0 {
		return fmt.Errorf("certificate for %v: a time to live of %v: want a positive one", id, ttl)
	}
	if !a.ca.good(now) {
		return fmt.Errorf("certificate for %v: the mesh CA is valid from %s to %s, and it is %s now", id,
			a.ca.begins.Format(time.RFC3339), a.ca.ends.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
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

// tryOut issues what the mesh needs, in memory, and verifies it as peers will. A
// CA that the user brought may be limited in ways of which peers alone would
// tell: name constraints, extended key usages, critical extensions.
func (a *Authority) tryOut(now time.Time) error {
	key, _, err := NewCSR()
	if err != nil {
		return err
	}
	below, err := a.newClusterCA("east", key, now)
	if err != nil {
		return err
	}
	for _, try := range []struct {
		by issuer
		id Identity
	}{{a.ca, Identity{Role: ControlPlane}}, {below, WorkloadOf("default", "default")}} {
		chain, err := try.by.leaf(a.td, try.id, key.Public(), now, time.Hour)
		if err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			return err
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(a.root)
		for _, der := range chain[1:] {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			between.AddCert(cert)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				return fmt.Errorf("a certificate for %v, issued with this CA to try it, is not accepted: %w", try.id, err)
			}
		}
	}
	return nil
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
