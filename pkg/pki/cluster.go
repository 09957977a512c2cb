package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// clustersDir holds CLUSTER.crt and CLUSTER.key of each cluster's CA.
const clustersDir = "clusters"

// clusterLife is how long a cluster's CA lives. At half of it there is a new
// one, so that no certificate is cut short that lives for less than the rest.
const clusterLife = 365 * 24 * time.Hour

// OnClusterCA has a function called after each making of a cluster's CA: until
// when it is good, and what stood in the way of keeping the one before or of
// storing this one (then it serves for this process alone), nil where nothing
// did. It must be set before the Authority is shared.
func (a *Authority) OnClusterCA(f func(cluster string, until time.Time, problem error)) { a.told = f }

// clusterCA returns the CA of a cluster: the one in use, the one on disk where
// that is good, or a new one.
func (a *Authority) clusterCA(cluster string, now time.Time) (issuer, error) {
	if err := mesh.ValidateClusterName(cluster); err != nil {
		return issuer{}, err
	}
	a.mu.Lock()
	if ca, ok := a.clusters[cluster]; ok && a.keeps(ca, now) {
		a.mu.Unlock()
		return ca, nil
	}
	ca, made, problem, err := a.openClusterCA(cluster, now)
	if err == nil {
		a.clusters[cluster] = ca
	}
	a.mu.Unlock()
	if err != nil {
		return issuer{}, fmt.Errorf("the CA of cluster %s: %w", cluster, err)
	}
	if made && a.told != nil {
		a.told(cluster, ca.ends, problem)
	}
	return ca, nil
}

// keeps reports whether a cluster's CA goes on in use: it is good, and either in
// the first half of its life or as good for as long as a new one would be.
func (a *Authority) keeps(ca issuer, now time.Time) bool {
	half := ca.begins.Add(ca.ends.Sub(ca.begins) / 2)
	return ca.good(now) && (now.Before(half) || !earliest(now.Add(clusterLife), a.ca.ends).After(ca.ends))
}

// openClusterCA reads a cluster's CA from disk, or makes it. A disk that fails is
// a problem and no error: what the new CA issues is good wherever the root is
// trusted, whether or not the next process will find it.
func (a *Authority) openClusterCA(cluster string, now time.Time) (ca issuer, made bool, problem, err error) {
	unlock, problem := lockDir(a.dir)
	if problem == nil {
		defer func() { problem = errors.Join(problem, unlock()) }()
		ca, found, damage := a.readClusterCA(cluster)
		switch {
		case damage != nil:
			problem = a.setClusterAside(cluster, now, damage)
		case found && a.keeps(ca, now):
			return ca, false, nil, nil
		}
	}
	key, _, err := NewCSR()
	if err != nil {
		return issuer{}, false, problem, err
	}
	if ca, err = a.newClusterCA(cluster, key, now); err != nil {
		return issuer{}, false, problem, err
	}
	return ca, true, errors.Join(problem, a.writeClusterCA(cluster, ca)), nil
}

// newClusterCA makes a CA in memory. It can do no more than it is for: sign
// leaves (path length 0) with SPIFFE IDs of this mesh and with no host name or
// address, so that one that is stolen is of no use against anything else that
// trusts a root which the user brought.
func (a *Authority) newClusterCA(cluster string, key crypto.Signer, now time.Time) (issuer, error) {
	der, err := a.ca.sign(&x509.Certificate{
		Subject:             pkix.Name{Organization: []string{issuerOrganization}, OrganizationalUnit: []string{cluster}, CommonName: "cluster CA"},
		URIs:                []*url.URL{a.td.ID().URL()},
		KeyUsage:            x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                true,
		MaxPathLenZero:      true,
		PermittedURIDomains: []string{a.td.Name()},
		// The empty name stands for all (RFC 5280, 4.2.1.10).
		ExcludedDNSDomains:          []string{""},
		ExcludedEmailAddresses:      []string{""},
		ExcludedIPRanges:            []*net.IPNet{{IP: make(net.IP, 4), Mask: make(net.IPMask, 4)}, {IP: make(net.IP, 16), Mask: make(net.IPMask, 16)}},
		PermittedDNSDomainsCritical: true,
	}, key.Public(), now, clusterLife)
	if err != nil {
		return issuer{}, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return issuer{}, err
	}
	return a.ca.below(cert, key), nil
}

// writeClusterCA stores the key first: without its certificate it is nothing,
// and what a crash left half made is made anew.
func (a *Authority) writeClusterCA(cluster string, ca issuer) error {
	data, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	dir := filepath.Join(a.dir, clustersDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store the CA of cluster %s: %w", cluster, err)
	}
	if err := writeFile(dir, cluster+".key", data); err != nil {
		return err
	}
	return writeFile(dir, cluster+".crt", encodeCertificate(ca.cert.Raw))
}

// readClusterCA returns false where there is none on disk that this mesh's CA
// has signed, and an error where what is there is damaged.
func (a *Authority) readClusterCA(cluster string) (ca issuer, found bool, err error) {
	path := filepath.Join(a.dir, clustersDir, cluster)
	certData, certErr := os.ReadFile(path + ".crt")
	keyData, keyErr := os.ReadFile(path + ".key")
	if errors.Is(certErr, fs.ErrNotExist) || errors.Is(keyErr, fs.ErrNotExist) {
		return issuer{}, false, nil
	}
	if err := errors.Join(certErr, keyErr, checkMode(path+".key", 0o077)); err != nil {
		return issuer{}, false, err
	}
	certs, err := decodeCertificates(certData)
	if err != nil {
		return issuer{}, false, err
	}
	key, rest, err := decodeKey(keyData)
	if err != nil {
		return issuer{}, false, err
	}
	cert := certs[0]
	switch {
	case len(certs) > 1 || len(bytes.TrimSpace(rest)) > 0:
		return issuer{}, false, errors.New("more follows")
	case !samePublic(key.Public(), cert.PublicKey):
		return issuer{}, false, errors.New("the key does not belong to the certificate")
	}
	if of, ok := clusterOf(cert); !ok || of != cluster || !cert.MaxPathLenZero {
		return issuer{}, false, fmt.Errorf("it is not the CA of cluster %s but %q", cluster, cert.Subject)
	}
	// The mesh has another CA since: then this one is not damaged but over.
	if !bytes.Equal(cert.RawIssuer, a.ca.cert.RawSubject) || !bytes.Equal(cert.AuthorityKeyId, a.ca.cert.SubjectKeyId) {
		return issuer{}, false, nil
	}
	if err := errors.Join(checkDomain(a.td, cert), cert.CheckSignatureFrom(a.ca.cert)); err != nil {
		return issuer{}, false, err
	}
	return a.ca.below(cert, key), true, nil
}

// setClusterAside keeps what was damaged and says so.
func (a *Authority) setClusterAside(cluster string, now time.Time, damage error) error {
	var errs []error
	for _, ending := range []string{".crt", ".key"} {
		errs = append(errs, setAside(filepath.Join(a.dir, clustersDir, cluster+ending), now, damage))
	}
	return errors.Join(errs...)
}
