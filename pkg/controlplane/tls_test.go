package controlplane

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
)

func TestJoinOverTLS(t *testing.T) {
	s := startServer(t)
	holder, _ := s.up("east/n1")
	expired, err := s.authority().CreateToken("east", "", time.Second, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.OpenAuthority(t.TempDir(), "test") // the same name, another CA
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.CreateToken("east", "", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		node, token string
		code        codes.Code
		says        string
	}{
		"good":                      {"east/n2", s.token("east", ""), codes.OK, ""},
		"for the node":              {"east/n3", s.token("east", "n3"), codes.OK, ""},
		"for another node":          {"east/n3", s.token("east", "n2"), codes.PermissionDenied, "the token is for east/n2, not for east/n3"},
		"for another cluster":       {"west/n1", s.token("east", ""), codes.PermissionDenied, "the token is for east"},
		"expired":                   {"east/n3", expired, codes.Unauthenticated, "expired"},
		"of another mesh":           {"east/n3", foreign, codes.Unavailable, "not the control plane that made the token"},
		"a node that is not there":  {"east/n9", s.token("east", ""), codes.FailedPrecondition, "node east/n9 is not in"},
		"a cluster that is not":     {"north/n1", s.token("north", ""), codes.FailedPrecondition, "cluster north is not known"},
		"a name that is held":       {"east/n1", s.token("east", ""), codes.PermissionDenied, "held by the live key"},
		"with a token of its own":   {"east/n1", s.token("east", "n1"), codes.OK, ""},
		"the token is no longer so": {"east/n2", tampered(s.token("east", "")), codes.Unauthenticated, "not signed by this control plane"},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.agent(c.node)
			err := a.join(c.token)
			if err == nil && c.code == codes.OK {
				return
			}
			expect(t, errors.Unwrap(err), c.code, c.says)
		})
	}

	// The newcomer with the node's own token takes the name once it registers.
	second := s.agent("east/n1")
	if err := second.join(s.token("east", "n1")); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.register(holder.connect()); err != nil {
		t.Errorf("the holder, before: %v", err)
	}
	if _, err := second.register(second.connect()); err != nil {
		t.Fatal(err)
	}
	_, err = holder.register(holder.connect())
	expect(t, err, codes.Unauthenticated, "another agent has joined as east/n1")
}

// tampered changes a character of a token's signature.
func tampered(token string) string {
	b := []byte(token)
	if i := len(b) - 20; b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

func TestCertificatesOverTLS(t *testing.T) {
	s := startServer(t)
	a, _ := s.up("east/n1")
	ca := s.authority()
	certificate := func(ca *pki.Authority, who pki.Identity, at time.Time, ttl time.Duration) *agent {
		key, csr, err := pki.NewCSR()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := pki.ParseCSR(csr)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.Issue(who, pub, at, ttl)
		if err != nil {
			t.Fatal(err)
		}
		b, err := pki.NewBundle(key, chain, ca.Roots())
		if err != nil {
			t.Fatal(err)
		}
		return &agent{s: s, node: id("east/n2"), key: s.agent("east/n2").key, bundle: b}
	}
	east := pki.AgentOf(id("east/n2"))

	if _, err := certificate(ca, east, time.Now(), time.Hour).register(a.connect()); err == nil {
		t.Error("an agent registers as another node")
	}
	if _, err := certificate(ca, east, time.Now(), time.Hour).register(certificate(ca, east, time.Now(), time.Hour).connect()); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
	// At TLS, before anything is asked.
	old := certificate(ca, east, time.Now().Add(-2*time.Minute), time.Minute)
	if _, err := old.register(old.connect()); status.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Errorf("an expired certificate: %v", err)
	}
	elsewhere, err := pki.OpenAuthority(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	stranger := certificate(elsewhere, east, time.Now(), time.Hour)
	stranger.bundle.Roots = ca.Roots()
	if _, err := stranger.register(stranger.connect()); status.Code(errors.Unwrap(err)) != codes.Unavailable {
		t.Errorf("another mesh's certificate: %v", err)
	}
	// No certificate, and that of no agent.
	nobody := s.dial(pki.JoinTLS(s.token("east", "")))
	_, err = a.register(nobody)
	expect(t, errors.Unwrap(err), codes.Unauthenticated, "join first")
	err = newMirror().run(t.Context(), nobody, a.node)
	expect(t, errors.Unwrap(err), codes.Unauthenticated, "join first")
	own := certificate(ca, pki.Identity{Role: pki.ControlPlane}, time.Now(), time.Hour)
	_, err = own.register(own.connect())
	expect(t, errors.Unwrap(err), codes.PermissionDenied, "the control plane is not an agent")

	// A stream ends with the certificate that it began with.
	short := certificate(ca, pki.AgentOf(id("east/n3")), time.Now(), 3*time.Second)
	short.node = id("east/n3")
	conn := short.connect()
	if _, err := short.register(conn); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- newMirror().run(t.Context(), conn, short.node) }()
	go func() { ended <- peering.NewAgent(conn, short.node, short).Report(t.Context(), oneTunnel{a.node}) }()
	for range 2 {
		err := end(t, ended)
		expect(t, errors.Unwrap(err), codes.Unauthenticated, "expired")
	}
	_, err = short.register(conn)
	expect(t, errors.Unwrap(err), codes.Unauthenticated, "expired")
}
