package source

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// slice is an EndpointSlice, decoded once and merged with others of its service
// whenever one of them changes.
type slice struct {
	key        Key
	ports      []slicePort
	candidates []candidate
	problems   problems
}

// slicePort is where the pods of a slice serve a port of the service.
type slicePort struct {
	name     string // of the service's port; empty where that has none
	protocol corev1.Protocol
	number   uint16
}

// candidate is one pod's address in a slice, whatever the pod's state.
type candidate struct {
	addr      netip.Addr
	node      string // empty where the slice names none
	zone      string
	pod       *pod   // nil where the slice refers to none
	uid       string // that the slice knows the pod by; may be empty
	condition condition
}

// condition is what the conditions of an endpoint come to.
type condition uint8

const (
	idle        condition = iota // neither of the two
	ready                        // takes traffic
	terminating                  // ends, and serves while it does (KEP-1669)
)

// conditionOf reads conditions as the API documents them: what is not said is
// ready, serving, and not terminating.
func conditionOf(c discoveryv1.EndpointConditions) condition {
	is := func(b *bool, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return *b
	}
	switch {
	case is(c.Ready, true):
		return ready
	case is(c.Serving, true) && is(c.Terminating, false):
		return terminating
	default:
		return idle
	}
}

// decodeSlice decodes an EndpointSlice. podOf returns the entry of a pod of the
// slice's namespace.
func decodeSlice(key Key, s *discoveryv1.EndpointSlice, podOf func(name string) *pod) *slice {
	out := &slice{key: key, problems: problems{object: key}}
	errs := &out.problems
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		errs.add(errors.New("FQDN: names are not resolved, so its endpoints are left out"), "addressType")
		return out
	}
	out.candidates = make([]candidate, 0, len(s.Endpoints))
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 {
			errs.add(errors.New("none, so the endpoint is left out"), "endpoints[%d].addresses", i)
			continue
		}
		// The addresses of an endpoint are interchangeable and clients take the
		// first, as the API documents.
		addr, err := parseSliceAddr(e.Addresses[0], s.AddressType)
		if err != nil {
			errs.add(fmt.Errorf("%w; the endpoint is left out", err), "endpoints[%d].addresses[0]", i)
			continue
		}
		c := candidate{addr: addr, condition: conditionOf(e.Conditions)}
		if e.NodeName != nil {
			c.node = *e.NodeName
		}
		if e.Zone != nil {
			c.zone = *e.Zone
		}
		// A pod backs services of its own namespace only.
		if r := e.TargetRef; r != nil && r.Kind == string(KindPod) && cmp.Or(r.Namespace, key.Namespace) == key.Namespace {
			c.pod, c.uid = podOf(r.Name), string(r.UID)
		}
		out.candidates = append(out.candidates, c)
	}
	for i, p := range s.Ports {
		port := slicePort{protocol: corev1.ProtocolTCP}
		if p.Name != nil {
			port.name = *p.Name
		}
		if p.Protocol != nil {
			port.protocol = protocolOf(*p.Protocol)
		}
		if p.Port == nil {
			errs.add(errors.New("none, so nothing is served on it"), "ports[%d].port", i)
			continue
		}
		if err := validatePort(*p.Port); err != nil {
			errs.add(fmt.Errorf("%w; nothing is served on it", err), "ports[%d].port", i)
			continue
		}
		port.number = uint16(*p.Port)
		out.ports = append(out.ports, port)
	}
	return out
}

func parseSliceAddr(s string, want discoveryv1.AddressType) (netip.Addr, error) {
	a, err := ParseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if f := mesh.FamilyOf(a); f.String() != string(want) {
		return netip.Addr{}, fmt.Errorf("%v is %v, but addressType is %s", a, f, want)
	}
	return a, nil
}
