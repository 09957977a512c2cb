package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// authority issues certificates with SPIFFE IDs.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	c := a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// workload returns the certificate of a service account's pods.
func (a *authority) workload(account string, names ...string) tls.Certificate {
	id := &url.URL{Scheme: "spiffe", Host: "test.local", Path: "/ns/demo/sa/" + account}
	return a.issue(&x509.Certificate{
		URIs: []*url.URL{id}, DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// greeter says who it is and who called.
type greeter struct {
	grpc_health_v1.UnimplementedHealthServer
	name string
}

func (s greeter) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	p, _ := peer.FromContext(ctx)
	caller := p.AuthInfo.(credentials.TLSInfo).SPIFFEID
	return &grpc_health_v1.HealthCheckResponse{}, grpc.SetHeader(ctx, metadata.Pairs("server", s.name, "caller", fmt.Sprint(caller)))
}

func grpcPod(t testing.TB, name string, creds credentials.TransportCredentials) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(creds))
	grpc_health_v1.RegisterHealthServer(s, greeter{name: name})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// Real gRPC with mutual TLS, end to end: client and pod see each other's
// certificates, connections spread over pods, and a service that is not there is
// refused for a reason that the client is told.
func TestGRPC(t *testing.T) {
	g := start(t, Options{})
	ca := newAuthority(t)
	serverCreds := credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{ca.workload("echo", sni)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool,
	})
	g.Set(sni, []netip.AddrPort{refusedPort(t), grpcPod(t, "pod-1", serverCreds), grpcPod(t, "pod-2", serverCreds), grpcPod(t, "pod-3", serverCreds)})

	call := func(name string) (server, caller string, err error) {
		conn, err := grpc.NewClient("passthrough:///"+g.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			ServerName: name, RootCAs: ca.pool, Certificates: []tls.Certificate{ca.workload("client")},
		})))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var header metadata.MD
		for range 10 {
			if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header)); err != nil {
				return "", "", err
			}
		}
		return header["server"][0], header["caller"][0], nil
	}
	seen := map[string]int{}
	for range 12 {
		server, caller, err := call(sni)
		if err != nil {
			t.Fatal(err)
		}
		if want := "spiffe://test.local/ns/demo/sa/client"; caller != want {
			t.Fatalf("the pod saw %s, want %s", caller, want)
		}
		seen[server]++
	}
	if len(seen) != 3 {
		t.Errorf("12 connections went to %v, want all 3 pods", seen)
	}
	if _, _, err := call("outbound_.80_._.none.demo.svc.cluster.local"); err == nil {
		t.Error("a service that is not exported answers")
	} else if g.refusals(UnknownSNI) == 0 {
		t.Errorf("not refused by the gateway, but: %v", err)
	} else {
		t.Log(err)
	}
}
