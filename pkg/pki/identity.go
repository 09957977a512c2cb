package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Role is what the holder of a certificate is.
type Role uint8

// The roles.
const (
	ControlPlane Role = iota + 1
	Agent
)

// Identity is who the holder of a certificate is, inside one mesh.
type Identity struct {
	Role Role
	// Node is set for agents alone.
	Node mesh.NodeID
}

// AgentOf returns the identity of the agent on a node.
func AgentOf(node mesh.NodeID) Identity { return Identity{Role: Agent, Node: node} }

// String reads "the control plane" or "the agent of east/n1".
func (id Identity) String() string {
	switch id.Role {
	case ControlPlane:
		return "the control plane"
	case Agent:
		return "the agent of " + id.Node.String()
	default:
		return "nobody"
	}
}

// Paths of SPIFFE IDs; an agent's is followed by "/CLUSTER/NODE".
const (
	controlPlanePath = "/flatmesh/controlplane"
	agentPath        = "/flatmesh/agent/"
)

// TrustDomain returns the SPIFFE trust domain of a mesh, "MESH.local". The name
// must be a DNS label (RFC 1123), so that every mesh has a domain of its own.
func TrustDomain(meshName string) (spiffeid.TrustDomain, error) {
	if mesh.ValidateClusterName(meshName) != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("mesh name %q: want lower-case letters, digits and dashes, at most 63, beginning and ending with a letter or digit", meshName)
	}
	return spiffeid.TrustDomainFromString(meshName + ".local")
}

// meshOf is the reverse of TrustDomain, for messages.
func meshOf(td spiffeid.TrustDomain) string { return strings.TrimSuffix(td.Name(), ".local") }

// URI returns the identity as a SPIFFE ID of the trust domain.
func (id Identity) URI(td spiffeid.TrustDomain) (*url.URL, error) {
	path := controlPlanePath
	switch id.Role {
	case ControlPlane:
		if id.Node != (mesh.NodeID{}) {
			return nil, fmt.Errorf("the control plane's identity has no node, got %v", id.Node)
		}
	case Agent:
		if err := id.Node.Validate(); err != nil {
			return nil, fmt.Errorf("identity of an agent: %w", err)
		}
		path = agentPath + id.Node.String()
	default:
		return nil, fmt.Errorf("identity has unknown role %d", id.Role)
	}
	s, err := spiffeid.FromPath(td, path)
	if err != nil {
		return nil, fmt.Errorf("identity of %v: %w", id, err)
	}
	return s.URL(), nil
}

// ParseIdentity reads a SPIFFE ID of the trust domain. An ID of another domain
// is ErrOtherMesh.
func ParseIdentity(td spiffeid.TrustDomain, uri *url.URL) (Identity, error) {
	s, err := spiffeid.FromURI(uri)
	if err != nil {
		return Identity{}, fmt.Errorf("identity %q: %w", uri, err)
	}
	if !s.MemberOf(td) {
		return Identity{}, fmt.Errorf("identity %q: %w: want %q", uri, ErrOtherMesh, meshOf(td))
	}
	if s.Path() == controlPlanePath {
		return Identity{Role: ControlPlane}, nil
	}
	name, ok := strings.CutPrefix(s.Path(), agentPath)
	if !ok {
		return Identity{}, fmt.Errorf("identity %q: neither an agent's nor the control plane's", uri)
	}
	node, err := mesh.ParseNodeID(name)
	if err != nil {
		return Identity{}, fmt.Errorf("identity %q: %w", uri, err)
	}
	return AgentOf(node), nil
}

// identityOf reads the one SPIFFE ID of a leaf certificate; X.509-SVID allows
// no second URI and no CA.
func identityOf(td spiffeid.TrustDomain, leaf *x509.Certificate) (Identity, error) {
	if leaf.IsCA {
		return Identity{}, errors.New("a CA's certificate is nobody's identity")
	}
	if len(leaf.URIs) != 1 {
		return Identity{}, fmt.Errorf("certificate has %d URIs, want one SPIFFE ID", len(leaf.URIs))
	}
	return ParseIdentity(td, leaf.URIs[0])
}
