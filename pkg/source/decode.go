package source

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Node makes a mesh node of a Kubernetes node: its ID, its PodCIDRs (none is
// fine: not yet assigned, or not the cluster's way) and its Addresses, internal
// before external. Host and DNS names among the addresses are left out. Region
// and Zone are its topology labels, the old ones where the new are absent.
//
// Everything wrong is joined, each a FieldError; the error does not name the
// node.
func Node(cluster mesh.Cluster, n *corev1.Node) (mesh.Node, error) {
	var errs fields
	errs.add(mesh.ValidateNodeName(n.Name), "metadata.name")
	out := mesh.Node{
		ID:        mesh.NodeID{Cluster: cluster.Name, Name: n.Name},
		PodCIDRs:  podCIDRs(&n.Spec, &errs),
		Addresses: addresses(n.Status.Addresses, &errs),
		Region:    cmp.Or(n.Labels[corev1.LabelTopologyRegion], n.Labels[corev1.LabelFailureDomainBetaRegion]),
		Zone:      cmp.Or(n.Labels[corev1.LabelTopologyZone], n.Labels[corev1.LabelFailureDomainBetaZone]),
	}
	if len(errs) > 0 {
		return mesh.Node{}, errors.Join(errs...)
	}
	return out, nil
}

// ServiceCIDRs returns the ranges of a ServiceCIDR object: one, or one of each
// family. Everything wrong is joined, each a FieldError.
func ServiceCIDRs(o *networkingv1.ServiceCIDR) ([]netip.Prefix, error) {
	var errs fields
	if len(o.Spec.CIDRs) == 0 {
		errs.add(errors.New("required: one range, or one of each family"), "spec.cidrs")
	}
	out := onePerFamily(o.Spec.CIDRs, "spec.cidrs", &errs)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return out, nil
}

// podCIDRs reads the two fields as the API does: podCIDR repeats the first of
// podCIDRs, and objects of long ago have it alone.
func podCIDRs(spec *corev1.NodeSpec, errs *fields) []netip.Prefix {
	switch {
	case spec.PodCIDR == "":
	case len(spec.PodCIDRs) == 0:
		p, err := ParsePrefix(spec.PodCIDR)
		if err != nil {
			errs.add(err, "spec.podCIDR")
			return nil
		}
		return []netip.Prefix{p}
	case spec.PodCIDR != spec.PodCIDRs[0]:
		errs.add(fmt.Errorf("%s is not the first of podCIDRs, which is %s", spec.PodCIDR, spec.PodCIDRs[0]), "spec.podCIDR")
	}
	return onePerFamily(spec.PodCIDRs, "spec.podCIDRs", errs)
}

// onePerFamily reads a list that Kubernetes limits to one range of each family.
func onePerFamily(list []string, field string, errs *fields) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range list {
		p, err := ParsePrefix(s)
		if err != nil {
			errs.add(err, "%s[%d]", field, i)
			continue
		}
		f := mesh.FamilyOf(p.Addr())
		if j := slices.IndexFunc(out, func(q netip.Prefix) bool { return mesh.FamilyOf(q.Addr()) == f }); j >= 0 {
			errs.add(fmt.Errorf("%v is a second %v range beside %v; Kubernetes allows one of each family", p, f, out[j]), "%s[%d]", field, i)
			continue
		}
		out = append(out, p)
	}
	return out
}

func addresses(list []corev1.NodeAddress, errs *fields) []netip.Addr {
	var internal, external, out []netip.Addr
	for i, a := range list {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		addr, err := ParseAddr(a.Address)
		switch {
		case err != nil:
			errs.add(err, "status.addresses[%d].address", i)
		case a.Type == corev1.NodeInternalIP:
			internal = append(internal, addr)
		default:
			external = append(external, addr)
		}
	}
	for _, addr := range append(internal, external...) {
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}
