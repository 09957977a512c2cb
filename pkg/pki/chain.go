package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// issuerOrganization is the O of every certificate that is made here. With an OU
// it marks the CA of the cluster that the OU names.
const issuerOrganization = "flatmesh"

// clusterOf returns the cluster whose CA a certificate is. The name stands in
// the subject because the SPIFFE ID of a CA may have no path (X509-SVID, 4.1).
func clusterOf(ca *x509.Certificate) (string, bool) {
	s := ca.Subject
	if !slices.Equal(s.Organization, []string{issuerOrganization}) || len(s.OrganizationalUnit) == 0 {
		return "", false
	}
	// One with several is none of ours; whatever it is, it speaks for no cluster.
	if len(s.OrganizationalUnit) > 1 {
		return "", true
	}
	return s.OrganizationalUnit[0], true
}

// statedDomain returns the trust domain that a CA's certificate names for
// itself: a SPIFFE ID with no path (X509-SVID, 4.1). Those that are made here
// do; a root that the user brought need not, and then any mesh may stand on it.
func statedDomain(ca *x509.Certificate) (spiffeid.TrustDomain, bool) {
	if len(ca.URIs) != 1 {
		return spiffeid.TrustDomain{}, false
	}
	id, err := spiffeid.FromURI(ca.URIs[0])
	if err != nil || id.Path() != "" {
		return spiffeid.TrustDomain{}, false
	}
	return id.TrustDomain(), true
}

// checkDomain refuses a CA that names another trust domain.
func checkDomain(td spiffeid.TrustDomain, ca *x509.Certificate) error {
	if !ca.IsCA {
		return errors.New("not the CA of a mesh")
	}
	if of, ok := statedDomain(ca); ok && of != td {
		return fmt.Errorf("it is %w: it is of %q, not %q", ErrOtherMesh, meshOf(of), meshOf(td))
	}
	return nil
}

// domainIn returns the trust domain of a verified chain, leaf first: the one that
// its root names, else the leaf's own.
func domainIn(chain []*x509.Certificate) (spiffeid.TrustDomain, error) {
	root := chain[len(chain)-1]
	if !root.IsCA {
		return spiffeid.TrustDomain{}, errors.New("not the CA of a mesh")
	}
	if td, ok := statedDomain(root); ok {
		return td, nil
	}
	if len(chain[0].URIs) != 1 {
		return spiffeid.TrustDomain{}, fmt.Errorf("certificate has %d URIs, want one SPIFFE ID", len(chain[0].URIs))
	}
	id, err := spiffeid.FromURI(chain[0].URIs[0])
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("identity %q: %w", chain[0].URIs[0], err)
	}
	return id.TrustDomain(), nil
}

// identityIn returns whose certificate heads a verified chain (leaf first, root
// last), and checks that every CA in it may speak for that identity. A cluster's
// CA may for the agents and gateways of that cluster and for workloads: whoever
// steals it is the control plane of nobody and the agent of no other cluster.
func identityIn(td spiffeid.TrustDomain, chain []*x509.Certificate) (Identity, error) {
	id, err := identityOf(td, chain[0])
	if err != nil {
		return Identity{}, err
	}
	for _, ca := range chain[1:] {
		if err := checkDomain(td, ca); err != nil {
			return Identity{}, fmt.Errorf("the CA %q above the certificate of %v: %w", ca.Subject, id, err)
		}
		if cluster, ok := clusterOf(ca); ok && !id.within(cluster) {
			return Identity{}, fmt.Errorf("the certificate of %v was %w, %q, which may not speak for it", id, ErrOtherCluster, cluster)
		}
	}
	return id, nil
}

// within reports whether a cluster's CA may issue for the identity.
func (id Identity) within(cluster string) bool {
	switch id.Role {
	case Agent:
		return id.Node.Cluster == cluster
	case Gateway:
		return id.Cluster == cluster
	case Workload:
		return cluster != ""
	case ControlPlane:
		return false
	default:
		return false
	}
}

// isRoot reports whether a certificate is a root: a CA that signed itself.
func isRoot(cert *x509.Certificate) bool {
	return cert.IsCA && bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil
}
