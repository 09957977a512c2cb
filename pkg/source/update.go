package source

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Kind names the kind of a Kubernetes object.
type Kind string

// The kinds that sources read.
const (
	KindEndpointSlice Kind = "EndpointSlice"
	KindNamespace     Kind = "Namespace"
	KindNode          Kind = "Node"
	KindPod           Kind = "Pod"
	KindService       Kind = "Service"
	KindServiceCIDR   Kind = "ServiceCIDR"
	KindServiceExport Kind = "ServiceExport"
)

// Namespaced reports whether objects of the kind live in a namespace.
func (k Kind) Namespaced() bool {
	switch k {
	case KindEndpointSlice, KindPod, KindService, KindServiceExport:
		return true
	default:
		return false
	}
}

// Key identifies an object within its cluster. Namespace is empty for kinds
// that have none.
type Key struct {
	Kind      Kind
	Namespace string
	Name      string
}

// KeyOf returns the key of an object of one of the kinds above; any other type
// is an error.
func KeyOf(o runtime.Object) (Key, error) {
	switch o := o.(type) {
	case *corev1.Node:
		return Key{Kind: KindNode, Name: o.Name}, nil
	case *corev1.Namespace:
		return Key{Kind: KindNamespace, Name: o.Name}, nil
	case *corev1.Service:
		return Key{Kind: KindService, Namespace: o.Namespace, Name: o.Name}, nil
	case *discoveryv1.EndpointSlice:
		return Key{Kind: KindEndpointSlice, Namespace: o.Namespace, Name: o.Name}, nil
	case *corev1.Pod:
		return Key{Kind: KindPod, Namespace: o.Namespace, Name: o.Name}, nil
	case *networkingv1.ServiceCIDR:
		return Key{Kind: KindServiceCIDR, Name: o.Name}, nil
	case *ServiceExport:
		return Key{Kind: KindServiceExport, Namespace: o.Namespace, Name: o.Name}, nil
	}
	return Key{}, fmt.Errorf("a %T is not of a kind that sources read", o)
}

// String reads "Node n1" or "Service ns/name".
func (k Key) String() string {
	if k.Namespace == "" {
		return string(k.Kind) + " " + k.Name
	}
	return string(k.Kind) + " " + k.Namespace + "/" + k.Name
}

// Compare orders by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.Kind, o.Kind),
		cmp.Compare(k.Namespace, o.Namespace),
		cmp.Compare(k.Name, o.Name),
	)
}

// Change is one object that is new, changed or removed.
type Change struct {
	Key Key
	// Object is nil where the object was removed. It is shared and must not be
	// modified. Its type is the one that KeyOf expects for the kind, and what
	// Trim leaves of it.
	Object runtime.Object
}

// Update is what a source has to tell of one cluster.
type Update struct {
	// Source is where it comes from, for people: the folder's path. It is the
	// identity of what is told: two sources may declare the same cluster name,
	// and it is the consumer that decides between them.
	Source string
	// Cluster is the declaration in force; its Name is empty where none could
	// ever be read.
	Cluster mesh.Cluster
	// Full says that Changes is everything there is: what is not in it is gone.
	// The first good Update of a source is Full, and so is the first good one
	// after Gone.
	Full bool
	// Changes is sorted by Key and holds each key at most once.
	Changes []Change
	// Gone says that the source, or the declaration in it, is not there; Changes
	// is empty and Err says what is missing. It stays true in later Updates until
	// a good state has been read. Whether what was told before still holds is the
	// consumer's decision.
	Gone bool
	// Err is why the newest state was refused; the last good one stays in force.
	// Nil clears an earlier one.
	Err error
}
