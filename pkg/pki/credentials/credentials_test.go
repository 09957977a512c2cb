package credentials

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/pki"
)

var (
	gw    = pki.GatewayOf("east", "gw")
	agent = pki.AgentOf(mesh.NodeID{Cluster: "east", Name: "n1"})
)

// life is that of the certificates that a test's control plane issues.
const life = time.Hour

// controlPlane issues by a real CA, in the place of one that is asked by gRPC.
type controlPlane struct {
	t    *testing.T
	ca   *pki.Authority
	life time.Duration // of what it issues

	mu sync.Mutex
	// refuses is what every call is answered with, where it is set.
	refuses error
	calls   int
}

// answer sets what calls are answered with from now on, and returns how many there
// were before.
func (p *controlPlane) answer(err error) (calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls = p.calls
	p.refuses, p.calls = err, 0
	return calls
}

func newControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	ca, err := pki.OpenAuthority(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return &controlPlane{t: t, ca: ca, life: life}
}

func (p *controlPlane) issue(id pki.Identity, csr []byte) (chain, roots [][]byte, err error) {
	p.mu.Lock()
	p.calls++
	refuses := p.refuses
	p.mu.Unlock()
	if refuses != nil {
		return nil, nil, refuses
	}
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, nil, err
	}
	chain, err = p.ca.Issue(id, pub, time.Now(), p.life)
	return chain, p.ca.Roots(), err
}

func (p *controlPlane) join(_ context.Context, token string, csr []byte) (chain, roots [][]byte, err error) {
	claims, err := p.ca.VerifyGatewayToken(token, time.Now())
	if err != nil {
		return nil, nil, err
	}
	return p.issue(pki.GatewayOf(claims.Cluster, claims.Gateway), csr)
}

func (p *controlPlane) renew(_ context.Context, csr []byte) (chain, roots [][]byte, err error) {
	return p.issue(gw, csr)
}

