package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// testCA is a CA as a user has one, with those above it.
type testCA struct {
	cert  *x509.Certificate
	key   crypto.Signer
	above *testCA
}

// caSpec says in what a CA differs from an ordinary one.
type caSpec struct {
	name            string
	key             crypto.Signer
	change          func(*x509.Certificate)
	begins, ends    time.Duration // from now; a day before and a year after by default
	likeItself      *testCA       // renewed: the same name and key
	wrongKeyForSign crypto.Signer
}

func newTestCA(t *testing.T, above *testCA, spec caSpec) *testCA {
	t.Helper()
	if spec.name == "" {
		spec.name = "root of ACME Corp."
		if above != nil {
			spec.name = "CA below " + above.cert.Subject.CommonName
		}
	}
	if spec.begins == 0 {
		spec.begins = -24 * time.Hour
	}
	if spec.ends == 0 {
		spec.ends = 365 * 24 * time.Hour
	}
	if spec.likeItself != nil {
		spec.key, spec.name = spec.likeItself.key, spec.likeItself.cert.Subject.CommonName
	}
	if spec.key == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		spec.key = key
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"ACME Corp."}, CommonName: spec.name},
		NotBefore: time.Now().Add(spec.begins), NotAfter: time.Now().Add(spec.ends),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
	}
	if spec.change != nil {
		spec.change(template)
	}
	parent, signer := template, spec.key
	if above != nil {
		parent, signer = above.cert, above.key
	}
	if spec.wrongKeyForSign != nil {
		signer = spec.wrongKeyForSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, spec.key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, spec.key, above}
}

// text is a certificate as "openssl x509 -text" writes it.
func text(cas ...*testCA) []byte {
	var b bytes.Buffer
	for _, ca := range cas {
		b.WriteString("Certificate:\n    Data:\n        Subject: " + ca.cert.Subject.String() + "\n")
		b.Write(encodeCertificate(ca.cert.Raw))
	}
	return b.Bytes()
}

func pemKey(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der})
}

// put writes files into a new directory.
func put(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		write(t, filepath.Join(dir, name), data)
	}
	return dir
}

