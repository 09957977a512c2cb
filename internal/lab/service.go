package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// The TCP ports of every pod.
const (
	// PodPort answers HTTP.
	PodPort = 8080
	// GRPCPort answers gRPC, in plaintext or with the mesh's mTLS alone.
	GRPCPort = 50051
)

// DefaultNamespace is that of services and pods.
const DefaultNamespace = "demo"

// tlsAnnotation says whether a service's pods speak the mesh's mTLS. Without it
// ports of the application protocol grpc do.
const tlsAnnotation = "flatmesh.io/tls"

var tlsValues = map[string]bool{"true": true, "mesh": true, "false": false, "none": false}

// Service is a service of some of a lab's clusters, the same in each. Zero fields
// take their defaults.
type Service struct {
	Name string `json:"name"`
	// Namespace is that of its pods too. Default: DefaultNamespace.
	Namespace string `json:"namespace"`
	// Ports default to port 80 of the gRPC echo.
	Ports []ServicePort `json:"ports"`
	// Clusters have it; none stands for all.
	Clusters []string `json:"clusters,omitempty"`
	// Pods of each cluster are behind it: p1 is the first of each node, n2/p1 that
	// of node n2 alone. None stands for all.
	Pods []string `json:"pods,omitempty"`
	// Annotations are those of the Kubernetes object. Where "flatmesh.io/tls" does
	// not say otherwise, a port with the application protocol grpc has its pods
	// speak mTLS, and nothing else, on GRPCPort.
	Annotations map[string]string `json:"annotations,omitempty"`
	// ServiceAccount is that of its pods. Default: the name of the first service
	// that they are behind.
	ServiceAccount string `json:"serviceAccount,omitempty"`
}

// ServicePort is one port of a service.
type ServicePort struct {
	// Name and AppProtocol default to what TargetPort speaks.
	Name string `json:"name"`
	// Port is the service's, TargetPort that of the pods. Default: 80, and GRPCPort
	// or, where AppProtocol is "http", PodPort.
	Port        uint16 `json:"port"`
	TargetPort  uint16 `json:"targetPort"`
	AppProtocol string `json:"appProtocol"`
}

// complete fills in the defaults.
func (s Service) complete() Service {
	s.Namespace = cmp.Or(s.Namespace, DefaultNamespace)
	if len(s.Ports) == 0 {
		s.Ports = []ServicePort{{}}
	}
	s.Ports = slices.Clone(s.Ports)
	for i := range s.Ports {
		s.Ports[i] = s.Ports[i].complete()
	}
	return s
}

func (p ServicePort) complete() ServicePort {
	p.Port = cmp.Or(p.Port, 80)
	if p.TargetPort == 0 {
		p.TargetPort = GRPCPort
		if p.AppProtocol == "http" {
			p.TargetPort = PodPort
		}
	}
	speaks := ""
	switch p.TargetPort {
	case GRPCPort:
		speaks = "grpc"
	case PodPort:
		speaks = "http"
	}
	p.AppProtocol = cmp.Or(p.AppProtocol, speaks)
	p.Name = cmp.Or(p.Name, fmt.Sprintf("%s-%d", cmp.Or(speaks, "port"), p.Port))
	return p
}

// wants says what the service needs its pods to speak on GRPCPort: mTLS, or
// plaintext, or neither where no port leads there. Both is a problem.
func (s Service) wants() (mtls, plaintext bool) {
	for _, p := range s.Ports {
		if p.TargetPort != GRPCPort {
			continue
		}
		if tls, said := tlsValues[s.Annotations[tlsAnnotation]]; said && tls || !said && p.AppProtocol == "grpc" {
			mtls = true
		} else {
			plaintext = true
		}
	}
	return mtls, plaintext
}

func (s Service) id() mesh.ServiceName { return mesh.ServiceName{Namespace: s.Namespace, Name: s.Name} }

// in reports whether a cluster has the service.
func (s Service) in(cluster string) bool {
	return len(s.Clusters) == 0 || slices.Contains(s.Clusters, cluster)
}

// backedBy reports whether a pod is behind the service.
func (s Service) backedBy(p pod) bool {
	return s.in(p.node.cluster.Name) &&
		(len(s.Pods) == 0 || slices.Contains(s.Pods, p.link()) || slices.Contains(s.Pods, p.node.id().Name+"/"+p.link()))
}

var podSelector = regexp.MustCompile(`^(n[1-9][0-9]{0,3}/)?p[1-9][0-9]{0,2}$`)

