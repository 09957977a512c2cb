package source

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func TestKey(t *testing.T) {
	inNS := metav1.ObjectMeta{Namespace: "ns", Name: "x"}
	var keys []Key
	for _, c := range []struct {
		obj  runtime.Object
		want string
	}{
		{&discoveryv1.EndpointSlice{ObjectMeta: inNS}, "EndpointSlice ns/x"},
		{&corev1.Namespace{ObjectMeta: named("x")}, "Namespace x"},
		{&corev1.Node{ObjectMeta: named("n1")}, "Node n1"},
		{&corev1.Node{ObjectMeta: named("n2")}, "Node n2"},
		{&corev1.Pod{ObjectMeta: inNS}, "Pod ns/x"},
		{&corev1.Service{ObjectMeta: inNS}, "Service ns/x"},
		{&networkingv1.ServiceCIDR{ObjectMeta: named("x")}, "ServiceCIDR x"},
		{&ServiceExport{ObjectMeta: inNS}, "ServiceExport ns/x"},
	} {
		key, err := KeyOf(c.obj)
		if err != nil || key.String() != c.want {
			t.Errorf("got %v (%v), want %s", key, err, c.want)
		}
		if (key.Namespace != "") != key.Kind.Namespaced() {
			t.Errorf("%v: Namespaced is %t", key, key.Kind.Namespaced())
		}
		keys = append(keys, key)
	}
	if !slices.IsSortedFunc(keys, Key.Compare) {
		t.Errorf("Compare does not order %v", keys)
	}
	if _, err := KeyOf(&corev1.Secret{}); err == nil {
		t.Error("a Secret has a key")
	}
}

func TestNode(t *testing.T) {
	east := mesh.Cluster{Name: "east"}
	address := func(kind corev1.NodeAddressType, s string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: kind, Address: s}
	}
	for _, c := range []struct {
		name      string
		node      corev1.Node
		prefixes  string
		addresses string
		err       string
	}{
		{name: "nothing but a name", node: corev1.Node{ObjectMeta: named("n1")}, prefixes: "[]", addresses: "[]"},
		{name: "both fields", node: corev1.Node{ObjectMeta: named("n1"), Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24", "fd00::/64"}}},
			prefixes: "[10.1.0.0/24 fd00::/64]", addresses: "[]"},
		{name: "the list alone", node: corev1.Node{ObjectMeta: named("n1"), Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0/24"}}},
			prefixes: "[10.1.0.0/24]", addresses: "[]"},
		{name: "the old field alone", node: corev1.Node{ObjectMeta: named("n1"), Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24"}},
			prefixes: "[10.1.0.0/24]", addresses: "[]"},
		{name: "addresses in order, once each", node: corev1.Node{ObjectMeta: named("n1"), Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			address(corev1.NodeHostName, "127.0.0.1"),
			address(corev1.NodeExternalIP, "203.0.113.1"), address(corev1.NodeExternalIP, "192.168.0.1"),
			address(corev1.NodeInternalIP, "192.168.0.1"), address(corev1.NodeInternalIP, "fd00::1"), address(corev1.NodeInternalIP, "192.168.0.1"),
			address(corev1.NodeInternalDNS, "n1.internal"),
		}}}, prefixes: "[]", addresses: "[192.168.0.1 fd00::1 203.0.113.1]"},
		{name: "faults", node: corev1.Node{ObjectMeta: named("N"), Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.0.1/24", "fd00::/64", "fd01::/64"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{address(corev1.NodeInternalIP, "n1")}}},
			err: `metadata.name: node name "N": want a lower-case DNS name of at most 253 characters
spec.podCIDRs[0]: 10.1.0.1/24 has bits set behind its length; did you mean 10.1.0.0/24?
spec.podCIDRs[2]: fd01::/64 is a second IPv6 range beside fd00::/64; Kubernetes allows one of each family
status.addresses[0].address: "n1" is not an IP address`},
		{name: "the old field at fault", node: corev1.Node{ObjectMeta: named("n1"), Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0"}},
			err: `spec.podCIDR: "10.1.0.0" is not an address range such as 10.1.0.0/24 or fd00:1::/64`},
		{name: "the fields disagree", node: corev1.Node{ObjectMeta: named("n1"), Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.2.0.0/24"}}},
			err: "spec.podCIDR: 10.1.0.0/24 is not the first of podCIDRs, which is 10.2.0.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := Node(east, &c.node)
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Errorf("got\n%v\nwant\n%s", err, c.err)
				}
				var field *FieldError
				if !errors.As(err, &field) || field.Field == "" {
					t.Error("no FieldError in it")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n.ID != (mesh.NodeID{Cluster: "east", Name: "n1"}) || fmt.Sprint(n.PodCIDRs) != c.prefixes || fmt.Sprint(n.Addresses) != c.addresses {
				t.Errorf("got %v %v %v, want %s %s", n.ID, n.PodCIDRs, n.Addresses, c.prefixes, c.addresses)
			}
		})
	}
}

func TestNodeLocality(t *testing.T) {
	const region, zone = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
	const oldRegion, oldZone = "failure-domain.beta.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone"
	for _, c := range []struct {
		labels map[string]string
		want   string
	}{
		{nil, "/"},
		{map[string]string{region: "eu", zone: "eu-a"}, "eu/eu-a"},
		{map[string]string{oldRegion: "eu", oldZone: "eu-a"}, "eu/eu-a"},
		{map[string]string{region: "eu", zone: "eu-a", oldRegion: "us", oldZone: "us-a"}, "eu/eu-a"},
		{map[string]string{zone: "eu-a"}, "/eu-a"},
	} {
		n, err := Node(mesh.Cluster{Name: "east"}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: c.labels}})
		if got := n.Region + "/" + n.Zone; err != nil || got != c.want {
			t.Errorf("%v: got %s (%v), want %s", c.labels, got, err, c.want)
		}
	}
}

