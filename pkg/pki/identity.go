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
	Gateway
	Workload
)

// Identity is who the holder of a certificate is, inside one mesh.
type Identity struct {
	Role Role
	// Node is set for agents alone.
	Node mesh.NodeID
	// Cluster and Name are set for gateways alone.
	Cluster, Name string
	// Namespace and ServiceAccount are set for workloads alone. They have no
	// cluster: a service account is the same in all clusters, as in Istio.
	Namespace, ServiceAccount string
}

// AgentOf returns the identity of the agent on a node.
func AgentOf(node mesh.NodeID) Identity { return Identity{Role: Agent, Node: node} }

// GatewayOf returns the identity of a cluster's gateway.
func GatewayOf(cluster, name string) Identity {
	return Identity{Role: Gateway, Cluster: cluster, Name: name}
}

// WorkloadOf returns the identity of the pods of a service account.
func WorkloadOf(namespace, serviceAccount string) Identity {
	return Identity{Role: Workload, Namespace: namespace, ServiceAccount: serviceAccount}
}

// String reads "the control plane", "the agent of east/n1", "the gateway
// east/gw" or "the service account demo/echo".
func (id Identity) String() string {
	switch id.Role {
	case ControlPlane:
		return "the control plane"
	case Agent:
		return "the agent of " + id.Node.String()
	case Gateway:
		return "the gateway " + id.Cluster + "/" + id.Name
	case Workload:
		return "the service account " + id.Namespace + "/" + id.ServiceAccount
	default:
		return "nobody"
	}
}

// Validate reports whether what the role has is there, with names that
// Kubernetes would accept, and nothing else.
func (id Identity) Validate() error {
	var err error
	bare := Identity{Role: id.Role}
	switch id.Role {
	case ControlPlane:
	case Agent:
		bare.Node, err = id.Node, id.Node.Validate()
	case Gateway:
		bare.Cluster, bare.Name = id.Cluster, id.Name
		err = validateGateway(id.Cluster, id.Name)
	case Workload:
		bare.Namespace, bare.ServiceAccount = id.Namespace, id.ServiceAccount
		err = validateWorkload(id.Namespace, id.ServiceAccount)
	default:
		return fmt.Errorf("identity has unknown role %d", id.Role)
	}
	if err != nil {
		return fmt.Errorf("identity of %v: %w", id, err)
	}
	if id != bare {
		return fmt.Errorf("the identity of %v holds names that its role has not", id)
	}
	return nil
}

func validateGateway(cluster, name string) error {
	if err := mesh.ValidateClusterName(cluster); err != nil {
		return err
	}
	return validateSubdomain("gateway", name)
}

// validateWorkload accepts what Kubernetes does: a namespace is a DNS label, a
// service account a DNS subdomain (RFC 1123).
func validateWorkload(namespace, serviceAccount string) error {
	if mesh.ValidateClusterName(namespace) != nil { // the same rule
		return fmt.Errorf("namespace %q: want lower-case letters, digits and dashes, at most 63, beginning and ending with a letter or digit", namespace)
	}
	return validateSubdomain("service account", serviceAccount)
}

func validateSubdomain(what, name string) error {
	if mesh.ValidateNodeName(name) != nil { // the same rule
		return fmt.Errorf("%s name %q: want a lower-case DNS name of at most 253 characters", what, name)
	}
	return nil
}

// Paths of SPIFFE IDs; an agent's is followed by "/CLUSTER/NODE", a gateway's by
// "/CLUSTER/NAME". A workload's, "/ns/NAMESPACE/sa/SERVICEACCOUNT", is Istio's.
const (
	controlPlanePath = "/flatmesh/controlplane"
	agentPath        = "/flatmesh/agent/"
	gatewayPath      = "/flatmesh/gateway/"
	namespacePath    = "/ns/"
	accountPath      = "/sa/"
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
	if err := id.Validate(); err != nil {
		return nil, err
	}
	var path string
	switch id.Role {
	case ControlPlane:
		path = controlPlanePath
	case Agent:
		path = agentPath + id.Node.String()
	case Gateway:
		path = gatewayPath + id.Cluster + "/" + id.Name
	case Workload:
		path = namespacePath + id.Namespace + accountPath + id.ServiceAccount
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
	id, ok := identityAt(s.Path())
	if !ok {
		return Identity{}, fmt.Errorf("identity %q: of none of the forms that this mesh gives to its control plane, agents, gateways and workloads", uri)
	}
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("identity %q: %w", uri, err)
	}
	return id, nil
}

// identityAt reads a path; the names in it are not looked at.
func identityAt(path string) (Identity, bool) {
	if path == controlPlanePath {
		return Identity{Role: ControlPlane}, true
	}
	if names, ok := strings.CutPrefix(path, agentPath); ok {
		cluster, node, ok := strings.Cut(names, "/")
		return AgentOf(mesh.NodeID{Cluster: cluster, Name: node}), ok
	}
	if names, ok := strings.CutPrefix(path, gatewayPath); ok {
		cluster, name, ok := strings.Cut(names, "/")
		return GatewayOf(cluster, name), ok
	}
	if names, ok := strings.CutPrefix(path, namespacePath); ok {
		namespace, account, ok := strings.Cut(names, accountPath)
		return WorkloadOf(namespace, account), ok
	}
	return Identity{}, false
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
