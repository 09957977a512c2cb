package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/tls/certprovider"
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// patience bounds how long a test waits for what must come.
const patience = 30 * time.Second

func workloadBundle(t *testing.T, a *Authority, cluster, account string, now time.Time) *Bundle {
	t.Helper()
	key, csr, err := NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.IssueWorkload(cluster, "demo", account, pub, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewBundle(key, chain, a.Roots())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// podDir is the folder of a pod, which does not exist yet.
func podDir(t *testing.T) string { return filepath.Join(t.TempDir(), "workloads", "demo_echo-0") }

func TestWorkloadRoundTrip(t *testing.T) {
	// The rights must not depend on it.
	defer syscall.Umask(syscall.Umask(0o077))
	a := testAuthority(t, "acme")
	dir := podDir(t)
	if _, err := ReadWorkload(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there yet: %v", err)
	}
	for i := range 3 {
		b := workloadBundle(t, a, "east", "echo", time.Now().Add(time.Duration(i)*time.Minute))
		if err := WriteWorkload(dir, b); err != nil {
			t.Fatal(err)
		}
		got, err := ReadWorkload(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.Identity() != WorkloadOf("demo", "echo") || got.Mesh() != "acme" || !got.NotAfter().Equal(b.NotAfter()) || !samePublic(got.Key.Public(), b.Key.Public()) ||
			!slices.EqualFunc(got.Chain, b.Chain, bytes.Equal) || !slices.EqualFunc(got.Roots, b.Roots, bytes.Equal) {
			t.Errorf("read %v until %v", got.Identity(), got.NotAfter())
		}
		if pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")); err != nil || len(pair.Certificate) != 2 {
			t.Errorf("as crypto/tls reads it: %d certificates, %v", len(pair.Certificate), err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(read(t, filepath.Join(dir, "ca.crt"))) {
			t.Error("no root in ca.crt")
		}
		key, rest := pem.Decode(read(t, filepath.Join(dir, "tls.key")))
		if key == nil || key.Type != "PRIVATE KEY" || len(rest) > 0 {
			t.Errorf("tls.key holds %v and %q", key, rest)
		}
		for name, target := range map[string]string{"tls.crt": "..data/tls.crt", "tls.key": "..data/tls.key", "ca.crt": "..data/ca.crt"} {
			if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != target {
				t.Errorf("%s leads to %q (%v)", name, to, err)
			}
		}
		data, err := os.Readlink(filepath.Join(dir, "..data"))
		if err != nil || !strings.HasPrefix(data, "..20") {
			t.Errorf("..data leads to %q (%v)", data, err)
		}
		if got := slices.Sorted(names(t, dir)); !slices.Equal(got, slices.Sorted(slices.Values([]string{data, "..data", "ca.crt", "tls.crt", "tls.key"}))) {
			t.Errorf("the folder holds %v", got)
		}
		for path, want := range map[string]fs.FileMode{"..": 0o700, "": 0o755, data: 0o755, "tls.crt": 0o644, "tls.key": 0o644, "ca.crt": 0o644} {
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%q has mode %v (%v), want %v", path, info.Mode(), err, want)
			}
		}
	}
}

func TestWriteWorkloadRefuses(t *testing.T) {
	a := testAuthority(t, "acme")
	good := workloadBundle(t, a, "east", "echo", time.Now())
	for name, tt := range map[string]struct {
		bundle  func() *Bundle
		prepare func(t *testing.T, dir string)
		want    string
	}{
		"an agent's identity": {bundle: func() *Bundle {
			key, chain := testBundle(t, a)
			b, err := NewBundle(key, chain, a.Roots())
			if err != nil {
				t.Fatal(err)
			}
			return b
		}, want: "no pod may have it"},
		"a folder above that others may enter": {prepare: func(t *testing.T, dir string) {
			if err := errors.Join(os.Mkdir(filepath.Dir(dir), 0o700), os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
				t.Fatal(err)
			}
		}, want: "chmod 700"},
		"a file in place of the folder": {prepare: func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, dir, nil)
		}, want: "not a directory"},
		"a folder in place of a file": {prepare: func(t *testing.T, dir string) {
			if err := errors.Join(os.Mkdir(filepath.Dir(dir), 0o700), os.MkdirAll(filepath.Join(dir, "tls.crt", "x"), 0o700)); err != nil {
				t.Fatal(err)
			}
		}, want: "tls.crt"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, b := podDir(t), good
			if tt.bundle != nil {
				b = tt.bundle()
			}
			if tt.prepare != nil {
				tt.prepare(t, dir)
			}
			wantError(t, WriteWorkload(dir, b), tt.want, dir)
		})
	}
}