// bring opens a mesh on a CA of the user's, with all that lies above it.
func bring(t *testing.T, meshName string, ca *testCA) *Authority {
	t.Helper()
	var chain []*testCA
	for c := ca; c != nil; c = c.above {
		chain = append(chain, c)
	}
	a, err := OpenAuthority(put(t, map[string][]byte{caCertFile: text(chain...), caKeyFile: pemKey(t, ca.key)}), meshName)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestBroughtCA(t *testing.T) {
	root := newTestCA(t, nil, caSpec{})
	upper := newTestCA(t, root, caSpec{name: "upper"})
	lower := newTestCA(t, upper, caSpec{name: "lower"})
	second := newTestCA(t, nil, caSpec{name: "second root"})
	withPath := newTestCA(t, nil, caSpec{change: func(c *x509.Certificate) { c.MaxPathLen = 1 }})
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(lower.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	edCA, p384CA, rsaCA := newTestCA(t, nil, caSpec{key: ed}), newTestCA(t, nil, caSpec{key: p384}), newTestCA(t, root, caSpec{key: rsa2048})
	named := newTestCA(t, nil, caSpec{change: func(c *x509.Certificate) { c.URIs = []*url.URL{testTrustDomain(t, "acme").ID().URL()} }})
	odd := newTestCA(t, root, caSpec{change: func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/istio-system/sa/citadel"}}
		c.DNSNames = []string{"istiod.istio-system.svc"}
	}})
	for name, tt := range map[string]struct {
		files map[string][]byte
		ca    *testCA
		roots []*testCA
		above int // CAs in a chain beside the leaf's and the root
	}{
		"a root":                     {map[string][]byte{caCertFile: text(root), caKeyFile: pemKey(t, root.key)}, root, []*testCA{root}, 0},
		"a root under Istio's names": {map[string][]byte{istioCertFile: text(root), istioKeyFile: pemKey(t, root.key), rootsFile: text(root), chainFile: text(root)}, root, []*testCA{root}, 0},
		"Istio's four files":         {map[string][]byte{istioCertFile: text(upper), istioKeyFile: pemKey(t, upper.key), rootsFile: text(root), chainFile: text(upper, root)}, upper, []*testCA{root}, 1},
		"Istio's without a chain":    {map[string][]byte{istioCertFile: text(upper), istioKeyFile: pemKey(t, upper.key), rootsFile: text(root)}, upper, []*testCA{root}, 1},
		"a chain in one file":        {map[string][]byte{caCertFile: text(lower, upper, root), caKeyFile: pemKey(t, lower.key)}, lower, []*testCA{root}, 2},
		"in any order":               {map[string][]byte{caCertFile: text(lower, root, upper), caKeyFile: pemKey(t, lower.key)}, lower, []*testCA{root}, 2},
		"in three files":             {map[string][]byte{caCertFile: text(lower), caKeyFile: pemKey(t, lower.key), chainFile: text(upper), rootsFile: text(root)}, lower, []*testCA{root}, 2},
		"two roots to trust":         {map[string][]byte{istioCertFile: text(lower), istioKeyFile: pemKey(t, lower.key), chainFile: text(lower, upper), rootsFile: text(second, root)}, lower, []*testCA{root, second}, 2},
		"just enough path length":    {map[string][]byte{caCertFile: text(withPath), caKeyFile: pemKey(t, withPath.key)}, withPath, []*testCA{withPath}, 0},
		"SEC 1 with parameters":      {map[string][]byte{caCertFile: text(lower, upper, root), caKeyFile: append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)}, lower, []*testCA{root}, 2},
		"PKCS #1":                    {map[string][]byte{caCertFile: text(rsaCA, root), caKeyFile: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsa2048)})}, rsaCA, []*testCA{root}, 1},
		"Ed25519":                    {map[string][]byte{caCertFile: text(edCA), caKeyFile: pemKey(t, ed)}, edCA, []*testCA{edCA}, 0},
		"P-384":                      {map[string][]byte{caCertFile: text(p384CA), caKeyFile: pemKey(t, p384)}, p384CA, []*testCA{p384CA}, 0},
		"one that names the mesh":    {map[string][]byte{caCertFile: text(named), caKeyFile: pemKey(t, named.key)}, named, []*testCA{named}, 0},
		"one with other names":       {map[string][]byte{caCertFile: text(odd, root), caKeyFile: pemKey(t, odd.key)}, odd, []*testCA{root}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := put(t, tt.files)
			if tt.ca != named {
				if name, err := ExistingMesh(dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("before its first use it is of %q (%v)", name, err)
				}
			}
			a, err := OpenAuthority(dir, "acme")
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Roots()) != len(tt.roots) {
				t.Errorf("%d roots, want %d", len(a.Roots()), len(tt.roots))
			}
			for i, r := range tt.roots {
				if !bytes.Equal(a.Roots()[i], r.cert.Raw) {
					t.Errorf("root %d is another", i)
				}
			}
			for file, data := range tt.files {
				if !bytes.Equal(read(t, filepath.Join(dir, file)), data) {
					t.Errorf("%s was changed", file)
				}
			}
			if slices.Contains(a.Created(), caCertFile) || slices.Contains(a.Created(), caKeyFile) {
				t.Errorf("created %v", a.Created())
			}

			// Everything stands on it: joining by the pin, both ways of TLS, bundles.
			cert := certificate(t, a, AgentOf(east1), time.Now(), time.Hour)
			if len(cert.Certificate) != 2+tt.above {
				t.Errorf("a chain of %d", len(cert.Certificate))
			}
			server := serverTLS(t, a, serverCertificate(t, a))
			for _, client := range []func() (Identity, error){
				func() (Identity, error) {
					_, serverErr, clientErr := connect(t, server, joinTLS(t, a))
					return AgentOf(east1), errors.Join(serverErr, clientErr)
				},
				func() (Identity, error) {
					state, serverErr, clientErr := connect(t, server, clientTLS(t, a, cert))
					if err := errors.Join(serverErr, clientErr); err != nil {
						return Identity{}, err
					}
					id, _, err := PeerIdentity(state, time.Now())
					return id, err
				},
				func() (Identity, error) {
					if _, err := SaveCertificate(filepath.Join(dir, "agent"), cert.PrivateKey.(crypto.Signer), cert.Certificate, a.Roots()); err != nil {
						return Identity{}, err
					}
					b, err := LoadCertificate(filepath.Join(dir, "agent"))
					if err != nil {
						return Identity{}, err
					}
					if b.Mesh() != "acme" || len(b.Chain) != len(cert.Certificate) || len(b.Roots) != len(tt.roots) {
						t.Errorf("the bundle is of %q, %d long with %d roots", b.Mesh(), len(b.Chain), len(b.Roots))
					}
					return b.Identity(), nil
				},
			} {
				if id, err := client(); err != nil || id != AgentOf(east1) {
					t.Errorf("it is %v (%v)", id, err)
				}
			}

			// The next process finds the same, and no other mesh may take it.
			again, err := OpenAuthority(dir, "acme")
			if err != nil || len(again.Created()) > 0 {
				t.Fatalf("created %v (%v)", again.Created(), err)
			}
			if !clusterCert(t, again, "east", time.Now()).Equal(clusterCert(t, a, "east", time.Now())) {
				t.Error("the cluster has another CA")
			}
			if name, err := ExistingMesh(dir); name != "acme" || err != nil {
				t.Errorf("existing mesh %q (%v)", name, err)
			}
			_, err = OpenAuthority(dir, "umbra")
			wantError(t, err, `"acme"`, `"umbra"`)
			if !errors.Is(err, ErrOtherMesh) {
				t.Errorf("%v, want ErrOtherMesh", err)
			}
		})
	}
}

