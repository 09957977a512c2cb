package pki

import (
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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The files of an Authority, beside those of its CA and its clusters'.
const (
	tokenKeyFile = "token.key"
	// meshFile holds the mesh's name where its root does not say it.
	meshFile = "mesh"
)

// rootLife is how long a new root lives. backdate is how far certificates and
// tokens begin before now, for clocks that are behind.
const (
	rootLife = 10 * 365 * 24 * time.Hour
	backdate = 5 * time.Minute
)

// Authority is the mesh's CA: it issues certificates and makes and verifies join
// tokens. It may be shared.
type Authority struct {
	dir, mesh string
	td        spiffeid.TrustDomain
	// ca signs for the control plane, and the CAs of clusters. It is the root, or
	// lies below it where the user brought such a one.
	ca       issuer
	root     *x509.Certificate
	roots    [][]byte
	tokenKey ed25519.PrivateKey
	created  []string
	told     func(cluster string, until time.Time, problem error)

	mu       sync.Mutex
	clusters map[string]issuer
}

// OpenAuthority reads the mesh's CA from a directory, or makes it there where
// the directory is empty or does not exist. Several processes may open the same
// directory at once.
//
// A CA of the user's own is put there beforehand: ca.crt and ca.key, or
// ca-cert.pem and ca-key.pem, as a root or as an intermediate CA. What lies
// between an intermediate CA and its root follows in its file or lies in
// cert-chain.pem, the root in root-cert.pem, where further roots to trust may
// lie. It must allow one more CA below it: those of clusters.
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

	a := &Authority{dir: dir, mesh: meshName, td: td, clusters: map[string]issuer{}}
	found, err := readCA(dir)
	if err != nil {
		return nil, err
	}
	key, err := a.openCAKey(found)
	if err != nil {
		return nil, err
	}
	if a.tokenKey, err = a.openTokenKey(); err != nil {
		return nil, err
	}
	if found == nil {
		root, err := createRoot(dir, meshName, td, key, now)
		if err != nil {
			return nil, err
		}
		a.created = append(a.created, caCertFile)
		found = &foundCA{files: caFiles{caCertFile, caKeyFile}, chain: []*x509.Certificate{root}, roots: []*x509.Certificate{root}}
	}
	a.ca, a.root = newIssuer(key, found.chain), found.roots[0]
	for _, r := range found.roots {
		a.roots = append(a.roots, r.Raw)
	}
	if err := a.check(found, now); err != nil {
		return nil, err
	}
	return a, a.keepName()
}

// openCAKey reads the key of the CA that was found, or makes one for a CA that
// is to be made.
func (a *Authority) openCAKey(found *foundCA) (crypto.Signer, error) {
	if found == nil {
		return a.openKey(caKeyFile, func() (crypto.Signer, error) {
			return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		}, func(data []byte) (crypto.Signer, error) {
			key, err := decodeOwnKey(data)
			if _, foreign := decodeForeignKey(data); err != nil && foreign == nil {
				return nil, fmt.Errorf("it was not made here, and its certificate is missing: put it beside it as %s", caCertFile)
			}
			return key, err
		}, restoreCA(a.dir))
	}
	name := found.files.key
	return a.openKey(name, func() (crypto.Signer, error) {
		return nil, fmt.Errorf("%s is missing but %s is there: %s", filepath.Join(a.dir, name), found.files.cert, restoreCA(a.dir))
	}, decodeForeignKey, restoreCA(a.dir))
}

func (a *Authority) openTokenKey() (ed25519.PrivateKey, error) {
	key, err := a.openKey(tokenKeyFile, func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}, decodeOwnKey, "restore it from a backup, or remove it: a new one is made, and tokens that are not yet used no longer work")
	if err != nil {
		return nil, err
	}
	if key, ok := key.(ed25519.PrivateKey); ok {
		return key, nil
	}
	return nil, fmt.Errorf("%s holds a key of type %T, want Ed25519", filepath.Join(a.dir, tokenKeyFile), key)
}

