package build

import (
	"net/netip"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	sni "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// GatewayLDS returns the listeners of an Envoy that is a gateway, one for each
// port, serving and standby alike. The server name of a connection is the name of
// the cluster that it goes to; a service that is not exported has no cluster, so
// its connections are closed, as are those that are no TLS or name no service.
// They listen on all addresses of one IP family.
func GatewayLDS(ports []uint16, ipv6 bool) ([]*discovery.Resource, error) {
	ip := netip.IPv4Unspecified()
	if ipv6 {
		ip = netip.IPv6Unspecified()
	}
	var out []*discovery.Resource
	for _, port := range slices.Compact(slices.Sorted(slices.Values(ports))) {
		var pack packer
		// Behind sni_cluster the proxy's own cluster is never used.
		chain := tcpChain(&pack, "gateway", blackHole)
		chain.Filters = append([]*listener.Filter{{
			Name:       "envoy.filters.network.sni_cluster",
			ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack.any(&sni.SniCluster{})},
		}}, chain.Filters...)
		chain.FilterChainMatch = &listener.FilterChainMatch{
			TransportProtocol: "tls", ServerNames: []string{"*" + clusterDomain, "*" + clustersetDomain},
		}
		name := "gateway_" + strconv.Itoa(int(port))
		r, err := pack.resource(name, resource.ListenerType, &listener.Listener{
			Name: name, Address: socket(ip, port), TrafficDirection: core.TrafficDirection_INBOUND,
			ListenerFilters: []*listener.ListenerFilter{inspectTLS(&pack)},
			FilterChains:    []*listener.FilterChain{chain},
		})
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