// What an earlier process left half done, or a pod put there, is in nobody's way.
func TestWriteWorkloadOverAMess(t *testing.T) {
	a := testAuthority(t, "acme")
	outside := t.TempDir()
	write(t, filepath.Join(outside, "kept"), []byte("x"))
	for name, prepare := range map[string]func(dir string) error{
		"files of an earlier form":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "tls.key"), []byte("x"), 0o600) },
		"a link that was under way": func(dir string) error { return os.Symlink("..x", filepath.Join(dir, workloadTemp)) },
		"a folder half written":     func(dir string) error { return os.MkdirAll(filepath.Join(dir, "..2020_01_01_00_00_00.1", "x"), 0o700) },
		"a link that leads nowhere": func(dir string) error { return os.Symlink("..gone", filepath.Join(dir, workloadData)) },
		"links out of the folder": func(dir string) error {
			return errors.Join(os.Symlink(outside, filepath.Join(dir, workloadData)), os.Symlink(outside, filepath.Join(dir, workloadTemp)),
				os.Symlink(filepath.Join(outside, "kept"), filepath.Join(dir, "tls.crt")), os.Symlink(outside, filepath.Join(dir, "..2020")))
		},
		"a folder where the link is made": func(dir string) error { return os.MkdirAll(filepath.Join(dir, workloadTemp, "x"), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t)
			if err := errors.Join(os.MkdirAll(dir, 0o700), prepare(dir)); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadWorkload(dir); err == nil {
				t.Error("it reads as a certificate")
			}
			b := workloadBundle(t, a, "east", "echo", time.Now())
			if err := WriteWorkload(dir, b); err != nil {
				t.Fatal(err)
			}
			if got, err := ReadWorkload(dir); err != nil || !bytes.Equal(got.Chain[0], b.Chain[0]) {
				t.Errorf("afterwards: %v", err)
			}
			if got := slices.Collect(names(t, dir)); len(got) != 5 {
				t.Errorf("the folder holds %v", got)
			}
			if got := slices.Collect(names(t, outside)); !slices.Equal(got, []string{"kept"}) || string(read(t, filepath.Join(outside, "kept"))) != "x" {
				t.Errorf("outside there are %v", got)
			}
		})
	}
}

func TestReadWorkloadRefuses(t *testing.T) {
	a, other := testAuthority(t, "acme"), testAuthority(t, "umbra")
	change := func(name string, data []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), data) }
	}
	key, chain := testBundle(t, a)
	for name, tt := range map[string]struct {
		damage func(*testing.T, string)
		want   string
	}{
		"a certificate cut short": {change("tls.crt", []byte("-----BEGIN CERTIFICATE-----\n")), "tls.crt"},
		"no key":                  {change("tls.key", nil), "tls.key: no private key"},
		"no root":                 {change("ca.crt", nil), "ca.crt: no certificate"},
		"another mesh's root":     {change("ca.crt", encodeCertificates(other.Roots())), "unknown authority"},
		"another key":             {change("tls.key", pemKey(t, key)), "does not belong"},
		"an agent's": {func(t *testing.T, dir string) {
			change("tls.crt", encodeCertificates(chain))(t, dir)
			change("tls.key", pemKey(t, key))(t, dir)
		}, "not of a workload"},
		"a file that is gone": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "..data", "ca.crt")); err != nil {
				t.Fatal(err)
			}
		}, "ca.crt"},
		"a link out of the folder": {func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(filepath.Join(dir, "..data")), os.Symlink("..", filepath.Join(dir, "..data"))); err != nil {
				t.Fatal(err)
			}
		}, "out of the folder"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := podDir(t)
			if err := WriteWorkload(dir, workloadBundle(t, a, "east", "echo", time.Now())); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, dir)
			_, err := ReadWorkload(dir)
			wantError(t, err, tt.want, dir)
		})
	}
}

func FuzzDecodeWorkload(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), []byte(""))
	f.Fuzz(func(t *testing.T, cert, key, root []byte) {
		if b, err := decodeWorkload(cert, key, root); err == nil && b.Identity().Role != Workload {
			t.Errorf("read %v", b.Identity())
		}
	})
}

// pod reads its folder with gRPC's own provider, as the plugin file_watcher does.
type pod struct {
	dir      string
	provider certprovider.Provider
}