func (s Service) problems() []problem {
	var ps []problem
	add := func(path, format string, args ...any) {
		ps = append(ps, problem{path, fmt.Errorf(format, args...)})
	}
	if _, err := mesh.ParseServiceName(s.id().String()); err != nil {
		add("name", "%w", err)
	}
	if s.Namespace == systemNamespace {
		add("namespace", "%q is for the gateways; take another", s.Namespace)
	}
	if s.ServiceAccount != "" && mesh.ValidateNodeName(s.ServiceAccount) != nil {
		add("serviceAccount", "%q: want lower-case letters, digits, dashes and dots", s.ServiceAccount)
	}
	for i, p := range s.Ports {
		at := fmt.Sprintf("ports[%d].", i)
		if p.Port == 0 || p.TargetPort == 0 {
			add(at+"port", "want a port and a targetPort from 1 to 65535")
		}
		for _, o := range s.Ports[:i] {
			if o.Port == p.Port {
				add(at+"port", "a second port %d", p.Port)
			}
			if o.Name == p.Name {
				add(at+"name", "a second port called %s", p.Name)
			}
		}
	}
	for i, sel := range s.Pods {
		if !podSelector.MatchString(sel) {
			add(fmt.Sprintf("pods[%d]", i), "%q: want p1 for the first pod of each node, or n2/p1 for that of n2 alone", sel)
		}
	}
	mtls, plaintext := s.wants()
	said, has := s.Annotations[tlsAnnotation]
	tls, known := tlsValues[said]
	switch elsewhere := slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.TargetPort != GRPCPort }); {
	case has && !known:
		add("annotations."+tlsAnnotation, `%q: want "true" or "false"`, said)
	case tls && elsewhere:
		add("annotations."+tlsAnnotation, "the pods speak mTLS on port %d alone: want that as the targetPort of every port", GRPCPort)
	case mtls && plaintext:
		add("ports", "the pods speak either mTLS or plaintext on port %d: want one appProtocol, or annotation %s", GRPCPort, tlsAnnotation)
	}
	return ps
}

// clash says why no pod can be behind both services, or "".
func (s Service) clash(o Service) string {
	mtls, plaintext := s.wants()
	otherMTLS, otherPlaintext := o.wants()
	switch {
	case s.Namespace != o.Namespace:
		return fmt.Sprintf("a pod cannot be in the namespaces of both %v and %v", s.id(), o.id())
	case s.ServiceAccount != "" && o.ServiceAccount != "" && s.ServiceAccount != o.ServiceAccount:
		return fmt.Sprintf("a pod cannot have the serviceAccount of both %v and %v", s.id(), o.id())
	case mtls && otherPlaintext || plaintext && otherMTLS:
		return fmt.Sprintf("a pod speaks either mTLS or plaintext, and %v and %v want both", s.id(), o.id())
	}
	return ""
}

// meets reports whether there may be a pod behind both services.
func (s Service) meets(o Service) bool {
	if len(s.Clusters) > 0 && len(o.Clusters) > 0 && !slices.ContainsFunc(s.Clusters, o.in) {
		return false
	}
	if len(s.Pods) == 0 || len(o.Pods) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Pods, func(a string) bool {
		return slices.ContainsFunc(o.Pods, func(b string) bool { return covers(a, b) || covers(b, a) })
	})
}

// covers reports whether selector a, of one node or of all, selects what b does.
func covers(a, b string) bool {
	return a == b || len(b) > len(a) && b[len(b)-len(a)-1:] == "/"+a
}

// serviceProblems are those of the services, alone and with each other.
func (t Topology) serviceProblems() []problem {
	var ps []problem
	for i, s := range t.Services {
		at := fmt.Sprintf("services[%d].", i)
		add := func(path, format string, args ...any) {
			ps = append(ps, problem{at + path, fmt.Errorf(format, args...)})
		}
		for _, p := range s.problems() {
			ps = append(ps, problem{at + p.path, p.err})
		}
		for j, name := range s.Clusters {
			if !slices.ContainsFunc(t.Clusters, func(c Cluster) bool { return c.Name == name }) {
				add(fmt.Sprintf("clusters[%d]", j), "there is no cluster %q", name)
			}
		}
		for _, o := range t.Services[:i] {
			if o.id() == s.id() {
				add("name", "there are two services %v", s.id())
			} else if why := s.clash(o); why != "" && s.meets(o) {
				add("name", "%s: give them pods of their own", why)
			}
		}
	}
	return ps
}

// firstService is the offset in a cluster's service range of the first service's
// address; the gateways' Service has gatewayService. Kubernetes gives the lowest
// ones to itself.
const (
	gatewayService = 10
	firstService   = 16
)

// addressProblem says why a cluster cannot give addresses to that many services
// and to its gateways, or is nil.
func (c Cluster) addressProblem(services int) error {
	if services == 0 && c.Gateways == 0 {
		return nil
	}
	if len(c.ServiceCIDRs) == 0 {
		return errors.New("services and gateways need a range to have addresses from")
	}
	last := gatewayService
	if services > 0 {
		last = firstService + services - 1
	}
	for _, p := range c.ServiceCIDRs {
		// A bad prefix is reported as such.
		if p.IsValid() && p == p.Masked() && !p.Contains(shift(p.Addr(), uint64(last), 0)) {
			return fmt.Errorf("%v is too small for %d services and the gateways", p, services)
		}
	}
	return nil
}

// serviceIPs returns the cluster's addresses of the service of that offset, of
// the families that its pods have.
func (c *clusterState) serviceIPs(offset int) []netip.Addr {
	var as []netip.Addr
	for _, p := range c.ServiceCIDRs {
		if slices.ContainsFunc(c.PodCIDRs, func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) &&
			!slices.ContainsFunc(as, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			as = append(as, shift(p.Addr(), uint64(offset), 0))
		}
	}
	return as
}
