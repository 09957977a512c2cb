package source

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Validate checks of an object what an API server would, as far as flatmesh
// relies on it: names, labels, ranges, addresses and ports. Objects from an API
// server pass; those from a file may not. Everything wrong is joined, each a
// FieldError; the error does not name the object.
func Validate(o runtime.Object) error {
	key, err := KeyOf(o)
	if err != nil {
		return err
	}
	var errs fields
	if m, ok := o.(metav1.Object); ok {
		validateMeta(key, m, &errs)
	}
	switch o := o.(type) {
	case *corev1.Node:
		validateNode(o, &errs)
	case *corev1.Service:
		validateService(o, &errs)
	case *discoveryv1.EndpointSlice:
		validateSlice(o, &errs)
	case *corev1.Pod:
		validatePod(o, &errs)
	case *networkingv1.ServiceCIDR:
		_, err := ServiceCIDRs(o)
		errs.join(err)
	}
	return errors.Join(errs...)
}

// join adds what an errors.Join holds, one by one.
func (f *fields) join(err error) {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		*f = append(*f, j.Unwrap()...)
	} else if err != nil {
		*f = append(*f, err)
	}
}

func validateMeta(key Key, m metav1.Object, errs *fields) {
	switch {
	case key.Name == "":
		errs.add(errors.New("required"), "metadata.name")
	case key.Kind == KindNode: // by Node, below
	case key.Kind == KindNamespace, key.Kind == KindService:
		errs.add(broken(key.Name, validation.IsDNS1123Label), "metadata.name")
	default:
		errs.add(broken(key.Name, validation.IsDNS1123Subdomain), "metadata.name")
	}
	switch {
	case !key.Kind.Namespaced():
		if ns := m.GetNamespace(); ns != "" {
			errs.add(fmt.Errorf("%q: a %s has no namespace", ns, key.Kind), "metadata.namespace")
		}
	case key.Namespace == "":
		errs.add(errors.New("required: there is no default namespace here"), "metadata.namespace")
	default:
		errs.add(broken(key.Namespace, validation.IsDNS1123Label), "metadata.namespace")
	}
	labels := m.GetLabels()
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		errs.add(broken(k, validation.IsQualifiedName), "metadata.labels[%s]", k)
		errs.add(broken(labels[k], validation.IsValidLabelValue), "metadata.labels[%s]", k)
	}
}

// broken makes one error of what a Kubernetes rule has against s.
func broken(s string, rule func(string) []string) error {
	if said := rule(s); len(said) > 0 {
		return fmt.Errorf("%q: %s", s, strings.Join(said, "; "))
	}
	return nil
}

func validateNode(n *corev1.Node, errs *fields) {
	if n.Name != "" {
		_, err := Node(mesh.Cluster{}, n)
		errs.join(err)
	}
	for i, a := range n.Status.Addresses {
		switch a.Type {
		case corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeExternalDNS:
		default:
			errs.add(fmt.Errorf("%q: want InternalIP, ExternalIP, Hostname, InternalDNS or ExternalDNS", a.Type), "status.addresses[%d].type", i)
		}
	}
}

func validateService(s *corev1.Service, errs *fields) {
	switch s.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName:
	default:
		errs.add(fmt.Errorf("%q: want ClusterIP, NodePort, LoadBalancer or ExternalName", s.Spec.Type), "spec.type")
	}
	clusterIP := func(ip, field string, args ...any) {
		if ip != "" && ip != corev1.ClusterIPNone {
			_, err := ParseAddr(ip)
			errs.add(err, field, args...)
		}
	}
	clusterIP(s.Spec.ClusterIP, "spec.clusterIP")
	for i, ip := range s.Spec.ClusterIPs {
		clusterIP(ip, "spec.clusterIPs[%d]", i)
	}
	if len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIP != s.Spec.ClusterIPs[0] {
		errs.add(fmt.Errorf("%q is not the first of clusterIPs, which is %q", s.Spec.ClusterIP, s.Spec.ClusterIPs[0]), "spec.clusterIP")
	}

	for i, ip := range s.Spec.ExternalIPs {
		_, err := ParseAddr(ip)
		errs.add(err, "spec.externalIPs[%d]", i)
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			errs.add(validateIP(in.IP), "status.loadBalancer.ingress[%d].ip", i)
		}
	}

	type portKey struct {
		protocol corev1.Protocol
		port     int32
	}
	numbers, names := map[portKey]int{}, map[string]int{}
	for i, p := range s.Spec.Ports {
		errs.add(validatePort(p.Port), "spec.ports[%d].port", i)
		errs.add(validateProtocol(p.Protocol), "spec.ports[%d].protocol", i)
		k := portKey{cmp.Or(p.Protocol, corev1.ProtocolTCP), p.Port}
		if j, ok := numbers[k]; ok {
			errs.add(fmt.Errorf("%d/%s is that of ports[%d] too", k.port, k.protocol, j), "spec.ports[%d].port", i)
		}
		numbers[k] = i
		if p.AppProtocol != nil {
			errs.add(broken(*p.AppProtocol, validation.IsQualifiedName), "spec.ports[%d].appProtocol", i)
		}
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			errs.add(errors.New("required where there are several ports"), "spec.ports[%d].name", i)
		}
		if p.Name != "" {
			validatePortName(p.Name, names, i, "spec.ports[%d].name", errs)
		}
	}
}

func validateSlice(s *discoveryv1.EndpointSlice, errs *fields) {
	parse := func(string) error { return nil }
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
		parse = func(addr string) error {
			_, err := parseSliceAddr(addr, s.AddressType)
			return err
		}
	case discoveryv1.AddressTypeFQDN:
		parse = func(name string) error { return broken(name, validation.IsDNS1123Subdomain) }
	default:
		errs.add(fmt.Errorf("%q: want IPv4, IPv6 or FQDN", s.AddressType), "addressType")
	}
	for i, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			errs.add(errors.New("required: at least one"), "endpoints[%d].addresses", i)
		}
		for j, addr := range e.Addresses {
			errs.add(parse(addr), "endpoints[%d].addresses[%d]", i, j)
		}
		if e.NodeName != nil {
			errs.add(mesh.ValidateNodeName(*e.NodeName), "endpoints[%d].nodeName", i)
		}
	}
	names, nameless := map[string]int{}, -1
	for i, p := range s.Ports {
		if p.Port != nil {
			errs.add(validatePort(*p.Port), "ports[%d].port", i)
		}
		if p.Protocol != nil {
			errs.add(validateProtocol(*p.Protocol), "ports[%d].protocol", i)
		}
		if p.Name != nil && *p.Name != "" {
			validatePortName(*p.Name, names, i, "ports[%d].name", errs)
			continue
		}
		if nameless >= 0 {
			errs.add(fmt.Errorf("ports[%d] has no name either", nameless), "ports[%d].name", i)
		}
		nameless = i
	}
}

// validateIP accepts any address: what a cluster has of its own may be one that
// no other can reach.
func validateIP(s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		return fmt.Errorf("%q is not an IP address", s)
	}
	return nil
}

func validatePort(port int32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("%d: want a port from 1 to 65535", port)
	}
	return nil
}

func validateProtocol(p corev1.Protocol) error {
	switch p {
	case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return nil
	}
	return fmt.Errorf("%q: want TCP, UDP or SCTP", p)
}

func validatePortName(name string, seen map[string]int, i int, field string, errs *fields) {
	errs.add(broken(name, validation.IsDNS1123Label), field, i)
	if j, ok := seen[name]; ok {
		errs.add(fmt.Errorf("%q is the name of ports[%d] too", name, j), field, i)
	}
	seen[name] = i
}