// openKey reads a key, or makes it where the file is missing.
func (a *Authority) openKey(name string, generate func() (crypto.Signer, error), decode func([]byte) (crypto.Signer, error), advice string) (crypto.Signer, error) {
	path := filepath.Join(a.dir, name)
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
		return key, writeFile(a.dir, name, data)
	case err != nil:
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	if err := checkMode(path, 0o077); err != nil {
		return nil, err
	}
	key, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used (%w): %s", path, err, advice)
	}
	return key, nil
}

func createRoot(dir, meshName string, td spiffeid.TrustDomain, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{issuerOrganization}, CommonName: "CA of mesh " + meshName},
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

// check reports whether the parts belong together, to this mesh and to this
// time, and whether the mesh can stand on them.
func (a *Authority) check(found *foundCA, now time.Time) error {
	path := filepath.Join(a.dir, found.files.cert)
	for _, c := range append(found.roots[1:], found.chain...) {
		if err := checkDomain(a.td, c); err != nil {
			return fmt.Errorf("%s: %q: %w: give the mesh's name as it was, or another directory", path, c.Subject, err)
		}
		if _, ok := clusterOf(c); ok {
			return fmt.Errorf("%s: a CA whose subject is %q is that of one cluster alone: bring one with another subject", path, c.Subject)
		}
	}
	if !samePublic(a.ca.key.Public(), a.ca.cert.PublicKey) {
		return fmt.Errorf("%s does not belong to %s: %s", filepath.Join(a.dir, found.files.key), found.files.cert, restoreCA(a.dir))
	}
	for i, c := range found.chain {
		name := path
		if i > 0 {
			name = fmt.Sprintf("%s: the CA %q above it", path, c.Subject)
		}
		if now.Before(c.NotBefore) {
			return fmt.Errorf("%s is valid from %s, but it is %s now: set this machine's clock", name, c.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		if !now.Before(c.NotAfter) {
			return fmt.Errorf("%s ended %s: replace it by one of the same root that is still good; without one move %s away: a new CA is made, and every agent must join again with a new token", name, c.NotAfter.Format(time.RFC3339), a.dir)
		}
		// Below c lie the i CAs before it in the chain, and a cluster's.
		if most := c.MaxPathLen; most > 0 && most <= i || most == 0 && c.MaxPathLenZero {
			return fmt.Errorf("%s allows %d CAs below it (basicConstraints pathlen), and the mesh needs %d, for the CA of each cluster: bring one with a path length of at least %d, or with none", name, most, i+1, i+1)
		}
	}
	if err := a.tryOut(now); err != nil {
		return fmt.Errorf("%s: %w: bring a CA that has no such limit", path, err)
	}
	return nil
}

// keepName stores the mesh's name where its root does not say it, so that the
// same root is not taken for another mesh's by mistake: that mesh's agents would
// all be strangers.
func (a *Authority) keepName() error {
	if _, stated := statedDomain(a.root); stated {
		return nil
	}
	name, err := readName(a.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.created = append(a.created, meshFile)
		return writeFile(a.dir, meshFile, []byte(a.mesh+"\n"))
	case err != nil:
		return err
	case name != a.mesh:
		return fmt.Errorf("%s: this CA is %w: it is of %q, not %q: give the mesh's name as it was, or another directory", filepath.Join(a.dir, meshFile), ErrOtherMesh, name, a.mesh)
	}
	return nil
}

func readName(dir string) (string, error) {
	path := filepath.Join(dir, meshFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the mesh's name: %w", err)
	}
	if err := checkMode(path, 0o022); err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(data))
	if _, err := TrustDomain(name); err != nil {
		return "", fmt.Errorf("%s is damaged (%w): restore it from a backup, or remove it and start the control plane with the mesh's name", path, err)
	}
	return name, nil
}

// Mesh returns the mesh's name.
func (a *Authority) Mesh() string { return a.mesh }

// TrustDomain returns the mesh's SPIFFE trust domain.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// Roots returns what the mesh trusts, DER. The first is the one under which this
// Authority issues and that tokens pin.
func (a *Authority) Roots() [][]byte { return slices.Clone(a.roots) }

// Created lists the files that were made when this Authority was opened, so
// that the caller can say so.
func (a *Authority) Created() []string { return a.created }

// pinOf is the SHA-256 of a certificate's SubjectPublicKeyInfo, the form that
// RFC 7469 pins.
func pinOf(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}
