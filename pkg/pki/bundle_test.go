package pki

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// testBundle returns the parts of an agent's identity.
func testBundle(t *testing.T, a *Authority) (crypto.Signer, [][]byte) {
	t.Helper()
	cert := certificate(t, a, AgentOf(east1), time.Now(), time.Hour)
	return cert.PrivateKey.(crypto.Signer), cert.Certificate
}

func TestBundleRoundTrip(t *testing.T) {
	a := testAuthority(t, "acme")
	dir := filepath.Join(t.TempDir(), "agent")
	if _, err := LoadCertificate(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there yet: %v", err)
	}
	for range 2 { // the second replaces the first
		key, chain := testBundle(t, a)
		if _, err := SaveCertificate(dir, key, chain, a.Roots()); err != nil {
			t.Fatal(err)
		}
		b, err := LoadCertificate(dir)
		if err != nil {
			t.Fatal(err)
		}
		if b.Identity() != AgentOf(east1) || b.Mesh() != "acme" || !b.NotAfter().After(b.NotBefore()) ||
			!samePublic(b.Key.Public(), key.Public()) || !bytes.Equal(b.Chain[0], chain[0]) || !bytes.Equal(b.Roots[0], a.Roots()[0]) {
			t.Errorf("loaded %+v", b)
		}
		if _, serverErr, clientErr := connect(t, serverTLS(t, a, serverCertificate(t, a)), clientTLS(t, a, b.Certificate())); serverErr != nil || clientErr != nil {
			t.Errorf("server: %v, client: %v", serverErr, clientErr)
		}
	}
	info, err := os.Stat(filepath.Join(dir, bundleFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

func TestBundleExpiredIsNotCorrupt(t *testing.T) {
	a := testAuthority(t, "acme")
	dir := t.TempDir()
	cert := certificate(t, a, AgentOf(east1), time.Now().Add(-time.Minute), time.Second)
	if _, err := SaveCertificate(dir, cert.PrivateKey.(crypto.Signer), cert.Certificate, a.Roots()); err != nil {
		t.Fatal(err)
	}
	b, err := LoadCertificate(dir)
	if err != nil || !b.NotAfter().Before(time.Now()) {
		t.Errorf("loaded %v (%v)", b, err)
	}
}

func TestSaveCertificateRefuses(t *testing.T) {
	a, other := testAuthority(t, "acme"), testAuthority(t, "acme")
	key, chain := testBundle(t, a)
	otherKey, _ := testBundle(t, a)
	for name, tt := range map[string]struct {
		key          crypto.Signer
		chain, roots [][]byte
		want         string
	}{
		"no key":          {nil, chain, a.Roots(), "incomplete"},
		"no chain":        {key, nil, a.Roots(), "incomplete"},
		"no root":         {key, chain, nil, "incomplete"},
		"another key":     {otherKey, chain, a.Roots(), "does not belong"},
		"another root":    {key, chain, other.Roots(), "unknown authority"},
		"a leaf for root": {key, chain, chain, "root certificate"},
		"no certificate":  {key, [][]byte{[]byte("x")}, a.Roots(), "certificate"},
		"damaged root":    {key, chain, [][]byte{a.Roots()[0][1:]}, "root certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := SaveCertificate(dir, tt.key, tt.chain, tt.roots)
			wantError(t, err, tt.want)
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("wrote %v (%v)", entries, err)
			}
		})
	}
}

func TestLoadCertificateOpenToOthers(t *testing.T) {
	a := testAuthority(t, "acme")
	dir := t.TempDir()
	key, chain := testBundle(t, a)
	if _, err := SaveCertificate(dir, key, chain, a.Roots()); err != nil {
		t.Fatal(err)
	}
	chmod(bundleFile, 0o644)(t, dir)
	_, err := LoadCertificate(dir)
	wantError(t, err, "chmod 600", bundleFile)
}

func TestLoadCertificateSetsDamageAside(t *testing.T) {
	a := testAuthority(t, "acme")
	dir := t.TempDir()
	path := filepath.Join(dir, bundleFile)
	key, chain := testBundle(t, a)
	if _, err := SaveCertificate(dir, key, chain, a.Roots()); err != nil {
		t.Fatal(err)
	}
	whole := read(t, path)
	now := time.Unix(1700000000, 0)
	set := 0
	try := func(what string, data []byte) {
		write(t, path, data)
		b, err := loadCertificate(dir, now)
		var corrupt *CorruptError
		switch {
		case errors.As(err, &corrupt):
			set++
			if want := path + ".corrupt-1700000000"; corrupt.Path != path || (set == 1 && corrupt.SetAside != want) {
				t.Errorf("%s: set aside %s as %s", what, corrupt.Path, corrupt.SetAside)
			}
			if !bytes.Equal(read(t, corrupt.SetAside), data) {
				t.Errorf("%s: the content set aside is another", what)
			}
			if _, err := LoadCertificate(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: afterwards: %v", what, err)
			}
		case err != nil:
			t.Errorf("%s: %v", what, err)
		case !samePublic(b.Key.Public(), key.Public()) || !bytes.Equal(b.Chain[0], chain[0]) || !bytes.Equal(b.Roots[0], a.Roots()[0]):
			t.Errorf("%s: loaded as another identity", what)
		}
	}
	for i := 0; i < len(whole); i += 7 {
		try(fmt.Sprintf("cut at %d", i), whole[:i])
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("bit turned at %d", i), flipped)
	}
	if set < len(whole)/7 {
		t.Errorf("only %d were set aside", set)
	}
}
