package build

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// assignmentErrors holds what gRPC refuses (A27, A52, and an address that occurs
// twice) or drops in silence (a locality without weight).
func assignmentErrors(m *endpoint.ClusterLoadAssignment) (errs []error) {
	type place struct {
		priority              uint32
		region, zone, subZone string
	}
	places, addrs, sums := map[place]bool{}, map[netip.AddrPort]bool{}, map[uint32]uint64{}
	for i, l := range m.GetEndpoints() {
		report := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("locality %d: %w", i, fmt.Errorf(format, args...)))
		}
		if l.GetLocality() == nil {
			report("it has no name")
		}
		p := place{l.GetPriority(), l.GetLocality().GetRegion(), l.GetLocality().GetZone(), l.GetLocality().GetSubZone()}
		if places[p] {
			report("twice in priority %d", p.priority)
		}
		places[p] = true
		if l.GetLoadBalancingWeight().GetValue() == 0 {
			report("no weight")
		}
		sums[p.priority] += uint64(l.GetLoadBalancingWeight().GetValue())
		if len(l.GetLbEndpoints()) == 0 {
			report("no endpoints")
		}
		for _, e := range l.GetLbEndpoints() {
			a, err := socketAddr(e.GetEndpoint().GetAddress())
			if err != nil {
				report("%w", err)
				continue
			}
			if a.Addr().IsUnspecified() {
				report("address %v", a)
			}
			if addrs[a] {
				report("address %v occurs twice", a)
			}
			addrs[a] = true
		}
	}
	for p, sum := range sums {
		if sum > math.MaxUint32 {
			errs = append(errs, fmt.Errorf("priority %d: weights add up to %d", p, sum))
		}
		if p > 0 && sums[p-1] == 0 {
			errs = append(errs, fmt.Errorf("priority %d follows none", p))
		}
	}
	return errs
}

// socketAddr returns an address in the one form that it has: clients compare text.
func socketAddr(a *core.Address) (netip.AddrPort, error) {
	s := a.GetSocketAddress()
	ip, err := netip.ParseAddr(s.GetAddress())
	switch {
	case err != nil:
		return netip.AddrPort{}, err
	case ip.String() != s.GetAddress() || ip.Is4In6() || ip.Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("address %q is not in its canonical form", s.GetAddress())
	case s.GetPortValue() == 0 || s.GetPortValue() > math.MaxUint16:
		return netip.AddrPort{}, fmt.Errorf("address %v: port %d", ip, s.GetPortValue())
	}
	return netip.AddrPortFrom(ip, uint16(s.GetPortValue())), nil
}

func clusterErrors(m *cluster.Cluster) (errs []error) {
	isEDS := m.GetType() == cluster.Cluster_EDS
	if isEDS != (m.GetEdsClusterConfig() != nil) {
		// Envoy refuses it; the definition allows it.
		errs = append(errs, errors.New("of type EDS if and only if it has an eds_cluster_config"))
	}
	if isEDS && m.GetEdsClusterConfig().GetEdsConfig().GetAds() == nil {
		errs = append(errs, errors.New("its assignment does not come over ADS"))
	}
	if len(m.GetTransportSocketMatches()) > 0 {
		errs = append(errs, errors.New("transport_socket_matches, which gRPC refuses"))
	}
	return errs
}

func routeErrors(m *route.RouteConfiguration) (errs []error) {
	names, domains := map[string]bool{}, map[string]bool{}
	for _, v := range m.GetVirtualHosts() {
		if names[v.GetName()] {
			errs = append(errs, fmt.Errorf("virtual host %q: twice", v.GetName()))
		}
		names[v.GetName()] = true
		for _, d := range v.GetDomains() {
			d = strings.ToLower(d)
			if domains[d] {
				errs = append(errs, fmt.Errorf("virtual host %q: domain %q occurs twice", v.GetName(), d))
			}
			domains[d] = true
		}
		if len(v.GetRoutes()) == 0 {
			errs = append(errs, fmt.Errorf("virtual host %q: no routes", v.GetName()))
		}
	}
	return errs
}

func listenerErrors(m *listener.Listener) (errs []error) {
	if (m.GetApiListener() == nil) == (m.GetAddress() == nil) {
		errs = append(errs, errors.New("want either an api_listener (gRPC) or an address (Envoy)"))
	}
	if m.GetAddress() != nil {
		if _, err := socketAddr(m.GetAddress()); err != nil {
			errs = append(errs, err)
		}
		if len(m.GetFilterChains()) == 0 && m.GetDefaultFilterChain() == nil {
			errs = append(errs, errors.New("no filter chain"))
		}
		return errs
	}
	var h hcm.HttpConnectionManager
	if err := m.GetApiListener().GetApiListener().UnmarshalTo(&h); err != nil {
		return append(errs, fmt.Errorf("api_listener: %w", err))
	}
	if h.GetRds().GetRouteConfigName() == "" || h.GetRds().GetConfigSource().GetAds() == nil {
		errs = append(errs, errors.New("its routes do not come over ADS"))
	}
	if len(h.GetHttpFilters()) == 0 {
		errs = append(errs, errors.New("no HTTP filters, of which the router must be the last"))
	}
	return errs
}