func newPod(t *testing.T, dir string) *pod {
	t.Helper()
	provider, err := pemfile.NewProvider(pemfile.Options{
		CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), RootFile: filepath.Join(dir, "ca.crt"),
		RefreshDuration: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(provider.Close)
	return &pod{dir, provider}
}

// tls is what a workload does with what it read: its own certificate, and a peer
// that verifies to the roots.
func (p *pod) tls() *tls.Config {
	var used atomic.Pointer[certprovider.KeyMaterial]
	material := func(ctx context.Context) (*tls.Certificate, error) {
		km, err := p.provider.KeyMaterial(ctx)
		if err != nil {
			return nil, err
		}
		used.Store(km)
		return &km.Certs[0], nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		GetCertificate:       func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return material(h.Context()) },
		GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) { return material(r.Context()) },
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			leaf, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			between := x509.NewCertPool()
			for _, der := range raw[1:] {
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				between.AddCert(cert)
			}
			km, err := p.provider.KeyMaterial(context.Background())
			if err != nil {
				return err
			}
			_, err = leaf.Verify(x509.VerifyOptions{Roots: km.Roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}
}

// answers is a server that refuses callers who are not of the other's account.
func answers(t *testing.T, p *pod, caller string) (addr string) {
	t.Helper()
	gs := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.tls())), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			from, _ := peer.FromContext(ctx)
			if got := from.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0].String(); got != caller {
				return nil, fmt.Errorf("the caller is %s, want %s", got, caller)
			}
			return handle(ctx, req)
		}))
	healthv1.RegisterHealthServer(gs, health.NewServer())
	// Thousands of connections would leave as many ports waiting.
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- gs.Serve(listener) }()
	t.Cleanup(func() {
		gs.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "unix:" + path
}

// call makes one RPC over a connection of its own.
func call(ctx context.Context, p *pod, addr string) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(p.tls())))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err
}

// Two pods of two clusters call each other the whole time while the certificates
// of both are replaced a hundred times, and so is the CA of a cluster: no call
// fails, and each new certificate comes into use.
func TestWorkloadsThroughRotations(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	a := testAuthority(t, "acme")
	client, server := newPodWith(t, a, "east", "client"), newPodWith(t, a, "west", "echo")
	addr := answers(t, server, "spiffe://acme.local/ns/demo/sa/client")

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var calls, torn atomic.Int64
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := call(ctx, client, addr); err != nil {
				t.Error(err)
				return
			}
			calls.Add(1)
		}
	})
	// A reader with no care at all reads again and has a pair.
	wg.Go(func() {
		for failures := 0; ; {
			select {
			case <-stop:
				return
			default:
			}
			_, err := tls.LoadX509KeyPair(filepath.Join(client.dir, "tls.crt"), filepath.Join(client.dir, "tls.key"))
			if err == nil {
				failures = 0
				continue
			}
			torn.Add(1)
			if failures++; failures > 1000 {
				t.Errorf("no pair in %d readings: %v", failures, err)
				return
			}
		}
	})
	for i := range 100 {
		if i == 50 {
			a.mu.Lock()
			delete(a.clusters, "east")
			a.mu.Unlock()
			if err := os.Remove(filepath.Join(a.dir, clustersDir, "east.crt")); err != nil {
				t.Fatal(err)
			}
		}
		for p, of := range map[*pod][2]string{client: {"east", "client"}, server: {"west", "echo"}} {
			b := workloadBundle(t, a, of[0], of[1], time.Now())
			if err := WriteWorkload(p.dir, b); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the new certificate is in use", func() bool {
				km, err := p.provider.KeyMaterial(ctx)
				return err == nil && bytes.Equal(km.Certs[0].Certificate[0], b.Chain[0])
			})
		}
	}
	eventually(t, "calls were made", func() bool { return calls.Load() > 10 || t.Failed() })
	close(stop)
	wg.Wait()
	t.Logf("%d calls, %d torn readings", calls.Load(), torn.Load())

	// Another mesh's workload of the same name is nobody here.
	stranger := newPodWith(t, testAuthority(t, "acme"), "east", "client")
	if err := call(ctx, stranger, addr); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a stranger: %v", err)
	}
	if err := call(ctx, server, addr); err == nil || !strings.Contains(err.Error(), "the caller is spiffe://acme.local/ns/demo/sa/echo") {
		t.Errorf("another account: %v", err)
	}
}

func newPodWith(t *testing.T, a *Authority, cluster, account string) *pod {
	t.Helper()
	dir := podDir(t)
	if err := WriteWorkload(dir, workloadBundle(t, a, cluster, account, time.Now())); err != nil {
		t.Fatal(err)
	}
	return newPod(t, dir)
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("never: %s", what)
		}
	}
}