func TestServiceCIDRs(t *testing.T) {
	for _, c := range []struct {
		cidrs []string
		want  []netip.Prefix
		err   string
	}{
		{[]string{"10.96.0.0/12"}, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}, ""},
		{[]string{"fd00::/108", "10.96.0.0/12"}, []netip.Prefix{netip.MustParsePrefix("fd00::/108"), netip.MustParsePrefix("10.96.0.0/12")}, ""},
		{nil, nil, "spec.cidrs: required: one range, or one of each family"},
		{[]string{"10.96.0.0/12", "10.0.0.0/24"}, nil, "spec.cidrs[1]: 10.0.0.0/24 is a second IPv4 range beside 10.96.0.0/12; Kubernetes allows one of each family"},
		{[]string{"x"}, nil, `spec.cidrs[0]: "x" is not an address range such as 10.1.0.0/24 or fd00:1::/64`},
	} {
		got, err := ServiceCIDRs(&networkingv1.ServiceCIDR{Spec: networkingv1.ServiceCIDRSpec{CIDRs: c.cidrs}})
		if !slices.Equal(got, c.want) || (err != nil || c.err != "") && (err == nil || err.Error() != c.err) {
			t.Errorf("%q: got %v, %v; want %v, %s", c.cidrs, got, err, c.want, c.err)
		}
	}
}

func TestValidateAccepts(t *testing.T) {
	port, name := int32(80), "http"
	for _, o := range []runtime.Object{
		&corev1.Namespace{ObjectMeta: named("shop")},
		&corev1.Node{ObjectMeta: named("n1.example.com")},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Ports: []corev1.ServicePort{{Port: 80}}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.0"}},
		&ServiceExport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}},
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1"}, AddressType: discoveryv1.AddressTypeFQDN,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"web.example.com"}}},
			Ports:     []discoveryv1.EndpointPort{{}, {Name: &name, Port: &port}}},
	} {
		if err := Validate(o); err != nil {
			t.Errorf("%T: %v", o, err)
		}
	}
	if err := Validate(&corev1.Secret{}); err == nil {
		t.Error("a Secret is valid")
	}
}
