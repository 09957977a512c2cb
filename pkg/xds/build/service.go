package build

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Kind is a kind of client, told by what it asks for and by its node's metadata.
type Kind string

// The kinds of client.
const (
	// GRPC is a proxyless gRPC client.
	GRPC Kind = "grpc"
	// Envoy is one beside a workload, for what the workload calls.
	Envoy Kind = "envoy"
	// Gateway admits traffic into its own cluster: ours, or an Envoy.
	Gateway Kind = "gateway"
)

// ServicePort is what resources say of one port of a service, as the clients of
// one cluster have it.
type ServicePort struct {
	Service mesh.ServiceName
	Scope   mesh.Scope
	Port    uint16
	// Protocol is the transport's; AppProtocol is what the Service says of the
	// application's (KEP-1422), or empty.
	Protocol    mesh.Protocol
	AppProtocol string
	// TLS: its pods speak the mesh's mTLS.
	TLS bool
	// Retry asks for a retry policy on UNAVAILABLE.
	Retry bool
	// SANs are the SPIFFE IDs that its pods may show. Where there are none any
	// service account of the namespace may, in the trust domain.
	SANs        []string
	TrustDomain string
	// ClusterIPs are its virtual addresses in the clients' cluster.
	ClusterIPs []netip.Addr
}

// Host returns the host name by which resources name the service.
func (p ServicePort) Host() string { return Host(p.Service, p.Scope) }

// Name returns the name of the cluster and the assignment that clients of a kind
// have of the port.
func (p ServicePort) Name(kind Kind) string {
	if kind == Gateway {
		return SNI(p.Port, p.Host())
	}
	return ClusterName(p.Port, p.Host())
}

func (p ServicePort) hostPort() string { return p.Host() + ":" + strconv.Itoa(int(p.Port)) }

func (p ServicePort) compare(o ServicePort) int {
	return cmp.Or(p.Service.Compare(o.Service), cmp.Compare(p.Scope, o.Scope), cmp.Compare(p.Port, o.Port))
}

// application is what an Envoy does with a port's bytes.
type application uint8

const (
	opaque application = iota // pass them on
	http1                     // read requests and route by host name
	http2                     // the same, and speak HTTP/2 to the pods
)

// application reads appProtocol: the standard names of Kubernetes (KEP-3726) and
// IANA, and Istio's. What is TLS from the application itself is opaque.
func (p ServicePort) application() application {
	switch strings.ToLower(p.AppProtocol) {
	case "http", "http/1.1", "kubernetes.io/ws":
		return http1
	case "http2", "h2c", "grpc", "grpc-web", "kubernetes.io/h2c":
		return http2
	default:
		return opaque
	}
}
