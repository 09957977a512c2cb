package source

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// service is what is known of one service name; the Service itself may be absent.
type service struct {
	name     mesh.ServiceName
	object   *corev1.Service
	exported bool              // there is a ServiceExport of the name
	slices   map[string]*slice // by name

	part     *mesh.ServicePart // nil where nothing is served
	problems []Problem
	gateways []mesh.Gateway // that the Service declares
	refused  []Problem      // of what it declares as a gateway
	lost     []Problem      // of what another Service declares too
}

func (s *service) key() Key {
	return Key{Kind: KindService, Namespace: s.name.Namespace, Name: s.name.Name}
}

// known reports whether any object speaks of the service.
func (s *service) known() bool { return s.object != nil || s.exported || len(s.slices) > 0 }

// build makes the part anew, or nil where nothing can be served, and says what
// is wrong.
func (x *Index) build(s *service, ns *namespace) (*mesh.ServicePart, []Problem) {
	errs := problems{object: s.key()}
	o := s.object
	switch {
	case o == nil:
		// Slices wait for their Service: it may be on its way.
		if !s.exported || !x.options.MCS {
			return nil, nil
		}
		errs.object.Kind = KindServiceExport
		errs.add(errors.New("there is no Service of this name, so nothing is exported"), "metadata.name")
		return nil, errs.list()
	case o.Spec.Type == corev1.ServiceTypeExternalName:
		errs.add(errors.New("a Service of type ExternalName has no pods, so it is not served"), "spec.type")
		return nil, errs.list()
	case isGateway(o):
		// It is how others get in, not what they call.
		return nil, errs.list()
	case len(o.Spec.Ports) == 0:
		errs.add(errors.New("none, so it is not served"), "spec.ports")
		return nil, errs.list()
	}
	part := &mesh.ServicePart{Cluster: x.cluster.Name, ClusterIPs: clusterIPs(&o.Spec, &errs)}
	if t := o.CreationTimestamp; !t.IsZero() {
		part.Created = t.Unix()
	}
	exported, said := setting(o, settingExport, booleans, &errs)
	if !said {
		exported = !ns.withheld
	}
	part.Exported = exported && (s.exported || !x.options.MCS)
	part.Prefer, _ = setting(o, settingPrefer, preferences, &errs)
	part.Retry, _ = setting(o, settingRetry, booleans, &errs)
	part.Ports = x.ports(o, &errs)
	if len(part.Ports) == 0 {
		return nil, errs.list()
	}

	list := make([]*slice, 0, len(s.slices))
	for _, name := range slices.Sorted(maps.Keys(s.slices)) {
		list = append(list, s.slices[name])
	}
	for i := range part.Ports {
		part.Ports[i].Backends = backends(list, &part.Ports[i], o.Spec.PublishNotReadyAddresses)
	}
	found := errs.list()
	for _, s := range list {
		found = append(found, unmatched(s, part.Ports)...)
	}
	return part, found
}

// clusterIPs reads the two fields as the API does: clusterIP repeats the first of
// clusterIPs, and objects of long ago have it alone.
func clusterIPs(spec *corev1.ServiceSpec, errs *problems) []netip.Addr {
	list := spec.ClusterIPs
	if len(list) == 0 {
		list = []string{spec.ClusterIP}
	}
	var out []netip.Addr
	for i, ip := range list {
		if ip == "" || ip == corev1.ClusterIPNone {
			continue
		}
		a, err := ParseAddr(ip)
		if err != nil {
			errs.add(fmt.Errorf("%w; it is left out", err), "spec.clusterIPs[%d]", i)
			continue
		}
		out = append(out, a)
	}
	return out
}

