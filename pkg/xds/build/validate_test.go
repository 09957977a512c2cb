package build

import (
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// broken returns a good resource with one thing changed.
func broken[M proto.Message](t *testing.T, good *discovery.Resource, m M, change func(M)) *discovery.Resource {
	t.Helper()
	if err := Validate(good); err != nil {
		t.Fatal(err)
	}
	if err := good.GetResource().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	change(m)
	r, err := resourceOf(good.GetName(), good.GetResource().GetTypeUrl(), m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestValidateFinds(t *testing.T) {
	made := func(r *discovery.Resource, err error) *discovery.Resource {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := func(rs []*discovery.Resource, err error) *discovery.Resource {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return rs[0]
	}
	cla := func(change func(m *endpoint.ClusterLoadAssignment)) *discovery.Resource {
		return broken(t, made(EDS(sample(6, 2))), &endpoint.ClusterLoadAssignment{}, change)
	}
	cds := func(change func(m *cluster.Cluster)) *discovery.Resource {
		return broken(t, made(CDS(GRPC, echoPort())), &cluster.Cluster{}, change)
	}
	lds := func(change func(m *listener.Listener)) *discovery.Resource {
		return broken(t, made(LDS("echo.demo:80", echoPort())), &listener.Listener{}, change)
	}
	rds := func(change func(m *route.RouteConfiguration)) *discovery.Resource {
		return broken(t, made(EnvoyRDS(80, []ServicePort{echoPort()})), &route.RouteConfiguration{}, change)
	}
	socketOf := func(m *endpoint.ClusterLoadAssignment, i int) *core.SocketAddress {
		return m.GetEndpoints()[i].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress()
	}
	inAny := func(a *anypb.Any, m proto.Message, change func()) {
		t.Helper()
		if err := a.UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		change()
		if err := a.MarshalFrom(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		r    *discovery.Resource
		want string
	}{
		{"nothing", nil, "want both"},
		{"no version", &discovery.Resource{Name: "x"}, "want both"},
		{"an unknown type", wrap("x", "type.googleapis.com/no.such.Type", nil), "no.such.Type"},
		{"another name", cla(func(m *endpoint.ClusterLoadAssignment) { m.ClusterName = "y" }), `of "y"`},
		{"an unknown field", cla(func(m *endpoint.ClusterLoadAssignment) {
			m.GetEndpoints()[0].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
		}), "nobody knows"},
		{"an address twice, in two priorities", cla(func(m *endpoint.ClusterLoadAssignment) {
			last := len(m.GetEndpoints()) - 1
			socketOf(m, last).Address = socketOf(m, 0).GetAddress()
			socketOf(m, last).PortSpecifier = socketOf(m, 0).GetPortSpecifier()
		}), "occurs twice"},
		{"a locality twice", cla(func(m *endpoint.ClusterLoadAssignment) {
			m.GetEndpoints()[1].Locality = m.GetEndpoints()[0].GetLocality()
		}), "twice in priority"},
		{"a locality without a name", cla(func(m *endpoint.ClusterLoadAssignment) { m.GetEndpoints()[0].Locality = nil }), "no name"},
		{"a locality without weight", cla(func(m *endpoint.ClusterLoadAssignment) { m.GetEndpoints()[0].LoadBalancingWeight = nil }), "no weight"},
		{"a locality without endpoints", cla(func(m *endpoint.ClusterLoadAssignment) { m.GetEndpoints()[0].LbEndpoints = nil }), "no endpoints"},
		{"a gap between priorities", cla(func(m *endpoint.ClusterLoadAssignment) {
			for _, l := range m.GetEndpoints() {
				l.Priority *= 2
			}
		}), "follows none"},
		{"no priority 0", cla(func(m *endpoint.ClusterLoadAssignment) {
			for _, l := range m.GetEndpoints() {
				l.Priority++
			}
		}), "follows none"},
		{"weights beyond 32 bits", cla(func(m *endpoint.ClusterLoadAssignment) {
			for _, l := range m.GetEndpoints()[:2] {
				l.LoadBalancingWeight = wrapperspb.UInt32(1 << 31)
			}
		}), "add up"},
		{"no address", cla(func(m *endpoint.ClusterLoadAssignment) { socketOf(m, 0).Address = "pod" }), "parse"},
		{"an address of another form", cla(func(m *endpoint.ClusterLoadAssignment) { socketOf(m, 0).Address = "::ffff:10.0.0.1" }), "canonical"},
		{"an unspecified address", cla(func(m *endpoint.ClusterLoadAssignment) { socketOf(m, 0).Address = "0.0.0.0" }), "0.0.0.0"},
		{"no port", cla(func(m *endpoint.ClusterLoadAssignment) {
			socketOf(m, 0).PortSpecifier = &core.SocketAddress_PortValue{}
		}), "port 0"},
		{"a cluster of EDS without its config", cds(func(m *cluster.Cluster) { m.EdsClusterConfig = nil }), "eds_cluster_config"},
		{"an assignment not over ADS", cds(func(m *cluster.Cluster) { m.EdsClusterConfig.EdsConfig = nil }), "ADS"},
		{"transport_socket_matches", cds(func(m *cluster.Cluster) {
			m.TransportSocketMatches = []*cluster.Cluster_TransportSocketMatch{{Name: "x"}}
		}), "gRPC refuses"},
		{"an SNI too long, in an Any", cds(func(m *cluster.Cluster) {
			var c tls.UpstreamTlsContext
			inAny(m.GetTransportSocket().GetTypedConfig(), &c, func() { c.Sni = strings.Repeat("x", 256) })
		}), "Sni"},
		{"a mistyped Any", cds(func(m *cluster.Cluster) { m.GetTransportSocket().GetTypedConfig().TypeUrl += "x" }), "UpstreamTlsContextx"},
		{"no address and no API listener", lds(func(m *listener.Listener) { m.ApiListener = nil }), "either"},
		{"no route name", lds(func(m *listener.Listener) {
			var h hcm.HttpConnectionManager
			inAny(m.GetApiListener().GetApiListener(), &h, func() { h.GetRds().RouteConfigName = "" })
		}), "routes do not come"},
		{"no router", lds(func(m *listener.Listener) {
			var h hcm.HttpConnectionManager
			inAny(m.GetApiListener().GetApiListener(), &h, func() { h.HttpFilters = nil })
		}), "router"},
		{"no filter chain", broken(t, first(GatewayLDS([]uint16{1}, false)), &listener.Listener{}, func(m *listener.Listener) { m.FilterChains = nil }), "filter chain"},
		{"no statistics' prefix, in an Any", broken(t, first(GatewayLDS([]uint16{1}, true)), &listener.Listener{}, func(m *listener.Listener) {
			m.GetFilterChains()[0].GetFilters()[1].GetTypedConfig().Value = nil
		}), "StatPrefix"},
		{"a domain twice", rds(func(m *route.RouteConfiguration) { m.GetVirtualHosts()[1].Domains = []string{"ECHO.demo"} }), "occurs twice"},
		{"a virtual host twice", rds(func(m *route.RouteConfiguration) { m.GetVirtualHosts()[1].Name = m.GetVirtualHosts()[0].GetName() }), "twice"},
		{"no routes", rds(func(m *route.RouteConfiguration) { m.GetVirtualHosts()[0].Routes = nil }), "no routes"},
	} {
		if err := Validate(c.r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %q", c.name, err, c.want)
		}
	}
}
