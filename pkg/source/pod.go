package source

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Trim returns an object without what no one here reads, or the object itself.
// It is for the kinds that are many and change often: a Pod keeps its identity,
// its place, its addresses and its phase. The object is not modified.
func Trim(o runtime.Object) runtime.Object {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o
	}
	out := &corev1.Pod{
		TypeMeta:   p.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: serviceAccount(p), HostNetwork: p.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP},
	}
	for _, ip := range p.Status.PodIPs {
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: ip.IP})
	}
	return out
}

// Pod makes a mesh pod of a Kubernetes pod. Its Node is empty until it is
// scheduled, its Addresses until it runs.
//
// Everything wrong is joined, each a FieldError; the error does not name the
// pod. What is returned beside an error is the pod without what is wrong.
func Pod(p *corev1.Pod) (mesh.Pod, error) {
	var errs fields
	out := mesh.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID),
		Node: p.Spec.NodeName, ServiceAccount: serviceAccount(p),
	}
	add := func(ip, field string, args ...any) {
		a, err := ParseAddr(ip)
		switch {
		case err != nil:
			errs.add(err, field, args...)
		case !slices.Contains(out.Addresses, a):
			out.Addresses = append(out.Addresses, a)
		}
	}
	for i, ip := range p.Status.PodIPs {
		add(ip.IP, "status.podIPs[%d].ip", i)
	}
	if len(p.Status.PodIPs) == 0 && p.Status.PodIP != "" {
		add(p.Status.PodIP, "status.podIP")
	}
	return out, errors.Join(errs...)
}

// serviceAccount fills in the default as an API server does.
func serviceAccount(p *corev1.Pod) string {
	return cmp.Or(p.Spec.ServiceAccountName, p.Spec.DeprecatedServiceAccount, "default")
}

// over reports whether the pod has run to its end. It is on its node no longer,
// and its addresses may be another's.
func over(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func validatePod(p *corev1.Pod, errs *fields) {
	if p.Spec.NodeName != "" {
		errs.add(mesh.ValidateNodeName(p.Spec.NodeName), "spec.nodeName")
	}
	if p.Spec.ServiceAccountName != "" {
		errs.add(broken(p.Spec.ServiceAccountName, validation.IsDNS1123Subdomain), "spec.serviceAccountName")
	}
	switch a, b := p.Spec.ServiceAccountName, p.Spec.DeprecatedServiceAccount; {
	case b == "":
	case a == "":
		errs.add(broken(b, validation.IsDNS1123Subdomain), "spec.serviceAccount")
	case a != b:
		errs.add(fmt.Errorf("%q, but serviceAccountName is %q", b, a), "spec.serviceAccount")
	}
	if p.Status.PodIP != "" {
		errs.add(validateIP(p.Status.PodIP), "status.podIP")
	}
	for i, ip := range p.Status.PodIPs {
		errs.add(validateIP(ip.IP), "status.podIPs[%d].ip", i)
	}
	if ips := p.Status.PodIPs; len(ips) > 0 && p.Status.PodIP != "" && p.Status.PodIP != ips[0].IP {
		errs.add(fmt.Errorf("%q is not the first of podIPs, which is %q", p.Status.PodIP, ips[0].IP), "status.podIP")
	}
	switch p.Status.Phase {
	case "", corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown:
	default:
		errs.add(fmt.Errorf("%q: want Pending, Running, Succeeded, Failed or Unknown", p.Status.Phase), "status.phase")
	}
}