// ports returns the service's ports, sorted, without what is behind them.
func (x *Index) ports(o *corev1.Service, errs *problems) []mesh.ServicePort {
	tls, said := setting(o, settingTLS, tlsValues, errs)
	out := make([]mesh.ServicePort, 0, len(o.Spec.Ports))
	for i := range o.Spec.Ports {
		p := &o.Spec.Ports[i]
		err := validatePort(p.Port)
		if err == nil {
			err = validateProtocol(p.Protocol)
		}
		if err != nil {
			errs.add(fmt.Errorf("%w; it is not served", err), "spec.ports[%d]", i)
			continue
		}
		port := mesh.ServicePort{
			Number: uint16(p.Port), Name: p.Name, Protocol: mesh.Protocol(protocolOf(p.Protocol)), AppProtocol: appProtocol(p),
		}
		if slices.ContainsFunc(out, func(q mesh.ServicePort) bool { return q.Number == port.Number && q.Protocol == port.Protocol }) {
			errs.add(fmt.Errorf("%d/%s is that of an earlier port too, which keeps it", port.Number, port.Protocol), "spec.ports[%d]", i)
			continue
		}
		if port.Protocol == mesh.TCP {
			port.TLS = tls
			if !said {
				port.TLS = x.options.DefaultTLS.speaksTLS(port.AppProtocol)
			}
		}
		out = append(out, port)
	}
	slices.SortFunc(out, func(a, b mesh.ServicePort) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// unmatched returns what is wrong with a slice: in itself, and that it has ports
// which its service does not have.
func unmatched(s *slice, ports []mesh.ServicePort) []Problem {
	errs := s.problems
	errs.errs = slices.Clone(errs.errs)
	for _, p := range s.ports {
		i := slices.IndexFunc(ports, func(q mesh.ServicePort) bool { return q.Name == p.name })
		switch {
		case i < 0:
			errs.add(fmt.Errorf("the Service has no port of the name %q, so nothing is served on it", p.name), "ports")
		case ports[i].Protocol != mesh.Protocol(p.protocol):
			errs.add(fmt.Errorf("port %q is %s, but %s in the Service, so nothing is served on it", p.name, p.protocol, ports[i].Protocol), "ports")
		}
	}
	return errs.list()
}

// backends merges what the slices have behind a port, sorted. An address that is
// in several slices, as while it moves from one to another, is one backend.
func backends(list []*slice, port *mesh.ServicePort, all bool) []mesh.Backend {
	type place struct {
		addr netip.AddrPort
		of   *candidate
	}
	n := 0
	for _, s := range list {
		n += len(s.candidates)
	}
	places := make([]place, 0, n)
	for _, s := range list {
		for _, p := range s.ports {
			if p.name != port.Name || mesh.Protocol(p.protocol) != port.Protocol {
				continue
			}
			for i := range s.candidates {
				if c := &s.candidates[i]; all || c.condition != idle {
					places = append(places, place{netip.AddrPortFrom(c.addr, p.number), c})
				}
			}
		}
	}
	if len(places) == 0 {
		return nil
	}
	slices.SortFunc(places, func(a, b place) int { return a.addr.Compare(b.addr) })
	out := make([]mesh.Backend, 0, len(places))
	for _, p := range places {
		b := p.of.backend(p.addr, all)
		last := len(out) - 1
		switch {
		case last < 0 || out[last].Addr != b.Addr:
			out = append(out, b)
		case preferred(&b, &out[last]):
			out[last] = b
		}
	}
	return out
}

// backend makes a backend of a candidate; all is whether the Service publishes
// addresses that are not ready.
func (c *candidate) backend(addr netip.AddrPort, all bool) mesh.Backend {
	b := mesh.Backend{Addr: addr, Node: c.node, Zone: c.zone, Terminating: !all && c.condition == terminating}
	// A StatefulSet's pods follow each other under one name: the UID tells whether
	// this is the one that is meant.
	if p := c.pod; p != nil && p.known && (c.uid == "" || p.UID == "" || c.uid == p.UID) {
		b.Pod, b.ServiceAccount = p.Name, p.ServiceAccount
		b.Node = cmp.Or(b.Node, p.Node)
	}
	return b
}

// preferred reports whether of two backends of one address a is to be kept: the
// one that is ready, or else that of which the most is known, or else, so that the
// order of slices means nothing, the first by what it says.
func preferred(a, b *mesh.Backend) bool {
	yes := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(yes(!a.Terminating), yes(!b.Terminating)),
		cmp.Compare(yes(a.Pod != ""), yes(b.Pod != "")),
		cmp.Compare(yes(a.Node != ""), yes(b.Node != "")),
		cmp.Compare(yes(a.Zone != ""), yes(b.Zone != "")),
		cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.ServiceAccount, b.ServiceAccount),
		cmp.Compare(a.Node, b.Node), cmp.Compare(a.Zone, b.Zone),
	) < 0
}

// samePart reports whether two parts say the same; nil is one that is not served.
func samePart(a, b *mesh.ServicePart) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Cluster == b.Cluster && a.Created == b.Created && a.Exported == b.Exported &&
		slices.Equal(a.ClusterIPs, b.ClusterIPs) && a.Prefer == b.Prefer && a.Retry == b.Retry &&
		slices.EqualFunc(a.Ports, b.Ports, func(a, b mesh.ServicePort) bool {
			return a.Number == b.Number && a.Name == b.Name && a.Protocol == b.Protocol && a.AppProtocol == b.AppProtocol &&
				a.TLS == b.TLS && slices.Equal(a.Backends, b.Backends)
		})
}
