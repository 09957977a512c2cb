package dir

import (
	"fmt"
	"regexp"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/source"
)

// serviceExport takes a ServiceExport of any version: of what differs between
// them nothing matters.
type serviceExport struct {
	source.ServiceExport
	Spec   later `json:"spec"`
	Status later `json:"status"`
}

var serviceExportVersion = regexp.MustCompile(`^` + regexp.QuoteMeta(source.ServiceExportGroup) + `/v[0-9]+((alpha|beta)[0-9]+)? ServiceExport$`)

// newObject makes an empty object of a kind that is read.
func newObject(apiVersion, kind string) (runtime.Object, error) {
	of := apiVersion + " " + kind
	switch of {
	case "v1 Node":
		return &corev1.Node{}, nil
	case "v1 Namespace":
		return &corev1.Namespace{}, nil
	case "v1 Pod":
		return &corev1.Pod{}, nil
	case "v1 Service":
		return &corev1.Service{}, nil
	case "discovery.k8s.io/v1 EndpointSlice":
		return &discoveryv1.EndpointSlice{}, nil
	case "networking.k8s.io/v1 ServiceCIDR", "networking.k8s.io/v1beta1 ServiceCIDR": // the same fields
		return &networkingv1.ServiceCIDR{}, nil
	}
	if serviceExportVersion.MatchString(of) {
		return &serviceExport{}, nil
	}
	return nil, fmt.Errorf("%s does not belong here; a cluster folder holds Node, Service, Pod and Namespace (v1), EndpointSlice (discovery.k8s.io/v1), ServiceCIDR (networking.k8s.io/v1), ServiceExport (%s) and List (v1)", of, source.ServiceExportGroup)
}

// finished returns a decoded object in the form in which it is told.
func finished(o runtime.Object) runtime.Object {
	if e, ok := o.(*serviceExport); ok {
		return &e.ServiceExport
	}
	return o
}
