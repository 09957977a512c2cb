package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspector "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcp "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// outboundPort is where an Envoy takes what its workload sends, redirected there
// by the node's firewall: Istio's port, so that its rules serve.
const outboundPort = 15001

// EnvoyLDS returns the listeners of an Envoy beside a workload, as Istio's sidecar
// has them. One takes all redirected connections and hands each to the listener
// of its original destination: 0.0.0.0_PORT for ports of which some service says
// that it is HTTP, IP_PORT for the virtual addresses of others. What is nobody's
// passes through. A service that is not HTTP and has no virtual address in the
// clients' cluster has no listener: nothing would tell its connections apart.
//
// IPv6 listeners are made only where a service has such an address, since an
// Envoy on a host without IPv6 refuses them. Where two services claim one address
// and port the first by name has it.
func EnvoyLDS(ports []ServicePort) ([]*discovery.Resource, error) {
	ports = outbound(ports)
	byName := map[string]*listener.Listener{}
	add := func(l *listener.Listener) {
		if _, ok := byName[l.GetName()]; !ok {
			byName[l.GetName()] = l
		}
	}
	var pack packer
	add(virtualOutbound(&pack, "virtualOutbound", netip.AddrFrom4([4]byte{127, 0, 0, 1})))
	for _, p := range ports {
		if p.application() != opaque {
			add(httpListener(&pack, netip.IPv4Unspecified(), p.Port))
		}
		for _, ip := range p.ClusterIPs {
			if ip.Is6() {
				add(virtualOutbound(&pack, "virtualOutbound-v6", netip.IPv6Loopback()))
			}
			switch {
			case p.application() == opaque:
				add(tcpListener(&pack, p, ip))
			case ip.Is6():
				add(httpListener(&pack, netip.IPv6Unspecified(), p.Port))
			}
		}
	}
	out := make([]*discovery.Resource, 0, len(byName))
	for name, l := range byName {
		r, err := pack.resource(name, resource.ListenerType, l)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *discovery.Resource) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// outbound returns the TCP ports, sorted and each once, their virtual addresses
// each in its own form.
func outbound(ports []ServicePort) []ServicePort {
	out := slices.DeleteFunc(slices.Clone(ports), func(p ServicePort) bool { return p.Protocol != mesh.TCP })
	for i := range out {
		ips := slices.Clone(out[i].ClusterIPs)
		for j := range ips {
			ips[j] = ips[j].Unmap()
		}
		out[i].ClusterIPs = slices.DeleteFunc(ips, func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() || a.Zone() != "" })
	}
	slices.SortStableFunc(out, ServicePort.compare)
	return slices.CompactFunc(out, func(a, b ServicePort) bool { return a.compare(b) == 0 })
}

// virtualOutbound takes redirected connections. One to its own port would go in
// circles.
func virtualOutbound(pack *packer, name string, ip netip.Addr) *listener.Listener {
	loop := tcpChain(pack, blackHole, blackHole)
	loop.FilterChainMatch = &listener.FilterChainMatch{DestinationPort: wrapperspb.UInt32(outboundPort)}
	return &listener.Listener{
		Name: name, Address: socket(ip, outboundPort), TrafficDirection: core.TrafficDirection_OUTBOUND,
		UseOriginalDst:     wrapperspb.Bool(true),
		FilterChains:       []*listener.FilterChain{loop},
		DefaultFilterChain: tcpChain(pack, passthrough, passthrough),
	}
}

// httpListener routes the HTTP of a port by host name. Whatever else goes to the
// port, of hosts that are not the mesh's, passes through.
func httpListener(pack *packer, ip netip.Addr, port uint16) *listener.Listener {
	number := strconv.Itoa(int(port))
	name := ip.String() + "_" + number
	manager := &hcm.HttpConnectionManager{
		StatPrefix:        "outbound_" + name,
		RouteSpecifier:    &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: overADS(), RouteConfigName: number}},
		HttpFilters:       []*hcm.HttpFilter{routerFilter(pack)},
		StreamIdleTimeout: durationpb.New(0), // its default ends quiet streams after 5 minutes
		UpgradeConfigs:    []*hcm.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
	return &listener.Listener{
		Name: name, Address: socket(ip, port), TrafficDirection: core.TrafficDirection_OUTBOUND,
		BindToPort: wrapperspb.Bool(false),
		ListenerFilters: []*listener.ListenerFilter{
			inspectTLS(pack),
			{
				Name:       "envoy.filters.listener.http_inspector",
				ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: pack.any(&httpinspector.HttpInspector{})},
			},
		},
		// The inspectors wait for a first byte, which some protocols leave to the
		// server.
		ContinueOnListenerFiltersTimeout: true,
		FilterChains: []*listener.FilterChain{{
			FilterChainMatch: &listener.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}},
			Filters: []*listener.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack.any(manager)},
			}},
		}},
		DefaultFilterChain: tcpChain(pack, passthrough, passthrough),
	}
}

// tcpListener passes the bytes for a virtual address on to the service's pods.
func tcpListener(pack *packer, p ServicePort, ip netip.Addr) *listener.Listener {
	return &listener.Listener{
		Name:    ip.String() + "_" + strconv.Itoa(int(p.Port)),
		Address: socket(ip, p.Port), TrafficDirection: core.TrafficDirection_OUTBOUND,
		BindToPort:   wrapperspb.Bool(false),
		FilterChains: []*listener.FilterChain{tcpChain(pack, p.Name(Envoy), p.Name(Envoy))},
	}
}

func inspectTLS(pack *packer) *listener.ListenerFilter {
	return &listener.ListenerFilter{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: pack.any(&tlsinspector.TlsInspector{})},
	}
}

// tcpChain passes bytes on to a cluster, trying another pod where one does not
// accept.
func tcpChain(pack *packer, stat, cluster string) *listener.FilterChain {
	return &listener.FilterChain{Filters: []*listener.Filter{{
		Name: "envoy.filters.network.tcp_proxy",
		ConfigType: &listener.Filter_TypedConfig{TypedConfig: pack.any(&tcp.TcpProxy{
			StatPrefix: stat, ClusterSpecifier: &tcp.TcpProxy_Cluster{Cluster: cluster},
			MaxConnectAttempts: wrapperspb.UInt32(3),
		})},
	}}}
}

func socket(ip netip.Addr, port uint16) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: ip.String(), PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}