func TestBroughtCARefused(t *testing.T) {
	root := newTestCA(t, nil, caSpec{})
	ca := newTestCA(t, root, caSpec{name: "ours"})
	stranger := newTestCA(t, nil, caSpec{name: "stranger"})
	key := pemKey(t, ca.key)
	withPath := func(n int) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = n, n == 0 }
	}
	shortRoot := newTestCA(t, nil, caSpec{name: "short", change: withPath(1)})
	belowShort := newTestCA(t, shortRoot, caSpec{name: "below short"})
	endedRoot := newTestCA(t, nil, caSpec{name: "ended root", ends: -time.Hour})
	belowEnded := newTestCA(t, endedRoot, caSpec{})
	lone := func(above *testCA, spec caSpec) map[string][]byte {
		c := newTestCA(t, above, spec)
		if above == nil {
			return map[string][]byte{caCertFile: text(c), caKeyFile: pemKey(t, c.key)}
		}
		return map[string][]byte{caCertFile: text(c, above), caKeyFile: pemKey(t, c.key)}
	}
	for name, tt := range map[string]struct {
		files map[string][]byte
		want  []string
	}{
		"a server's certificate":     {lone(root, caSpec{change: func(c *x509.Certificate) { c.IsCA, c.MaxPathLen, c.KeyUsage = false, 0, x509.KeyUsageDigitalSignature }}), []string{"ca.crt", "no CA", "CA:TRUE"}},
		"one that may not sign":      {lone(root, caSpec{change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }}), []string{"no CA", "keyCertSign"}},
		"ended":                      {lone(root, caSpec{ends: -time.Hour}), []string{"ca.crt ended", "replace it by one of the same root"}},
		"not begun":                  {lone(root, caSpec{begins: time.Hour}), []string{"ca.crt is valid from", "clock"}},
		"its root has ended":         {map[string][]byte{caCertFile: text(belowEnded, endedRoot), caKeyFile: pemKey(t, belowEnded.key)}, []string{`the CA "CN=ended root,O=ACME Corp." above it ended`}},
		"another key":                {map[string][]byte{caCertFile: text(ca, root), caKeyFile: pemKey(t, stranger.key)}, []string{"ca.key does not belong to ca.crt"}},
		"another key, Istio's names": {map[string][]byte{istioCertFile: text(ca, root), istioKeyFile: pemKey(t, stranger.key)}, []string{"ca-key.pem does not belong to ca-cert.pem"}},
		"no key":                     {map[string][]byte{istioCertFile: text(ca, root)}, []string{"ca-key.pem is missing but ca-cert.pem is there"}},
		"the key under another name": {map[string][]byte{istioCertFile: text(ca, root), caKeyFile: key}, []string{"ca-key.pem is missing"}},
		"a key and no certificate":   {map[string][]byte{caKeyFile: key}, []string{"ca.key", "its certificate is missing", "ca.crt"}},
		"Istio's key alone":          {map[string][]byte{istioKeyFile: key}, []string{"ca-key.pem is there but no certificate of a CA", "ca-cert.pem"}},
		"a root alone":               {map[string][]byte{rootsFile: text(root)}, []string{"root-cert.pem is there but no certificate of a CA"}},
		"two CAs":                    {map[string][]byte{caCertFile: text(ca, root), caKeyFile: key, istioCertFile: text(ca), istioKeyFile: key}, []string{"two CAs", "join again"}},
		"no root":                    {map[string][]byte{caCertFile: text(ca), caKeyFile: key}, []string{"ca.crt", "does not lead to a root", "root of ACME Corp.", "root-cert.pem"}},
		"another root":               {map[string][]byte{caCertFile: text(ca), caKeyFile: key, rootsFile: text(stranger)}, []string{"does not lead to a root"}},
		"a root that is not wanted":  {map[string][]byte{caCertFile: text(ca, root), caKeyFile: key, rootsFile: text(stranger)}, []string{"root of ACME Corp.", "not in", "root-cert.pem"}},
		"no root among the roots":    {map[string][]byte{caCertFile: text(ca, root), caKeyFile: key, rootsFile: text(root, ca)}, []string{"root-cert.pem", "not a root", "cert-chain.pem"}},
		"one too many":               {map[string][]byte{caCertFile: text(ca, root, stranger), caKeyFile: key}, []string{"holds 3 certificates", "stranger"}},
		"path length 0":              {lone(nil, caSpec{change: withPath(0)}), []string{"ca.crt allows 0 CAs below it", "needs 1", "pathlen"}},
		"path length 0 below a root": {lone(root, caSpec{change: withPath(0)}), []string{"ca.crt allows 0 CAs below it"}},
		"a root's path length of 1":  {map[string][]byte{caCertFile: text(belowShort, shortRoot), caKeyFile: pemKey(t, belowShort.key)}, []string{`"CN=short,O=ACME Corp." above it allows 1 CAs below it`, "needs 2"}},
		"for code alone":             {lone(root, caSpec{change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }}), []string{"issued with this CA to try it", "key usage"}},
		"for servers alone":          {lone(root, caSpec{change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }}), []string{"issued with this CA to try it", "key usage"}},
		"for another domain":         {lone(root, caSpec{change: func(c *x509.Certificate) { c.PermittedURIDomains = []string{"umbra.local"} }}), []string{"issued with this CA to try it", "constraint"}},
		"another mesh's by its name": {lone(nil, caSpec{change: func(c *x509.Certificate) { c.URIs = []*url.URL{testTrustDomain(t, "umbra").ID().URL()} }}), []string{`"umbra"`, `"acme"`}},
		"named as a cluster's": {lone(root, caSpec{change: func(c *x509.Certificate) {
			c.Subject = pkix.Name{Organization: []string{"flatmesh"}, OrganizationalUnit: []string{"east"}}
		}}), []string{"that of one cluster alone"}},
		"a signature of somebody":     {lone(nil, caSpec{wrongKeyForSign: stranger.key}), []string{"ca.crt", "is damaged"}},
		"a certificate in words":      {map[string][]byte{caCertFile: []byte("hello"), caKeyFile: key}, []string{"ca.crt is damaged", "no certificate in it"}},
		"a key for a certificate":     {map[string][]byte{caCertFile: key, caKeyFile: key}, []string{"ca.crt is damaged", `"PRIVATE KEY"`}},
		"a certificate for a key":     {map[string][]byte{caCertFile: text(ca, root), caKeyFile: text(ca)}, []string{"ca.key cannot be used", `"CERTIFICATE"`}},
		"a key in words":              {map[string][]byte{caCertFile: text(ca, root), caKeyFile: []byte("hello")}, []string{"ca.key cannot be used", "no private key in it"}},
		"an encrypted key":            {map[string][]byte{caCertFile: text(ca, root), caKeyFile: pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})}, []string{"encrypted", "openssl pkey"}},
		"a key encrypted as of old":   {map[string][]byte{caCertFile: text(ca, root), caKeyFile: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte{1}})}, []string{"encrypted"}},
		"a mesh's name that is none":  {map[string][]byte{caCertFile: text(ca, root), caKeyFile: key, meshFile: []byte("A!")}, []string{"mesh is damaged", "remove it"}},
		"used by another mesh before": {map[string][]byte{caCertFile: text(ca, root), caKeyFile: key, meshFile: []byte("umbra\n")}, []string{`"umbra"`, `"acme"`}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := put(t, tt.files)
			_, err := OpenAuthority(dir, "acme")
			wantError(t, err, append(tt.want, dir)...)
			for file, data := range tt.files {
				if !bytes.Equal(read(t, filepath.Join(dir, file)), data) {
					t.Errorf("%s was changed", file)
				}
			}
			if slices.Contains(slices.Collect(names(t, dir)), clustersDir) {
				t.Error("clusters were begun")
			}
		})
	}

	dir := put(t, map[string][]byte{istioCertFile: text(ca, root), istioKeyFile: key})
	chmod(istioKeyFile, 0o644)(t, dir)
	_, err := OpenAuthority(dir, "acme")
	wantError(t, err, "ca-key.pem", "chmod 600")
	chmod(istioKeyFile, 0o600)(t, dir)
	chmod(istioCertFile, 0o666)(t, dir)
	_, err = OpenAuthority(dir, "acme")
	wantError(t, err, "ca-cert.pem", "chmod 644")
}

