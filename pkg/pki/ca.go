package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// caFiles names the files that a CA lies in.
type caFiles struct{ cert, key string }

// The names that a CA's certificate and key may have: those that are made here,
// and those of Istio's secret "cacerts"
// (https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/).
const (
	caCertFile    = "ca.crt"
	caKeyFile     = "ca.key"
	istioCertFile = "ca-cert.pem"
	istioKeyFile  = "ca-key.pem"
)

// Where the CA is not its own root, what lies above it follows in its file or
// lies in these, which are Istio's names too.
const (
	chainFile = "cert-chain.pem"
	rootsFile = "root-cert.pem"
)

// foundCA is a CA as it lies in a directory.
type foundCA struct {
	files caFiles
	// chain begins with the CA and ends with its root; it may be its own.
	chain []*x509.Certificate
	// roots are what the mesh trusts, that of the chain first.
	roots []*x509.Certificate
}

// readCA returns nil where there is no CA yet. It does not look at the time.
func readCA(dir string) (*foundCA, error) {
	files, found, err := findCA(dir)
	if err != nil || !found {
		return nil, err
	}
	own, err := readCertificates(dir, files.cert)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, files.cert)
	if first := own[0]; !first.IsCA || first.KeyUsage != 0 && first.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("%s: %q is no CA (basicConstraints CA:TRUE, keyUsage keyCertSign): put the certificate of one there", path, first.Subject)
	}
	above, err := readCertificates(dir, chainFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	roots, err := readCertificates(dir, rootsFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	}
	for _, r := range roots {
		if !isRoot(r) {
			return nil, fmt.Errorf("%s: %q is not a root, which signs itself: put it into %s", filepath.Join(dir, rootsFile), r.Subject, chainFile)
		}
	}
	chain, err := chainOf(own[0], slices.Concat(roots, own[1:], above))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", path, err, restoreCA(dir))
	}
	for _, c := range own {
		if !slices.ContainsFunc(chain, c.Equal) {
			return nil, fmt.Errorf("%s holds %d certificates, of which %q does not lie between the first and its root: remove it, or restore the file from a backup", path, len(own), c.Subject)
		}
	}
	root := chain[len(chain)-1]
	if len(roots) > 0 && !slices.ContainsFunc(roots, root.Equal) {
		return nil, fmt.Errorf("%s is signed by the root %q, which is not in %s", path, root.Subject, filepath.Join(dir, rootsFile))
	}
	others := slices.DeleteFunc(roots, root.Equal)
	return &foundCA{files: files, chain: chain, roots: append([]*x509.Certificate{root}, others...)}, nil
}

// findCA says under which names a CA lies in a directory.
func findCA(dir string) (files caFiles, found bool, err error) {
	have := map[string]bool{}
	for _, name := range []string{caCertFile, istioCertFile, istioKeyFile, chainFile, rootsFile} {
		_, err := os.Stat(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return caFiles{}, false, fmt.Errorf("open the mesh CA: %w", err)
		}
		have[name] = err == nil
	}
	switch {
	case have[caCertFile] && have[istioCertFile]:
		return caFiles{}, false, fmt.Errorf("%s holds two CAs, %s and %s: move one away with its key; where the mesh gets another root, every agent must join again with a new token", dir, caCertFile, istioCertFile)
	case have[caCertFile]:
		return caFiles{caCertFile, caKeyFile}, true, nil
	case have[istioCertFile]:
		return caFiles{istioCertFile, istioKeyFile}, true, nil
	}
	for _, name := range []string{istioKeyFile, chainFile, rootsFile} {
		// Making a CA of our own beside it is not what whoever put it there wants.
		if have[name] {
			return caFiles{}, false, fmt.Errorf("%s is there but no certificate of a CA: put it beside it as %s, with its key as %s", filepath.Join(dir, name), istioCertFile, istioKeyFile)
		}
	}
	return caFiles{caCertFile, caKeyFile}, false, nil
}

// chainOf finds the way from a CA up to a root. It takes the first way there is:
// roots come first in the candidates, so that it is a short one.
func chainOf(first *x509.Certificate, candidates []*x509.Certificate) ([]*x509.Certificate, error) {
	chain := []*x509.Certificate{first}
	for {
		last := chain[len(chain)-1]
		if isRoot(last) {
			return chain, nil
		}
		i := slices.IndexFunc(candidates, func(c *x509.Certificate) bool {
			return bytes.Equal(last.RawIssuer, c.RawSubject) && last.CheckSignatureFrom(c) == nil && !slices.ContainsFunc(chain, c.Equal)
		})
		switch {
		case i >= 0:
			chain = append(chain, candidates[i])
		case bytes.Equal(last.RawIssuer, last.RawSubject):
			return nil, fmt.Errorf("is damaged (%w)", last.CheckSignatureFrom(last))
		default:
			return nil, fmt.Errorf("%q does not lead to a root: the CA that signed it, %q, is not there: put it into %s, and the root into %s", last.Subject, last.Issuer, chainFile, rootsFile)
		}
	}
}

// readCertificates reads all certificates of a file. Text around them is allowed,
// as openssl writes it; other PEM blocks and damaged ones are not.
func readCertificates(dir, name string) ([]*x509.Certificate, error) {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open the mesh CA: %w", err)
	}
	// Public, but whoever may write it chooses whom the mesh trusts.
	if err := checkMode(path, 0o022); err != nil {
		return nil, err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): %s", path, err, restoreCA(dir))
	}
	return certs, nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	// pem.Decode skips a block that it cannot read; then there are fewer.
	want := bytes.Count(data, []byte("-----BEGIN"))
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("holds a PEM block %q, want %q alone", block.Type, pemCertificate)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	switch {
	case len(certs) == 0:
		return nil, errors.New("no certificate in it")
	case len(certs) != want:
		return nil, fmt.Errorf("%d of %d PEM blocks in it can be read", len(certs), want)
	}
	return certs, nil
}

func restoreCA(dir string) string {
	return fmt.Sprintf("restore it from a backup; without one move %s away: a new CA is made, and every agent must join again with a new token", dir)
}
