package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// issuer is a CA's certificate with its key, and its place below a root.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	// above is what stands behind a leaf of this issuer in a chain (DER): its own
	// certificate and those above it, without the root. A root has none.
	above [][]byte
	// begins and ends bound the time in which it and all above it, the root
	// included, are good.
	begins, ends time.Time
}

// newIssuer takes a CA's chain, its own certificate first and the root last.
func newIssuer(key crypto.Signer, chain []*x509.Certificate) issuer {
	i := issuer{cert: chain[0], key: key, begins: chain[0].NotBefore, ends: chain[0].NotAfter}
	for n, c := range chain {
		i.begins, i.ends = latest(i.begins, c.NotBefore), earliest(i.ends, c.NotAfter)
		if n < len(chain)-1 {
			i.above = append(i.above, c.Raw)
		}
	}
	return i
}

// below returns the issuer of a CA that this one signed.
func (i issuer) below(cert *x509.Certificate, key crypto.Signer) issuer {
	return issuer{
		cert: cert, key: key, above: append([][]byte{cert.Raw}, i.above...),
		begins: latest(i.begins, cert.NotBefore), ends: earliest(i.ends, cert.NotAfter),
	}
}

// good reports whether what is issued now is good now.
func (i issuer) good(now time.Time) bool { return !now.Before(i.begins) && now.Before(i.ends) }

// sign completes a template and signs it: valid from a few minutes before now
// until ttl after it, within the issuer's own time.
func (i issuer) sign(template *x509.Certificate, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = latest(now.Add(-backdate), i.begins)
	template.NotAfter = earliest(now.Add(ttl), i.ends)
	template.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, template, i.cert, pub, i.key)
}

// leaf makes a certificate of an identity. The chain is DER, leaf first, without
// the root. The certificate has no host name: whoever reads it looks at the
// SPIFFE ID.
func (i issuer) leaf(td spiffeid.TrustDomain, id Identity, pub crypto.PublicKey, now time.Time, ttl time.Duration) ([][]byte, error) {
	uri, err := id.URI(td)
	if err != nil {
		return nil, err
	}
	der, err := i.sign(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{issuerOrganization}},
		URIs:        []*url.URL{uri},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, pub, now, ttl)
	if err != nil {
		return nil, fmt.Errorf("certificate for %v: %w", id, err)
	}
	return append([][]byte{der}, i.above...), nil
}
