package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestIssue(t *testing.T) {
	a := testAuthority(t, "acme")
	now := time.Now().Truncate(time.Second)
	_, csr, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	for id, cluster := range map[Identity]string{AgentOf(east1): "east", GatewayOf("west", "gw"): "west", {Role: ControlPlane}: "", WorkloadOf("demo", "echo"): "east"} {
		var chain [][]byte
		if id.Role == Workload {
			chain, err = a.IssueWorkload("east", "demo", "echo", pub, now, time.Hour)
		} else {
			chain, err = a.Issue(id, pub, now, time.Hour)
		}
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			t.Fatal(err)
		}
		got, err := identityOf(a.td, leaf)
		if err != nil || got != id {
			t.Errorf("identity %v (%v), want %v", got, err, id)
		}
		if !leaf.NotBefore.Equal(now.Add(-backdate)) || !leaf.NotAfter.Equal(now.Add(time.Hour)) {
			t.Errorf("valid %v to %v", leaf.NotBefore, leaf.NotAfter)
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || len(leaf.ExtKeyUsage) != 2 || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("%v has %v %v %v, usages %v %v", id, leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, leaf.KeyUsage, leaf.ExtKeyUsage)
		}
		by := a.root
		if cluster != "" {
			if by, err = x509.ParseCertificate(chain[1]); err != nil {
				t.Fatal(err)
			}
			if of, ok := clusterOf(by); !ok || of != cluster || by.CheckSignatureFrom(a.root) != nil {
				t.Errorf("%v is issued by %v", id, by.Subject)
			}
		} else if len(chain) != 1 {
			t.Errorf("%v has a chain of %d", id, len(chain))
		}
		if err := leaf.CheckSignatureFrom(by); err != nil {
			t.Error(err)
		}
	}

	for name, tt := range map[string]struct {
		id   Identity
		now  time.Time
		ttl  time.Duration
		pub  crypto.PublicKey
		want string
	}{
		"no role":                {Identity{}, now, time.Hour, pub, "role"},
		"agent with no node":     {Identity{Role: Agent}, now, time.Hour, pub, "cluster name"},
		"agent with a bad node":  {AgentOf(mesh.NodeID{Cluster: "east", Name: "../x"}), now, time.Hour, pub, "node name"},
		"control plane and node": {Identity{Role: ControlPlane, Node: east1}, now, time.Hour, pub, "names that its role has not"},
		"workload of no cluster": {WorkloadOf("demo", "echo"), now, time.Hour, pub, "issued in a cluster"},
		"gateway with no name":   {GatewayOf("east", ""), now, time.Hour, pub, "gateway name"},
		"no life":                {AgentOf(east1), now, 0, pub, "time to live"},
		"weak key":               {AgentOf(east1), now, time.Hour, p224(t), "P-224"},
		"no key":                 {AgentOf(east1), now, time.Hour, nil, "type"},
		"root not begun":         {AgentOf(east1), now.Add(-time.Hour), time.Hour, pub, "is valid from"},
		"root ended":             {AgentOf(east1), now.Add(2 * rootLife), time.Hour, pub, "is valid from"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Issue(tt.id, tt.pub, tt.now, tt.ttl)
			wantError(t, err, tt.want)
		})
	}

	for name, tt := range map[string]struct {
		cluster, namespace, account, want string
	}{
		"no cluster":    {"", "demo", "echo", "cluster name"},
		"a path":        {"../x", "demo", "echo", "cluster name"},
		"bad namespace": {"east", "Demo", "echo", "namespace"},
		"bad account":   {"east", "demo", "a/b", "service account"},
	} {
		_, err := a.IssueWorkload(tt.cluster, tt.namespace, tt.account, pub, now, time.Hour)
		t.Run("workload: "+name, func(t *testing.T) { wantError(t, err, tt.want) })
	}

	t.Run("never beyond the CA", func(t *testing.T) {
		for _, id := range []Identity{AgentOf(east1), {Role: ControlPlane}} {
			chain, err := a.Issue(id, pub, now, 2*rootLife)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(chain[0])
			if err != nil {
				t.Fatal(err)
			}
			by := a.root
			if len(chain) > 1 {
				if by, err = x509.ParseCertificate(chain[1]); err != nil {
					t.Fatal(err)
				}
			}
			if !leaf.NotAfter.Equal(by.NotAfter) {
				t.Errorf("%v ends %v, want its CA's %v", id, leaf.NotAfter, by.NotAfter)
			}
		}
	})
}

func p224(t *testing.T) crypto.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

func TestParseCSR(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		key  crypto.Signer
		want string // "" for accepted
	}{
		"P-384": {p384, ""}, "Ed25519": {ed, ""}, "RSA 2048": {rsa2048, ""},
		"P-521": {p521, "P-521"}, "RSA 1024": {rsa1024, "1024 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, tt.key)
			if err != nil {
				t.Fatal(err)
			}
			pub, err := ParseCSR(der)
			if tt.want != "" {
				wantError(t, err, tt.want)
			} else if err != nil || !samePublic(pub, tt.key.Public()) {
				t.Errorf("key %v, error %v", pub, err)
			}
		})
	}

	_, der, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	der[len(der)-1] ^= 1
	_, err = ParseCSR(der)
	wantError(t, err, "not signed by its own key")
	_, err = ParseCSR(make([]byte, maxCSR+1))
	wantError(t, err, "at most")
	_, err = ParseCSR([]byte("hello"))
	wantError(t, err, "certificate request")
}
