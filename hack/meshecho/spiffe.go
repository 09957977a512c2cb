package main

import (
	"context"
	"crypto/x509"
	"net/url"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// spiffeID returns a certificate's, or nil. An X.509-SVID has exactly one URI
// (SPIFFE X.509-SVID, section 2).
func spiffeID(c *x509.Certificate) *url.URL {
	if c == nil || len(c.URIs) != 1 || c.URIs[0].Scheme != "spiffe" {
		return nil
	}
	return c.URIs[0]
}

// proven returns the SPIFFE ID that the other side of a connection has proved and
// the server name that the client sent; both are empty in plaintext.
func proven(p *peer.Peer) (id, serverName string) {
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", ""
	}
	if cs := info.State.PeerCertificates; len(cs) > 0 {
		if u := spiffeID(cs[0]); u != nil {
			id = u.String()
		}
	}
	return id, info.State.ServerName
}

func peerOf(ctx context.Context) *peer.Peer {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return &peer.Peer{}
	}
	return p
}
