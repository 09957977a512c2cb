package source

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// networkLabel marks a Service as a gateway of its cluster, as in Istio.
const networkLabel = "topology.istio.io/network"

// gatewayPorts and standbyPorts are the numbers that gateways listen on, first
// and last.
var (
	gatewayPorts = [2]uint16{15443, 15446}
	standbyPorts = [2]uint16{15447, 15450}
)

// servingName matches the names by which a port serves whatever its number. An
// Istio gateway has tls-istiod and tls-webhook besides, which are not for pods.
var servingName = regexp.MustCompile(`^tls(-[0-9]+)?$`)

// isGateway reports whether a Service declares a gateway; nil does not.
func isGateway(o *corev1.Service) bool {
	if o == nil {
		return false
	}
	_, ok := o.Labels[networkLabel]
	return ok
}

// declaredGateways returns the gateways that a Service declares: one for each of
// its addresses.
func declaredGateways(c mesh.Cluster, key Key, o *corev1.Service) ([]mesh.Gateway, []Problem) {
	errs := &problems{object: key}
	if n := o.Labels[networkLabel]; n != "" && n != c.Network {
		errs.add(fmt.Errorf("%q, but the cluster's network is %q; it is used as a gateway of cluster %s all the same", n, c.Network, c.Name), "metadata.labels[%s]", networkLabel)
	}
	g := mesh.Gateway{Cluster: c.Name, Name: key.Namespace + "/" + key.Name}
	for i := range o.Spec.Ports {
		p := &o.Spec.Ports[i]
		if protocolOf(p.Protocol) != corev1.ProtocolTCP || validatePort(p.Port) != nil {
			continue
		}
		switch number := uint16(p.Port); gatewayRole(p.Name, number) {
		case roleServe:
			g.Ports = append(g.Ports, number)
		case roleStandby:
			g.StandbyPorts = append(g.StandbyPorts, number)
		}
	}
	addrs := gatewayAddrs(o, errs)
	switch {
	case len(g.Ports) == 0:
		errs.add(fmt.Errorf("none is a TCP port from %d to %d or has the name tls or tls-NUMBER, so it is no gateway", gatewayPorts[0], gatewayPorts[1]), "spec.ports")
		return nil, errs.list()
	case len(addrs) == 0:
		errs.add(errors.New("no address, and none in spec.externalIPs; it is no gateway until it has one"), "status.loadBalancer.ingress")
		return nil, errs.list()
	}
	g.Ports, g.StandbyPorts = sortedSet(g.Ports), sortedSet(g.StandbyPorts)
	out := make([]mesh.Gateway, 0, len(addrs))
	for _, a := range addrs {
		g.Addr = a
		out = append(out, g)
	}
	return out, errs.list()
}

// role is what a gateway's port is for.
type role uint8

const (
	roleNone role = iota
	roleServe
	roleStandby
)

// gatewayRole reads the name first: a gateway behind other numbers has no other
// way to say what its ports are for.
func gatewayRole(name string, number uint16) role {
	within := func(r [2]uint16) bool { return r[0] <= number && number <= r[1] }
	switch {
	case strings.HasPrefix(name, "standby"):
		return roleStandby
	case servingName.MatchString(name), within(gatewayPorts):
		return roleServe
	case within(standbyPorts):
		return roleStandby
	default:
		return roleNone
	}
}

// gatewayAddrs returns the addresses at which a gateway's Service is reached from
// outside: those of its load balancer, or else its external ones.
func gatewayAddrs(o *corev1.Service, errs *problems) []netip.Addr {
	var out []netip.Addr
	add := func(ip, field string, i int) {
		a, err := ParseAddr(ip)
		switch {
		case err != nil:
			errs.add(fmt.Errorf("%w; it is left out", err), field, i)
		case !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	for i, in := range o.Status.LoadBalancer.Ingress {
		switch {
		case in.IP != "":
			add(in.IP, "status.loadBalancer.ingress[%d].ip", i)
		case in.Hostname != "":
			errs.add(fmt.Errorf("%s is not resolved: a gateway is served by its address; write that into spec.externalIPs", in.Hostname), "status.loadBalancer.ingress[%d].hostname", i)
		}
	}
	if len(out) == 0 {
		for i, ip := range o.Spec.ExternalIPs {
			add(ip, "spec.externalIPs[%d]", i)
		}
	}
	return out
}

func sortedSet(list []uint16) []uint16 {
	slices.Sort(list)
	return slices.Compact(list)
}

// mergeGateways makes one list of what the Services declare, sorted. Of an
// address and port that several declare, the first by name keeps it; the problems
// of the others are set on them.
func mergeGateways(list []*service) []mesh.Gateway {
	slices.SortFunc(list, func(a, b *service) int { return a.name.Compare(b.name) })
	holders := map[netip.AddrPort]*service{}
	var out []mesh.Gateway
	for _, s := range list {
		errs := problems{object: s.key()}
		for _, g := range s.gateways {
			free := func(ports []uint16) []uint16 {
				var out []uint16
				for _, p := range ports {
					at := netip.AddrPortFrom(g.Addr, p)
					if h := holders[at]; h != nil && h != s {
						errs.add(fmt.Errorf("%v is that of %v too, which keeps it", at, h.key()), "spec.ports")
						continue
					}
					holders[at] = s
					out = append(out, p)
				}
				return out
			}
			if g.Ports = free(g.Ports); len(g.Ports) == 0 {
				continue // a standby alone is nobody's gateway
			}
			g.StandbyPorts = free(g.StandbyPorts)
			out = append(out, g)
		}
		s.lost = errs.list()
	}
	slices.SortFunc(out, func(a, b mesh.Gateway) int { return cmp.Or(a.Compare(b), slices.Compare(a.Ports, b.Ports)) })
	return out
}
