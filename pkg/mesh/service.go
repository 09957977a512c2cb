package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ServiceName names a service. By namespace sameness it is the same service in
// every cluster that has one of that name (KEP-1645, and Istio's rule).
type ServiceName struct {
	Namespace string
	Name      string
}

// ParseServiceName reads the text form, "namespace/name".
func ParseServiceName(s string) (ServiceName, error) {
	ns, name, ok := strings.Cut(s, "/")
	n := ServiceName{Namespace: ns, Name: name}
	if !ok || !label.MatchString(ns) || !label.MatchString(name) {
		return ServiceName{}, fmt.Errorf("service %q: want NAMESPACE/NAME", s)
	}
	return n, nil
}

// String returns "namespace/name".
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// Compare orders by namespace, then by name.
func (n ServiceName) Compare(o ServiceName) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// MarshalText makes a ServiceName usable as a JSON value and key.
func (n ServiceName) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (n *ServiceName) UnmarshalText(b []byte) (err error) {
	*n, err = ParseServiceName(string(b))
	return err
}

// Protocol is a port's transport protocol, as Kubernetes spells it.
type Protocol string

// The protocols of Kubernetes.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Preference says which endpoints a client takes first where several are ready.
type Preference uint8

// The preferences; the default is all endpoints alike.
const (
	PreferNone Preference = iota
	// PreferCluster: those of the client's own Cluster.
	PreferCluster
	// PreferZone: those of the client's own region and zone.
	PreferZone
)

var preferences = [...]string{PreferNone: "none", PreferCluster: "cluster", PreferZone: "zone"}

// String returns "none", "cluster" or "zone".
func (p Preference) String() string {
	if int(p) < len(preferences) {
		return preferences[p]
	}
	return fmt.Sprintf("Preference(%d)", p)
}

// MarshalText writes the name.
func (p Preference) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Preference) UnmarshalText(b []byte) error {
	i := slices.Index(preferences[:], string(b))
	if i < 0 {
		return fmt.Errorf("preference %q: want none, cluster or zone", b)
	}
	*p = Preference(i)
	return nil
}

// Service is one service of the mesh: what each cluster has of it. It is
// immutable and shared between snapshots.
type Service struct {
	Name ServiceName
	// Parts is sorted by cluster; it holds each cluster at most once.
	Parts []ServicePart
}

// ServicePart is what one cluster has of a service.
type ServicePart struct {
	Cluster string
	// Created is when the cluster's Service was made, in Unix seconds; 0 where it
	// is not known. Of clusters that define one port differently the oldest
	// Service decides for clients that have none of their own (KEP-1645).
	Created int64
	// Exported: clients of other clusters may use it.
	Exported bool
	// ClusterIPs are its virtual addresses inside the cluster; none where it is
	// headless.
	ClusterIPs []netip.Addr
	Prefer     Preference
	// Retry asks for a retry policy on UNAVAILABLE.
	Retry bool
	// Ports is sorted by number and protocol.
	Ports []ServicePort
}

// ServicePort is one port of a service in one cluster, with what is behind it.
type ServicePort struct {
	Number      uint16
	Name        string
	Protocol    Protocol
	AppProtocol string
	// TLS: its pods speak the mesh's mTLS.
	TLS bool
	// Backends is sorted by address; it holds each address at most once, and only
	// those that Kubernetes would send to: ready ones, or all where the Service
	// publishes those that are not ready, and terminating ones that still serve.
	Backends []Backend
}

// Backend is where one pod serves a port of a service.
type Backend struct {
	Addr netip.AddrPort
	// Node is the name of the pod's node in its cluster; empty where the slice
	// names none.
	Node string
	// Zone is what the slice says; the node's own label comes first.
	Zone string
	// Pod and ServiceAccount are empty where the source knows of no such pod.
	Pod            string
	ServiceAccount string
	// Terminating: it still serves, and is used only where no other is ready
	// (KEP-1669).
	Terminating bool
}

// Part returns what a cluster has of the service.
func (s *Service) Part(cluster string) (*ServicePart, bool) {
	i, ok := slices.BinarySearchFunc(s.Parts, cluster, func(p ServicePart, c string) int { return strings.Compare(p.Cluster, c) })
	if !ok {
		return nil, false
	}
	return &s.Parts[i], true
}

// Port returns the part's port of a number. Where a number has several
// protocols TCP comes first: xDS resources are named by the number alone.
func (p *ServicePart) Port(number uint16) (*ServicePort, bool) {
	var found *ServicePort
	for i := range p.Ports {
		if q := &p.Ports[i]; q.Number == number && (found == nil || q.Protocol == TCP) {
			found = q
		}
	}
	return found, found != nil
}

// Scope says which parts of a service a host name stands for.
type Scope uint8

// The scopes.
const (
	// ScopeMesh is the client's own cluster's part and what others export.
	ScopeMesh Scope = iota
	// ScopeCluster is the own cluster's part alone: cluster.local under the MCS
	// API.
	ScopeCluster
	// ScopeSet is what is exported, the own cluster's part too only where it is:
	// clusterset.local under the MCS API.
	ScopeSet
)

// In reports whether a client in a cluster sees the part under the scope.
func (s Scope) In(cluster string, p *ServicePart) bool {
	switch s {
	case ScopeCluster:
		return p.Cluster == cluster
	case ScopeSet:
		return p.Exported
	case ScopeMesh:
		return p.Exported || p.Cluster == cluster
	default:
		return false
	}
}

// Definition returns the part that decides, for clients in a cluster, what the
// service is: the own cluster's, or else the oldest that is exported. With a
// port number, of those that have the port; with 0, of all. It is nil where
// there is none: the service does not exist for them.
func (s *Service) Definition(cluster string, scope Scope, number uint16) *ServicePart {
	var best *ServicePart
	for i := range s.Parts {
		p := &s.Parts[i]
		if !scope.In(cluster, p) {
			continue
		}
		if number != 0 {
			if _, ok := p.Port(number); !ok {
				continue
			}
		}
		switch {
		case p.Cluster == cluster:
			return p
		case best == nil, p.Created < best.Created:
			best = p
		}
	}
	return best
}

// Agrees reports whether two clusters' definitions of a port can be served as
// one: a client uses one protocol, and TLS or not, for all of a port's
// endpoints.
func (p *ServicePort) Agrees(o *ServicePort) bool {
	return p.Protocol == o.Protocol && p.TLS == o.TLS
}
