// Package testcert makes workload certificates for tests, in files as a pod sees
// them. It is not pkg/pki: a test that uses it is about who reads those files.
package testcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a certificate authority of its own.
type Authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes one.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	var der []byte
	der, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *Authority) sign(c *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: "flatmesh test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

// Write puts a new certificate for a SPIFFE ID into a folder, which it makes: in
// one step, by way of a link called ..data, as a kubelet writes a Secret.
func (a *Authority) Write(dir, id string) {
	a.t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		a.t.Fatal(err)
	}
	der, key := a.sign(&x509.Certificate{
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		a.t.Fatal(err)
	}
	version, err := os.MkdirTemp(dir, "..")
	if err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: der},
		"tls.key": {Type: "PRIVATE KEY", Bytes: secret},
		"ca.crt":  {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(version, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	a.link(filepath.Base(version), filepath.Join(dir, "..data"))
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		a.link(filepath.Join("..data", name), filepath.Join(dir, name))
	}
}

// link makes a symbolic link, in place of one that is there.
func (a *Authority) link(to, path string) {
	a.t.Helper()
	tmp := path + ".tmp"
	if err := os.Symlink(to, tmp); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		a.t.Fatal(err)
	}
}
