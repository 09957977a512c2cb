package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The files of an Authority.
const (
	caCertFile   = "ca.crt"
	caKeyFile    = "ca.key"
	tokenKeyFile = "token.key"
)

// rootLife is how long a new root lives. backdate is how far certificates and
// tokens begin before now, for clocks that are behind.
const (
	rootLife = 10 * 365 * 24 * time.Hour
	backdate = 5 * time.Minute
)

// Authority is the mesh's CA: it issues certificates and makes and verifies join
// tokens. It does not change once it is open, so it may be shared.
type Authority struct {
	mesh     string
	td       spiffeid.TrustDomain
	root     *x509.Certificate
	key      crypto.Signer
	tokenKey ed25519.PrivateKey
	created  []string
}

// OpenAuthority reads the mesh's CA from a directory, or makes it there where
// the directory is empty or does not exist. Several processes may open the same
// directory at once.
//
// ca.crt is written last: without it the CA was never used, and what a crash
// left half made is completed. With it, a missing ca.key, and any file that is
// damaged, is an error that says what to do; nothing is replaced on its own.
// A missing token.key is made anew, which spends the tokens that are still out.
func OpenAuthority(dir, meshName string) (*Authority, error) {
	return openAuthority(dir, meshName, time.Now())
}

func openAuthority(dir, meshName string, now time.Time) (_ *Authority, err error) {
	td, err := TrustDomain(meshName)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	if err := checkMode(dir, 0o022); err != nil {
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()

	a := &Authority{mesh: meshName, td: td}
	if a.root, err = readRoot(dir); err != nil {
		return nil, err
	}
	if a.key, err = a.openKey(dir, caKeyFile, func() (crypto.Signer, error) {
		if a.root != nil {
			return nil, fmt.Errorf("%s is missing but %s is there: %s", filepath.Join(dir, caKeyFile), caCertFile, restoreCA(dir))
		}
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}, restoreCA(dir)); err != nil {
		return nil, err
	}
	tokenKey, err := a.openKey(dir, tokenKeyFile, func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}, "restore it from a backup, or remove it: a new one is made, and tokens that are not yet used no longer work")
	if err != nil {
		return nil, err
	}
	var ok bool
	if a.tokenKey, ok = tokenKey.(ed25519.PrivateKey); !ok {
		return nil, fmt.Errorf("%s holds a key of type %T, want Ed25519", filepath.Join(dir, tokenKeyFile), tokenKey)
	}
	if a.root == nil {
		if a.root, err = createRoot(dir, meshName, td, a.key, now); err != nil {
			return nil, err
		}
		a.created = append(a.created, caCertFile)
	}
	if err := a.check(dir, now); err != nil {
		return nil, err
	}
	return a, nil
}

func restoreCA(dir string) string {
	return fmt.Sprintf("restore it from a backup; without one move %s away: a new CA is made, and every agent must join again with a new token", dir)
}

// openKey reads a key, or makes it where the file is missing.
func (a *Authority) openKey(dir, name string, generate func() (crypto.Signer, error), advice string) (crypto.Signer, error) {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		key, err := generate()
		if err != nil {
			return nil, err
		}
		data, err := encodeKey(key)
		if err != nil {
			return nil, err
		}
		a.created = append(a.created, name)
		return key, writeFile(dir, name, data)
	case err != nil:
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	if err := checkMode(path, 0o077); err != nil {
		return nil, err
	}
	key, rest, err := decodeKey(data)
	if err == nil && len(bytes.TrimSpace(rest)) > 0 {
		err = errors.New("more follows after the key")
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): %s", path, err, advice)
	}
	return key, nil
}

// readRoot returns nil where there is no root yet.
func readRoot(dir string) (*x509.Certificate, error) {
	path := filepath.Join(dir, caCertFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	// Public, but whoever may write it chooses whom the mesh trusts.
	if err := checkMode(path, 0o022); err != nil {
		return nil, err
	}
	certs, err := decodeCertificates(data)
	if err == nil && len(certs) > 1 {
		err = fmt.Errorf("holds %d certificates, want one", len(certs))
	}
	if err == nil {
		err = certs[0].CheckSignatureFrom(certs[0])
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): %s", path, err, restoreCA(dir))
	}
	return certs[0], nil
}

func createRoot(dir, meshName string, td spiffeid.TrustDomain, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"flatmesh"}, CommonName: "CA of mesh " + meshName},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the mesh CA: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the mesh CA: %w", err)
	}
	return root, writeFile(dir, caCertFile, encodeCertificate(der))
}

// check reports whether the parts belong together, to this mesh and to this time.
func (a *Authority) check(dir string, now time.Time) error {
	path := filepath.Join(dir, caCertFile)
	td, err := trustDomainOf(a.root)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if td != a.td {
		return fmt.Errorf("%s: this CA is %w: it is of %q, not %q: give the mesh's name as it was, or another directory", path, ErrOtherMesh, meshOf(td), a.mesh)
	}
	if !samePublic(a.key.Public(), a.root.PublicKey) {
		return fmt.Errorf("%s does not belong to %s: %s", filepath.Join(dir, caKeyFile), caCertFile, restoreCA(dir))
	}
	if now.Before(a.root.NotBefore) {
		return fmt.Errorf("%s is valid from %s, but it is %s now: set this machine's clock", path, a.root.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if !now.Before(a.root.NotAfter) {
		return fmt.Errorf("%s ended %s: move %s away: a new CA is made, and every agent must join again with a new token", path, a.root.NotAfter.Format(time.RFC3339), dir)
	}
	return nil
}

// trustDomainOf reads the trust domain of a root (X.509-SVID, section 3.1: a
// signing certificate's SPIFFE ID has no path).
func trustDomainOf(root *x509.Certificate) (spiffeid.TrustDomain, error) {
	if !root.IsCA || len(root.URIs) != 1 {
		return spiffeid.TrustDomain{}, errors.New("not the CA of a mesh")
	}
	id, err := spiffeid.FromURI(root.URIs[0])
	if err != nil || id.Path() != "" {
		return spiffeid.TrustDomain{}, fmt.Errorf("not the CA of a mesh: its identity is %q", root.URIs[0])
	}
	return id.TrustDomain(), nil
}

// Mesh returns the mesh's name.
func (a *Authority) Mesh() string { return a.mesh }

// TrustDomain returns the mesh's SPIFFE trust domain.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// Roots returns what the mesh trusts, DER.
func (a *Authority) Roots() [][]byte { return [][]byte{a.root.Raw} }

// Created lists the files that were made when this Authority was opened, so
// that the caller can say so.
func (a *Authority) Created() []string { return a.created }

// pinOf is the SHA-256 of a certificate's SubjectPublicKeyInfo, the form that
// RFC 7469 pins.
func pinOf(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}
