package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// certificate issues one for the agent on east/n1.
func certificate(t *testing.T, a *Authority, id Identity, now time.Time, ttl time.Duration) *tls.Certificate {
	t.Helper()
	key, csr, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(id, pub, now, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key}
}

func always(cert *tls.Certificate) CertificateFunc {
	return func() (*tls.Certificate, error) { return cert, nil }
}

func serverCertificate(t *testing.T, a *Authority) *tls.Certificate {
	t.Helper()
	cert, err := a.ControlPlaneCertificate(time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func serverTLS(t *testing.T, a *Authority, cert *tls.Certificate) *tls.Config {
	t.Helper()
	cfg, err := ServerTLS(a.Mesh(), a.Roots(), always(cert))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func clientTLS(t *testing.T, a *Authority, cert *tls.Certificate) *tls.Config {
	t.Helper()
	cfg, err := ClientTLS(a.Mesh(), a.Roots(), always(cert))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func joinTLS(t *testing.T, a *Authority) *tls.Config {
	t.Helper()
	token, err := a.CreateToken("east", "", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := JoinTLS(token)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// connect makes one TLS connection over loopback, sends a byte each way, and
// returns what either end says of it.
func connect(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := listener.Accept()
		if err != nil {
			serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		if serverErr = conn.Handshake(); serverErr == nil {
			state = conn.ConnectionState()
			_, serverErr = io.CopyN(conn, conn, 1)
		}
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	_, clientErr = conn.Write([]byte("x"))
	if clientErr == nil {
		// Under TLS 1.3 a server's refusal of the client arrives with the first read.
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
	}
	raw.Close()
	<-done
	return state, serverErr, clientErr
}

func TestHandshakes(t *testing.T) {
	now := time.Now()
	a, namesake, other := testAuthority(t, "acme"), testAuthority(t, "acme"), testAuthority(t, "umbra")
	good := serverTLS(t, a, serverCertificate(t, a))
	withoutRoot := serverCertificate(t, a)
	withoutRoot.Certificate = withoutRoot.Certificate[:1]
	// A stranger's leaf, shown with our root behind it, as anybody can.
	borrowed := serverCertificate(t, namesake)
	borrowed.Certificate = [][]byte{borrowed.Certificate[0], a.Roots()[0]}
	agentAsServer := certificate(t, a, AgentOf(east1), now, time.Hour)
	agentAsServer.Certificate = append(agentAsServer.Certificate, a.Roots()[0])
	expiredServer, err := a.ControlPlaneCertificate(now.Add(-time.Minute), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	mine := certificate(t, a, AgentOf(east1), now, time.Hour)

	for _, tt := range []struct {
		name           string
		server, client *tls.Config
		want           Identity // zero for a client without identity
		serverErr      string
		clientErr      string
	}{
		{name: "join by the pin", server: good, client: joinTLS(t, a)},
		{name: "join: wrong pin", server: good, client: joinTLS(t, namesake), clientErr: "not the control plane that made the token"},
		{name: "join: another mesh", server: good, client: joinTLS(t, other), clientErr: "not the control plane that made the token"},
		{name: "join: no root in the chain", server: serverTLS(t, a, withoutRoot), client: joinTLS(t, a), clientErr: "not the control plane that made the token"},
		{name: "join: our root, a stranger's leaf", server: serverTLS(t, a, borrowed), client: joinTLS(t, a), clientErr: `not the control plane of the mesh "acme"`},
		{name: "join: an agent poses as server", server: serverTLS(t, a, agentAsServer), client: joinTLS(t, a), clientErr: "the server is the agent of east/n1"},
		{name: "join: server expired", server: serverTLS(t, a, expiredServer), client: joinTLS(t, a), clientErr: "check this machine's clock"},
		{name: "agent", server: good, client: clientTLS(t, a, mine), want: AgentOf(east1)},
		{name: "control plane as client", server: good, client: clientTLS(t, a, serverCertificate(t, a)), want: Identity{Role: ControlPlane}},
		{name: "server without its root", server: serverTLS(t, a, withoutRoot), client: clientTLS(t, a, mine), want: AgentOf(east1)},
		{name: "server of another CA", server: serverTLS(t, namesake, serverCertificate(t, namesake)), client: clientTLS(t, a, mine), clientErr: "unknown authority"},
		{name: "server is an agent", server: serverTLS(t, a, agentAsServer), client: clientTLS(t, a, mine), clientErr: "the server is the agent"},
		{name: "client expired", server: good, client: clientTLS(t, a, certificate(t, a, AgentOf(east1), now.Add(-time.Minute), time.Second)),
			serverErr: "expired", clientErr: "expired"},
		{name: "client of another CA", server: good, client: clientOf(t, a, namesake), serverErr: "unknown authority", clientErr: "unknown certificate authority"},
		{name: "client of another mesh", server: good, client: clientOf(t, a, other), serverErr: "unknown authority", clientErr: "unknown certificate authority"},
		{name: "client signed by nobody", server: good, client: clientTLS(t, a, selfMade(t, a)), serverErr: "unknown authority", clientErr: "unknown certificate authority"},
		{name: "TLS 1.2", server: good, client: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, serverErr: "version", clientErr: "version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state, serverErr, clientErr := connect(t, tt.server, tt.client)
			if tt.clientErr != "" || tt.serverErr != "" {
				wantError(t, clientErr, tt.clientErr)
				wantError(t, serverErr, tt.serverErr)
				return
			}
			if serverErr != nil || clientErr != nil {
				t.Fatalf("server: %v, client: %v", serverErr, clientErr)
			}
			id, ok, err := PeerIdentity(state, now)
			if err != nil || ok != (tt.want != Identity{}) || id != tt.want {
				t.Errorf("peer is %v, %v (%v), want %v", id, ok, err, tt.want)
			}
		})
	}
}

// clientOf trusts a but shows a certificate of by.
func clientOf(t *testing.T, a, by *Authority) *tls.Config {
	return clientTLS(t, a, certificate(t, by, AgentOf(east1), time.Now(), time.Hour))
}

// selfMade claims an identity of a's mesh on nobody's word.
func selfMade(t *testing.T, a *Authority) *tls.Certificate {
	t.Helper()
	key, _, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	root, err := createRoot(t.TempDir(), a.Mesh(), a.td, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{root.Raw}, PrivateKey: key}
}

func TestPeerIdentityAfterTheCertificateEnded(t *testing.T) {
	a := testAuthority(t, "acme")
	now := time.Now()
	state, serverErr, clientErr := connect(t, serverTLS(t, a, serverCertificate(t, a)),
		clientTLS(t, a, certificate(t, a, AgentOf(east1), now, time.Hour)))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if _, ok, err := PeerIdentity(state, now.Add(59*time.Minute)); !ok || err != nil {
		t.Errorf("before the end: %v, %v", ok, err)
	}
	_, ok, err := PeerIdentity(state, now.Add(2*time.Hour))
	if ok || !errors.Is(err, ErrCertificateExpired) {
		t.Errorf("after the end: %v, %v", ok, err)
	}
	wantError(t, err, "the agent of east/n1", "expired", "renew")

	state.VerifiedChains = nil
	if _, ok, err := PeerIdentity(state, now); ok || err == nil {
		t.Errorf("a certificate that nobody verified: %v, %v", ok, err)
	}
}

func TestServerUsesTheCertificateOfTheMoment(t *testing.T) {
	a := testAuthority(t, "acme")
	current := serverCertificate(t, a)
	server, err := ServerTLS("acme", a.Roots(), func() (*tls.Certificate, error) { return current, nil })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var seen []byte
		client := joinTLS(t, a)
		verify := client.VerifyConnection
		client.VerifyConnection = func(cs tls.ConnectionState) error {
			seen = cs.PeerCertificates[0].Raw
			return verify(cs)
		}
		if _, serverErr, clientErr := connect(t, server, client); serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if string(seen) != string(current.Certificate[0]) {
			t.Error("the server shows an earlier certificate")
		}
		current = serverCertificate(t, a)
	}
}

func TestTLSRefusesBadTrust(t *testing.T) {
	a, other := testAuthority(t, "acme"), testAuthority(t, "umbra")
	leaf := certificate(t, a, AgentOf(east1), time.Now(), time.Hour).Certificate[0]
	for name, tt := range map[string]struct {
		mesh  string
		roots [][]byte
		want  string
	}{
		"no root":           {"acme", nil, "no root"},
		"not a certificate": {"acme", [][]byte{[]byte("x")}, "root certificate 0"},
		"a leaf":            {"acme", [][]byte{leaf}, "not the CA of a mesh"},
		"another mesh":      {"acme", other.Roots(), "umbra"},
		"a bad name":        {"", a.Roots(), "mesh name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ClientTLS(tt.mesh, tt.roots, nil)
			wantError(t, err, tt.want)
			_, err = ServerTLS(tt.mesh, tt.roots, nil)
			wantError(t, err, tt.want)
		})
	}
	if _, err := JoinTLS("x"); !errors.Is(err, ErrNotToken) {
		t.Errorf("JoinTLS: %v", err)
	}
}

func TestIdentityOfRefuses(t *testing.T) {
	a := testAuthority(t, "acme")
	for name, cert := range map[string]*x509.Certificate{
		"a CA":   a.root,
		"no URI": {},
		"two":    {URIs: append(a.root.URIs, a.root.URIs...)},
	} {
		if id, err := identityOf(a.td, cert); err == nil {
			t.Errorf("%s is %v", name, id)
		}
	}
}
