package build

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// The domains of services: Kubernetes' own, and that of the Multi-Cluster
// Services API (KEP-1645).
const (
	clusterDomain    = ".svc.cluster.local"
	clustersetDomain = ".svc.clusterset.local"
)

// maxHost is the longest host name of a service: two DNS labels and the longer
// domain.
const maxHost = 63 + 1 + 63 + len(clustersetDomain)

// Host returns the one host name by which resources name a service: under
// ScopeSet its clusterset.local name, else its cluster.local name.
func Host(s mesh.ServiceName, scope mesh.Scope) string {
	domain := clusterDomain
	if scope == mesh.ScopeSet {
		domain = clustersetDomain
	}
	return s.Name + "." + s.Namespace + domain
}

// Aliases returns all host names by which clients may ask for a service of a
// scope, shortest first.
func Aliases(s mesh.ServiceName, scope mesh.Scope) []string {
	short := s.Name + "." + s.Namespace
	local := []string{short, short + ".svc", short + clusterDomain}
	switch scope {
	case mesh.ScopeSet:
		return []string{short + clustersetDomain}
	case mesh.ScopeCluster:
		return local
	default:
		return append(local, short+clustersetDomain)
	}
}

// ParseHost reads a host name of a service in any of its forms and any case,
// with or without a dot at its end. With mcs, as under --export=mcs, the domain
// says the scope; without, all forms name the same service.
func ParseHost(host string, mcs bool) (mesh.ServiceName, mesh.Scope, error) {
	if len(host) > maxHost+1 {
		return mesh.ServiceName{}, 0, fmt.Errorf("host name of %d characters: a service's has at most %d", len(host), maxHost)
	}
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	scope := mesh.ScopeMesh
	if mcs {
		scope = mesh.ScopeCluster
	}
	short, isCluster := strings.CutSuffix(h, clusterDomain)
	if !isCluster {
		var isSet bool
		if short, isSet = strings.CutSuffix(h, clustersetDomain); isSet && mcs {
			scope = mesh.ScopeSet
		} else if !isSet && strings.Count(h, ".") == 2 {
			// With one dot "svc" is the namespace.
			short = strings.TrimSuffix(h, ".svc")
		}
	}
	name, namespace, _ := strings.Cut(short, ".")
	s, err := mesh.ParseServiceName(namespace + "/" + name)
	if err != nil {
		return mesh.ServiceName{}, 0, fmt.Errorf("host name %q: want NAME.NAMESPACE, alone or followed by .svc, %s or %s", host, clusterDomain, clustersetDomain)
	}
	return s, scope, nil
}

// ListenerNames returns the names of listeners by which gRPC clients may ask for
// a port of a service: what follows "xds:///" in their target.
func ListenerNames(s mesh.ServiceName, port uint16, scope mesh.Scope) []string {
	names := Aliases(s, scope)
	for i := range names {
		names[i] += ":" + strconv.Itoa(int(port))
	}
	return names
}

// ParseListenerName reads what a gRPC client asks for: HOST or HOST:PORT, with a
// host name as ParseHost reads it. The port is 0 where none is named, which
// stands for the service's only port.
func ParseListenerName(target string, mcs bool) (s mesh.ServiceName, port uint16, scope mesh.Scope, err error) {
	host, number, found := strings.Cut(target, ":")
	if found {
		if port, err = parsePort(number); err != nil {
			return mesh.ServiceName{}, 0, 0, fmt.Errorf("target %.300q: %w", target, err)
		}
	}
	s, scope, err = ParseHost(host, mcs)
	if err != nil {
		return mesh.ServiceName{}, 0, 0, fmt.Errorf("target: %w", err)
	}
	return s, port, scope, nil
}

// ClusterName returns the name of a service port's cluster, assignment and gRPC
// routes, in Istio's form: "outbound|80||echo.demo.svc.cluster.local".
func ClusterName(port uint16, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "||" + host
}

// ParseClusterName reads exactly what ClusterName returns.
func ParseClusterName(name string) (port uint16, host string, err error) {
	port, host, err = parseName(name, "outbound|", "||")
	if err == nil && ClusterName(port, host) != name {
		err = errNotCanonical
	}
	if err != nil {
		return 0, "", fmt.Errorf("cluster name %.300q: %w", name, err)
	}
	return port, host, nil
}

// SNI returns the TLS server name by which a gateway finds a service port, in
// Istio's form: "outbound_.80_._.echo.demo.svc.cluster.local". A gateway's own
// cluster and assignment have the same name.
func SNI(port uint16, host string) string {
	return "outbound_." + strconv.Itoa(int(port)) + "_._." + host
}

// ParseSNI reads what SNI returns. Server names have no case (RFC 6066), so any
// is accepted, and the host is in lower case.
func ParseSNI(sni string) (port uint16, host string, err error) {
	lower := strings.ToLower(sni)
	port, host, err = parseName(lower, "outbound_.", "_._.")
	if err == nil && SNI(port, host) != lower {
		err = errNotCanonical
	}
	if err != nil {
		return 0, "", fmt.Errorf("server name %.300q: %w", sni, err)
	}
	return port, host, nil
}

// errNotCanonical: one service port has one name, or what is kept by name would
// be kept twice.
const errNotCanonical = nameError("not in the one form that names have")

type nameError string

func (e nameError) Error() string { return string(e) }

func parseName(name, prefix, separator string) (port uint16, host string, err error) {
	rest, ok := strings.CutPrefix(name, prefix)
	number, host, cut := strings.Cut(rest, separator)
	if !ok || !cut {
		return 0, "", fmt.Errorf("want %sPORT%sHOST", prefix, separator)
	}
	if port, err = parsePort(number); err != nil {
		return 0, "", err
	}
	s, scope, err := ParseHost(host, true)
	if err != nil {
		return 0, "", err
	}
	if Host(s, scope) != host {
		return 0, "", errNotCanonical
	}
	return port, host, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '0' {
		return 0, fmt.Errorf("port %.20q: want a number from 1 to 65535 without zeros before it", s)
	}
	return uint16(n), nil
}