func names(t *testing.T, dir string) func(func(string) bool) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(string) bool) {
		for _, e := range entries {
			if !yield(e.Name()) {
				return
			}
		}
	}
}

// A CA under the same root replaces another: tokens and certificates that are
// out stay good, and clusters get CAs of the new one.
func TestBroughtCAReplaced(t *testing.T) {
	root := newTestCA(t, nil, caSpec{})
	first, second := newTestCA(t, root, caSpec{name: "first"}), newTestCA(t, root, caSpec{name: "second"})
	dir := put(t, map[string][]byte{istioCertFile: text(first), istioKeyFile: pemKey(t, first.key), rootsFile: text(root)})
	a, err := OpenAuthority(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	mine := certificate(t, a, AgentOf(east1), time.Now(), time.Hour)
	join := joinTLS(t, a)
	token, err := a.CreateToken("east", "", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}

	write(t, filepath.Join(dir, istioCertFile), text(second))
	write(t, filepath.Join(dir, istioKeyFile), pemKey(t, second.key))
	b, err := OpenAuthority(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	server := serverTLS(t, b, serverCertificate(t, b))
	if _, serverErr, clientErr := connect(t, server, join); serverErr != nil || clientErr != nil {
		t.Errorf("a token of before: %v, %v", serverErr, clientErr)
	}
	if _, serverErr, clientErr := connect(t, server, clientTLS(t, a, mine)); serverErr != nil || clientErr != nil {
		t.Errorf("a certificate of before: %v, %v", serverErr, clientErr)
	}
	if _, err := b.VerifyToken(token, time.Now()); err != nil {
		t.Error(err)
	}
	if err := clusterCert(t, b, "east", time.Now()).CheckSignatureFrom(second.cert); err != nil {
		t.Errorf("the cluster's CA: %v", err)
	}

	// Renewed with its key, it leaves the clusters' CAs as they are.
	renewed := newTestCA(t, root, caSpec{likeItself: second, ends: 700 * 24 * time.Hour})
	write(t, filepath.Join(dir, istioCertFile), text(renewed))
	c, err := OpenAuthority(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if !clusterCert(t, c, "east", time.Now()).Equal(clusterCert(t, b, "east", time.Now())) {
		t.Error("the cluster has another CA")
	}
}

// Certificates of the time before clusters had CAs were issued by the root.
func TestCertificatesOfTheRootItself(t *testing.T) {
	a := testAuthority(t, "acme")
	key, _, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.ca.leaf(a.td, AgentOf(east1), key.Public(), time.Now(), time.Hour)
	if err != nil || len(chain) != 1 {
		t.Fatal(len(chain), err)
	}
	dir := filepath.Join(t.TempDir(), "agent")
	if _, err := SaveCertificate(dir, key, chain, a.Roots()); err != nil {
		t.Fatal(err)
	}
	b, err := LoadCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	state, serverErr, clientErr := connect(t, serverTLS(t, a, serverCertificate(t, a)), clientTLS(t, a, b.Certificate()))
	if err := errors.Join(serverErr, clientErr); err != nil {
		t.Fatal(err)
	}
	if id, ok, err := PeerIdentity(state, time.Now()); !ok || err != nil || id != AgentOf(east1) {
		t.Errorf("it is %v, %v (%v)", id, ok, err)
	}
}

// Whatever a user puts there is read or refused, and what is read can sign.
func FuzzCAFiles(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, Subject: pkix.Name{CommonName: "x"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	own, err := encodeKey(key)
	if err != nil {
		f.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeCertificate(der), own)
	f.Add(append([]byte("text\n"), encodeCertificate(der)...), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN EC PARAMETERS-----\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		certs, err := parseCertificates(cert)
		if (err == nil) != (len(certs) > 0) {
			t.Errorf("%d certificates, %v", len(certs), err)
		}
		if err == nil {
			if chain, err := chainOf(certs[0], certs[1:]); err == nil && !isRoot(chain[len(chain)-1]) {
				t.Error("a chain that ends in no root")
			}
		}
		if signer, err := decodeForeignKey(key); err == nil && signer.Public() == nil {
			t.Error("a key with no public half")
		}
	})
}
