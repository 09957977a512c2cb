package source

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// ServiceExportGroup is the API group of the MCS API's ServiceExport (KEP-1645).
const ServiceExportGroup = "multicluster.x-k8s.io"

// ServiceExport says that the Service of its name is exported (KEP-1645). All
// versions of it are read as this, since only its existence matters.
type ServiceExport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
}

// DeepCopyObject makes a ServiceExport a runtime.Object.
func (e *ServiceExport) DeepCopyObject() runtime.Object {
	out := &ServiceExport{TypeMeta: e.TypeMeta}
	e.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return out
}
