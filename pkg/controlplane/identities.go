package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki"
)

// ownTTL is how long the control plane's own certificate lives; half of it later
// there is a new one.
const ownTTL = 24 * time.Hour

// identities says who callers are and issues certificates, by the mesh CA.
type identities struct {
	authority  *pki.Authority
	challenger *pki.Challenger
	ttl        time.Duration
	now        func() time.Time
	own        serverCertificate
	// issued is told of each certificate before it is handed out; nil: nobody is.
	issued func(node mesh.NodeID, cert string) error
}

var _ peering.Authority = (*identities)(nil)

func newIdentities(a *pki.Authority, o Options) (*identities, error) {
	c, err := pki.NewChallenger()
	if err != nil {
		return nil, err
	}
	return &identities{authority: a, challenger: c, ttl: o.CertificateTTL, now: time.Now}, nil
}

// Challenge implements peering.Authority.
func (i *identities) Challenge() (serverKey [32]byte, cookie []byte, err error) {
	serverKey, cookie = i.challenger.Challenge(i.now())
	return serverKey, cookie, nil
}

// VerifyProof implements peering.Authority.
func (i *identities) VerifyProof(key mesh.PublicKey, cookie, mac []byte, node mesh.NodeID, subject []byte) error {
	return i.challenger.Verify(key, cookie, mac, node, subject, i.now())
}

// VerifyToken implements peering.Authority.
func (i *identities) VerifyToken(token string) (cluster, node string, err error) {
	c, err := i.authority.VerifyToken(token, i.now())
	return c.Cluster, c.Node, err
}

// Issue implements peering.Authority.
func (i *identities) Issue(node mesh.NodeID, csr []byte) (chain, roots [][]byte, err error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, nil, err
	}
	if chain, err = i.authority.Issue(pki.AgentOf(node), pub, i.now(), i.ttl); err != nil {
		return nil, nil, err
	}
	if i.issued != nil {
		if err := i.issued(node, fingerprint(chain[0])); err != nil {
			return nil, nil, err
		}
	}
	return chain, i.authority.Roots(), nil
}

// VerifyGatewayToken implements peering.Authority.
func (i *identities) VerifyGatewayToken(token string) (cluster, name string, err error) {
	c, err := i.authority.VerifyGatewayToken(token, i.now())
	return c.Cluster, c.Gateway, err
}

// IssueGateway implements peering.Authority.
func (i *identities) IssueGateway(cluster, name string, csr []byte) (chain, roots [][]byte, err error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, nil, err
	}
	chain, err = i.authority.Issue(pki.GatewayOf(cluster, name), pub, i.now(), i.ttl)
	return chain, i.authority.Roots(), err
}

// IssueWorkload implements peering.Authority.
func (i *identities) IssueWorkload(cluster, namespace, serviceAccount string, csr []byte) (chain, roots [][]byte, err error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, nil, err
	}
	chain, err = i.authority.IssueWorkload(cluster, namespace, serviceAccount, pub, i.now(), i.ttl)
	return chain, i.authority.Roots(), err
}

// GatewayCaller implements peering.Authority.
func (i *identities) GatewayCaller(ctx context.Context) (cluster, name string, ok bool) {
	cs, err := connectionState(ctx)
	if err != nil {
		return "", "", false
	}
	id, shown, err := pki.PeerIdentity(cs, i.now())
	return id.Cluster, id.Name, err == nil && shown && id.Role == pki.Gateway
}

// Caller implements peering.Authority.
func (i *identities) Caller(ctx context.Context) (mesh.NodeID, error) {
	cs, err := connectionState(ctx)
	if err != nil {
		return mesh.NodeID{}, err
	}
	id, shown, err := pki.PeerIdentity(cs, i.now())
	switch {
	case err != nil:
		return mesh.NodeID{}, status.Error(codes.Unauthenticated, err.Error())
	case !shown:
		return mesh.NodeID{}, status.Error(codes.Unauthenticated, "this needs an agent's certificate: join first")
	case id.Role != pki.Agent:
		return mesh.NodeID{}, status.Errorf(codes.PermissionDenied, "%v is not an agent", id)
	}
	return id.Node, nil
}

// cert returns the fingerprint of the caller's certificate, empty without one.
func (i *identities) cert(ctx context.Context) string {
	cs, err := connectionState(ctx)
	if err != nil || len(cs.PeerCertificates) == 0 {
		return ""
	}
	return fingerprint(cs.PeerCertificates[0].Raw)
}

// expiry returns when the caller's certificate ends.
func (i *identities) expiry(ctx context.Context) (time.Time, error) {
	cs, err := connectionState(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if len(cs.PeerCertificates) == 0 {
		return time.Time{}, status.Error(codes.Unauthenticated, "no certificate")
	}
	return cs.PeerCertificates[0].NotAfter, nil
}

func connectionState(ctx context.Context) (tls.ConnectionState, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return tls.ConnectionState{}, status.Error(codes.Internal, "a call without a peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return tls.ConnectionState{}, status.Error(codes.Unauthenticated, "this needs TLS")
	}
	return info.State, nil
}

// serverCertificate returns the control plane's own, renewing it when half of
// its life is over.
func (i *identities) serverCertificate() (*tls.Certificate, error) {
	i.own.mu.Lock()
	defer i.own.mu.Unlock()
	now := i.now()
	// A clock that was set back leaves next far ahead; the certificate is good
	// until then all the same.
	if i.own.cert != nil && now.Before(i.own.next) {
		return i.own.cert, nil
	}
	cert, err := i.authority.ControlPlaneCertificate(now, ownTTL)
	if err != nil {
		return nil, errors.Join(errors.New("issue the control plane's own certificate"), err)
	}
	i.own.cert, i.own.next = cert, now.Add(ownTTL/2)
	return cert, nil
}
