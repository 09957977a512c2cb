package build

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// sniVariable makes grpc-go 1.85 send the cluster's SNI. It is read when a
// program starts, so the test starts itself again.
const sniVariable = "GRPC_EXPERIMENTAL_XDS_SNI"

// What the cluster says of TLS is what a gRPC client does: it shows its own
// certificate, asks for the service by SNI, and takes only the identities named.
func TestClientMTLS(t *testing.T) {
	if os.Getenv(sniVariable) != "true" {
		again := exec.Command(os.Args[0], "-test.run=^TestClientMTLS$", "-test.count=1")
		again.Env = append(os.Environ(), sniVariable+"=true")
		if out, err := again.CombinedOutput(); err != nil {
			t.Fatalf("with %s=true: %v\n%s", sniVariable, err, out)
		}
		return
	}
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	ca.issue(t, dir, "client", "spiffe://lab.local/ns/demo/sa/client")
	ca.issue(t, dir, "echo", "spiffe://lab.local/ns/demo/sa/echo")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "echo.crt"), filepath.Join(dir, "echo.key"))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Value
	pod := newBackend(t, "pod", grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			asked.Store(s.ServerName + " " + s.PeerCertificates[0].URIs[0].String())
			return nil
		},
	})))
	more := fmt.Sprintf(`, "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {"certificate_file": %q, "private_key_file": %q, "ca_certificate_file": %q}}}`,
		filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"), filepath.Join(dir, "ca.crt"))

	for _, tc := range []struct {
		name   string
		change func(p *ServicePort)
		good   bool
	}{
		{"its own identity among others", func(p *ServicePort) {}, true},
		{"any of the namespace", func(p *ServicePort) { p.SANs = nil }, true},
		{"another service account", func(p *ServicePort) { p.SANs = []string{"spiffe://lab.local/ns/demo/sa/echo2"} }, false},
		{"any of another namespace", func(p *ServicePort) { p.SANs, p.Service.Namespace = nil, "dem" }, false},
		{"any of another trust domain", func(p *ServicePort) { p.SANs, p.TrustDomain = nil, "other.local" }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, p := newControlPlane(t), echoPort()
			tc.change(&p)
			c.service(p)
			c.set(EDS(Assignment{Name: p.Name(GRPC), Direct: []Direct{{Addr: pod.addr, Reason: mesh.ReasonLocal}}}))
			creds, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
			if err != nil {
				t.Fatal(err)
			}
			id, err := call(c.dial(ListenerNames(p.Service, p.Port, p.Scope)[0], more, creds), patience)
			if tc.good != (err == nil && id == "pod") {
				t.Fatalf("answered by %q, %v; want an answer: %v", id, err, tc.good)
			}
			if want := SNI(p.Port, p.Host()) + " spiffe://lab.local/ns/demo/sa/client"; tc.good && asked.Load() != want {
				t.Errorf("the pod was asked as %q, want %q", asked.Load(), want)
			}
		})
	}
}

// authority is a root that signs workload certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, pool: x509.NewCertPool()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", der)
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue writes NAME.crt and NAME.key.
func (a *authority) issue(t *testing.T, dir, name, id string) {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".crt"), "CERTIFICATE", der)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".key"), "PRIVATE KEY", private)
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
