package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// thief holds the CA of a cluster, as it lies on disk.
func thief(t *testing.T, a *Authority, cluster string) issuer {
	t.Helper()
	clusterCert(t, a, cluster, time.Now())
	ca, found, err := a.readClusterCA(cluster)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	return ca
}

// forged makes a certificate for anybody, with a cluster's CA and what it takes.
func forged(t *testing.T, ca issuer, change func(*x509.Certificate), key crypto.Signer) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, ca.above...), PrivateKey: key}
}

func TestStolenClusterCA(t *testing.T) {
	a := testAuthority(t, "acme")
	ca := thief(t, a, "east")
	key, _, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	good := serverTLS(t, a, serverCertificate(t, a))
	west := mesh.NodeID{Cluster: "west", Name: "n1"}
	for _, tt := range []struct {
		id    Identity
		wants string
	}{
		{AgentOf(east1), ""},
		{GatewayOf("east", "gw"), ""},
		{WorkloadOf("demo", "echo"), ""},
		{AgentOf(west), `"east", which may not speak for it`},
		{GatewayOf("west", "gw"), `"east", which may not speak for it`},
		{Identity{Role: ControlPlane}, `"east", which may not speak for it`},
	} {
		t.Run(tt.id.String(), func(t *testing.T) {
			uri, err := tt.id.URI(a.td)
			if err != nil {
				t.Fatal(err)
			}
			cert := forged(t, ca, func(c *x509.Certificate) { c.URIs = []*url.URL{uri} }, key)
			state, serverErr, _ := connect(t, good, clientTLS(t, a, cert))
			_, bundleErr := NewBundle(key, cert.Certificate, a.Roots())
			asServer := *cert
			asServer.Certificate = append(asServer.Certificate[:2:2], a.Roots()[0])
			mine := certificate(t, a, AgentOf(east1), time.Now(), time.Hour)
			_, _, clientErr := connect(t, serverTLS(t, a, &asServer), clientTLS(t, a, mine))
			_, _, joinErr := connect(t, serverTLS(t, a, &asServer), joinTLS(t, a))
			if clientErr == nil || joinErr == nil {
				t.Errorf("it is taken for the control plane: %v, %v", clientErr, joinErr)
			}
			if tt.wants == "" {
				id, _, err := PeerIdentity(state, time.Now())
				if err := errors.Join(err, serverErr, bundleErr); err != nil || id != tt.id {
					t.Errorf("it is %v (%v)", id, err)
				}
				return
			}
			for _, err := range []error{serverErr, bundleErr} {
				wantError(t, err, tt.wants)
				if !errors.Is(err, ErrOtherCluster) {
					t.Errorf("%v, want ErrOtherCluster", err)
				}
			}
			// Also for a caller whose connection nobody looked at.
			leaf, err := x509.ParseCertificate(cert.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			state = tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf, ca.cert, a.root}}}
			if id, ok, err := PeerIdentity(state, time.Now()); ok || !errors.Is(err, ErrOtherCluster) {
				t.Errorf("PeerIdentity: %v %v %v", id, ok, err)
			}
		})
	}
}

// What a cluster's CA is not for is refused by any verifier of X.509.
func TestClusterCAIsLimited(t *testing.T) {
	a := testAuthority(t, "acme")
	ca := thief(t, a, "east")
	key, _, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	verify := func(cert *tls.Certificate, more ...*x509.Certificate) error {
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(a.root)
		between.AddCert(ca.cert)
		for _, c := range more {
			between.AddCert(c)
		}
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
		return err
	}
	own, err := url.Parse("spiffe://acme.local/ns/demo/sa/echo")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*x509.Certificate){
		"another trust domain": func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "umbra.local", Path: "/x"}} },
		"a host name":          func(c *x509.Certificate) { c.DNSNames = []string{"www.example.com"} },
		"a name of the mesh":   func(c *x509.Certificate) { c.DNSNames = []string{"acme.local"} },
		"an address":           func(c *x509.Certificate) { c.IPAddresses = []net.IP{{192, 0, 2, 1}} },
		"an IPv6 address":      func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv6loopback} },
		"a mailbox":            func(c *x509.Certificate) { c.EmailAddresses = []string{"root@example.com"} },
		"an identity":          nil,
	} {
		cert := forged(t, ca, func(c *x509.Certificate) {
			c.URIs = []*url.URL{own}
			if change != nil {
				change(c)
			}
		}, key)
		err := verify(cert)
		if (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "constraint") {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A CA below it, for a cluster of its choice.
	sub := forged(t, ca, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		c.Subject.Organization, c.Subject.OrganizationalUnit = []string{issuerOrganization}, []string{"west"}
		c.SubjectKeyId = []byte("sub")
	}, key)
	subCert, err := x509.ParseCertificate(sub.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	below := ca.below(subCert, key)
	leaf := forged(t, below, func(c *x509.Certificate) { c.URIs = []*url.URL{own} }, key)
	wantError(t, verify(leaf, subCert), "too many intermediates")
}

// Two meshes on one root that the user brought have clusters of the same name.
func TestClusterCAOfAnotherMeshOfTheSameRoot(t *testing.T) {
	root := newTestCA(t, nil, caSpec{})
	a, umbra := bring(t, "acme", root), bring(t, "umbra", root)
	cert := certificate(t, umbra, AgentOf(east1), time.Now(), time.Hour)
	_, serverErr, _ := connect(t, serverTLS(t, a, serverCertificate(t, a)), clientTLS(t, a, cert))
	wantError(t, serverErr, "umbra")
	if !errors.Is(serverErr, ErrOtherMesh) {
		t.Errorf("%v, want ErrOtherMesh", serverErr)
	}
	_, _, clientErr := connect(t, serverTLS(t, umbra, serverCertificate(t, umbra)), clientTLS(t, a, certificate(t, a, AgentOf(east1), time.Now(), time.Hour)))
	if !errors.Is(clientErr, ErrOtherMesh) {
		t.Errorf("%v, want ErrOtherMesh", clientErr)
	}

	// Its cluster's CA, stolen, names this mesh.
	key, _, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	uri, err := AgentOf(east1).URI(a.td)
	if err != nil {
		t.Fatal(err)
	}
	stolen := thief(t, umbra, "east")
	cert = forged(t, stolen, func(c *x509.Certificate) { c.URIs = []*url.URL{uri} }, key)
	if _, serverErr, _ := connect(t, serverTLS(t, a, serverCertificate(t, a)), clientTLS(t, a, cert)); serverErr == nil {
		t.Error("it is taken for an agent of this mesh")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identityIn(a.td, []*x509.Certificate{leaf, stolen.cert, a.root}); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("it is %v (%v)", id, err)
	}
}