// tokenFile writes a token for a gateway to a file, of which it returns the path.
func (p *controlPlane) tokenFile(id pki.Identity) string {
	p.t.Helper()
	token, err := p.ca.CreateGatewayToken(id.Cluster, id.Name, 24*time.Hour, time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	path := filepath.Join(p.t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// handshake connects as the next connection would, and returns who the control
// plane saw: nobody before the member has joined.
func (p *controlPlane) handshake(c *Credentials) (seen pki.Identity, shown, joined bool, err error) {
	cfg, joined, err := c.TLS()
	if err != nil {
		return pki.Identity{}, false, joined, err
	}
	server, err := pki.ServerTLS("test", p.ca.Roots(), func() (*tls.Certificate, error) {
		return p.ca.ControlPlaneCertificate(time.Now(), life)
	})
	if err != nil {
		return pki.Identity{}, false, joined, err
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	failed := make(chan error, 1)
	client := tls.Client(near, cfg)
	go func() {
		_, err := client.Write([]byte{1})
		failed <- err
	}()
	conn := tls.Server(far, server)
	_, err = conn.Read(make([]byte, 1))
	far.Close()
	if err := errors.Join(err, <-failed); err != nil {
		return pki.Identity{}, false, joined, err
	}
	seen, shown, err = pki.PeerIdentity(conn.ConnectionState(), time.Now())
	return seen, shown, joined, err
}

func (p *controlPlane) expect(c *Credentials, want pki.Identity) {
	p.t.Helper()
	seen, shown, joined, err := p.handshake(c)
	if err != nil || seen != want || shown != joined || joined != (want != pki.Identity{}) {
		p.t.Errorf("the control plane sees %v (shown %v, joined %v, error %v), want %v", seen, shown, joined, err, want)
	}
}

func options(t *testing.T, dir, tokenFile string) Options {
	return Options{Identity: gw, Dir: dir, TokenFile: tokenFile, Log: slog.New(slog.DiscardHandler), Now: time.Now}
}

func open(t *testing.T, o Options) *Credentials {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (p *controlPlane) joined(o Options) *Credentials {
	p.t.Helper()
	c := open(p.t, o)
	if err := c.Join(p.t.Context(), p.join); err != nil {
		p.t.Fatal(err)
	}
	return c
}

func key(c *Credentials) crypto.PublicKey { return c.good().Key.Public() }

func same(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}

func TestJoin(t *testing.T) {
	p := newControlPlane(t)
	o := options(t, filepath.Join(t.TempDir(), "state"), p.tokenFile(gw))
	c := open(t, o)
	if until, ok := c.Until(); ok {
		t.Errorf("there is a certificate, until %v, before there was any", until)
	}
	p.expect(c, pki.Identity{})
	if err := c.Join(t.Context(), p.join); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Until(); !ok {
		t.Error("there is no certificate")
	}
	p.expect(c, gw)

	o.TokenFile = "" // needed once
	again := open(t, o)
	p.expect(again, gw)
	if !same(key(c), key(again)) {
		t.Error("another key after a restart")
	}
}

func TestWithoutToken(t *testing.T) {
	for name, c := range map[string]struct {
		identity pki.Identity
		file     string
		says     []string
	}{
		"no file, gateway": {gw, "", []string{"no --token-file", "controlplane token create --cluster east --gateway gw"}},
		"no file, agent":   {agent, "", []string{"no --token-file", "controlplane token create --cluster east --node n1"}},
		"a missing file":   {gw, "/nowhere/token", []string{"/nowhere/token", "--gateway gw"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, t.TempDir(), c.file)
			o.Identity = c.identity
			creds := open(t, o)
			_, _, err := creds.TLS()
			joined := creds.Join(t.Context(), func(context.Context, string, []byte) ([][]byte, [][]byte, error) {
				t.Error("the control plane is asked")
				return nil, nil, nil
			})
			for _, err := range []error{err, joined} {
				for _, s := range c.says {
					if err == nil || !strings.Contains(err.Error(), s) {
						t.Errorf("%v does not say %q", err, s)
					}
				}
			}
		})
	}
	o := options(t, t.TempDir(), "")
	o.Identity = pki.Identity{}
	if _, err := Open(o); err == nil {
		t.Error("nobody has credentials")
	}
}

func TestRefusedCertificates(t *testing.T) {
	p := newControlPlane(t)
	other := newControlPlane(t)
	for name, c := range map[string]struct {
		get  JoinFunc
		says string
	}{
		"refused": {func(context.Context, string, []byte) ([][]byte, [][]byte, error) {
			return nil, nil, errors.New("not today")
		}, "not today"},
		"of another": {func(_ context.Context, _ string, csr []byte) ([][]byte, [][]byte, error) {
			return p.issue(pki.GatewayOf("east", "other"), csr)
		}, "is of the gateway east/other, not of the gateway east/gw"},
		"of another CA": {func(_ context.Context, _ string, csr []byte) ([][]byte, [][]byte, error) {
			chain, _, err := p.issue(gw, csr)
			return chain, other.ca.Roots(), err
		}, "the control plane's certificate"},
		"over already": {func(_ context.Context, _ string, csr []byte) ([][]byte, [][]byte, error) {
			pub, err := pki.ParseCSR(csr)
			if err != nil {
				return nil, nil, err
			}
			chain, err := p.ca.Issue(gw, pub, time.Now().Add(-2*time.Minute), time.Minute)
			return chain, p.ca.Roots(), err
		}, "set the clock"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, t.TempDir(), p.tokenFile(gw))
			creds := open(t, o)
			if err := creds.Join(t.Context(), c.get); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			p.expect(creds, pki.Identity{})
			if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
				t.Errorf("on disk: %v %v", left, err)
			}
		})
	}
}

func TestWhatLiesOnDisk(t *testing.T) {
	p := newControlPlane(t)
	o := options(t, t.TempDir(), p.tokenFile(gw))
	p.joined(o)
	path := filepath.Join(o.Dir, "identity.pem")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("of another", func(t *testing.T) {
		o := o
		o.Identity = pki.GatewayOf("east", "other")
		p.expect(open(t, o), pki.Identity{})
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
			t.Errorf("it was touched: %v", err)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		if err := os.WriteFile(path, good[:len(good)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		p.expect(open(t, o), pki.Identity{})
		aside, err := filepath.Glob(path + ".corrupt-*")
		if err != nil || len(aside) != 1 {
			t.Errorf("set aside: %v %v", aside, err)
		}
	})
	t.Run("open to others", func(t *testing.T) {
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("got %v", err)
		}
	})
}

func TestKeptInMemoryAlone(t *testing.T) {
	p := newControlPlane(t)
	o := options(t, filepath.Join(t.TempDir(), "state"), p.tokenFile(gw))
	c := open(t, o)
	if err := os.WriteFile(o.Dir, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	if err := c.Join(t.Context(), p.join); err != nil {
		t.Fatalf("a disk that fails keeps the member out: %v", err)
	}
	p.expect(c, gw)
}

func TestDismiss(t *testing.T) {
	p := newControlPlane(t)
	o := options(t, t.TempDir(), p.tokenFile(gw))
	c := p.joined(o)
	if !c.Dismiss() {
		t.Error("not dismissed")
	}
	p.expect(c, pki.Identity{})
	if err := c.Join(t.Context(), p.join); err != nil {
		t.Fatal(err)
	}
	if c.Dismiss() {
		t.Error("dismissed a second time")
	}
	p.expect(c, gw)

	o.TokenFile = ""
	c = open(t, o)
	if c.Dismiss() {
		t.Error("dismissed, with no token for another")
	}
	p.expect(c, gw)
}

func TestMeshWithANewCA(t *testing.T) {
	old, renewed := newControlPlane(t), newControlPlane(t)
	o := options(t, t.TempDir(), old.tokenFile(gw))
	c := old.joined(o)
	token, err := os.ReadFile(renewed.tokenFile(gw))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := renewed.handshake(c); err == nil {
		t.Error("the old certificate is good for the new CA")
	}
	if err := os.WriteFile(o.TokenFile, token, 0o600); err != nil {
		t.Fatal(err)
	}
	renewed.expect(c, pki.Identity{})
	if err := c.Join(t.Context(), renewed.join); err != nil {
		t.Fatal(err)
	}
	renewed.expect(c, gw)

	// What is no token at all says nothing of the CA.
	if err := os.WriteFile(o.TokenFile, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	renewed.expect(c, gw)
}
