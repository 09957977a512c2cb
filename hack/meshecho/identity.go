package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/tls/certprovider"
	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

// identity is a workload's certificate, kept up to date from its files by the
// provider that gRPC's own xDS client uses for them.
type identity struct {
	dir      string
	provider certprovider.Provider
}

// openIdentity follows tls.crt, tls.key and ca.crt in a folder. They need not be
// there yet.
func openIdentity(dir string) (*identity, error) {
	p, err := pemfile.NewProvider(pemfile.Options{
		CertFile:        filepath.Join(dir, "tls.crt"),
		KeyFile:         filepath.Join(dir, "tls.key"),
		RootFile:        filepath.Join(dir, "ca.crt"),
		RefreshDuration: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("follow the certificate in %s: %w", dir, err)
	}
	return &identity{dir, p}, nil
}

func (id *identity) close() { id.provider.Close() }

// await waits until there is a certificate.
func (id *identity) await(ctx context.Context) error {
	if _, err := id.provider.KeyMaterial(ctx); err != nil {
		return fmt.Errorf("wait for a certificate in %s: %w", id.dir, err)
	}
	return nil
}

// server requires a certificate of the same trust domain from each client.
func (id *identity) server() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			km, err := id.provider.KeyMaterial(h.Context())
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS12,
				NextProtos:   []string{"h2"},
				Certificates: km.Certs,
				ClientCAs:    km.Roots,
				ClientAuth:   tls.RequireAndVerifyClientCert,
				// A resumed session would outlive its certificate.
				SessionTicketsDisabled: true,
				VerifyConnection:       func(cs tls.ConnectionState) error { return sameDomain(km, cs) },
			}, nil
		},
	})
}

// client shows the certificate and requires one of the same trust domain. The
// server is whoever is found at the address, so no name is compared; serverName
// is only sent.
func (id *identity) client(serverName string) credentials.TransportCredentials {
	return clientCredentials{credentials.NewTLS(nil), id, serverName}
}

type clientCredentials struct {
	credentials.TransportCredentials
	id         *identity
	serverName string
}

// ClientHandshake takes the certificate of the moment.
func (c clientCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	km, err := c.id.provider.KeyMaterial(ctx)
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		Certificates:       km.Certs,
		InsecureSkipVerify: true, // VerifyConnection does it, without a name
		VerifyConnection: func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: km.Roots, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
				return err
			}
			return sameDomain(km, cs)
		},
	}).ClientHandshake(ctx, cmp.Or(c.serverName, authority), conn) // what it sends is its second argument
}

// Clone implements credentials.TransportCredentials.
func (c clientCredentials) Clone() credentials.TransportCredentials { return c }

// sameDomain checks that the other side's SPIFFE ID is of our trust domain.
func sameDomain(km *certprovider.KeyMaterial, cs tls.ConnectionState) error {
	own, other := spiffeID(km.Certs[0].Leaf), spiffeID(cs.PeerCertificates[0])
	if own == nil || other == nil {
		return errors.New("a certificate has no SPIFFE ID")
	}
	if own.Host != other.Host {
		return fmt.Errorf("%v is not of trust domain %s", other, own.Host)
	}
	return nil
}
