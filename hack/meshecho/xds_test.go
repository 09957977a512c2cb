package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/flatmesh/flatmesh/internal/testcert"
)

const (
	sni    = "outbound_.80_._.echo.demo.svc.cluster.local"
	target = "echo.demo:80"
)

// A pod's environment and files suffice for xds:///echo.demo:80, with mTLS, a
// server name, and the endpoint's port from the assignment.
func TestXDS(t *testing.T) {
	ca, pod, client := testcert.New(t), t.TempDir(), t.TempDir()
	ca.Write(pod, "spiffe://fm.local/ns/demo/sa/echo")
	ca.Write(client, "spiffe://fm.local/ns/demo/sa/client")
	e := serve(t, "--mtls", "--secrets", pod)
	await(t, func() bool {
		calls, _, _ := call(t, e.grpc, "--secrets", client)
		return calls[0].OK
	})
	folder := t.TempDir()
	socket := filepath.Join(folder, "xds.sock")
	serveXDS(t, socket, e.grpc)
	bootstrap := filepath.Join(folder, "bootstrap.json")
	text := fmt.Sprintf(`{
		"xds_servers": [{"server_uri": "unix://%s", "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "client"},
		"certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
			"certificate_file": "%[2]s/tls.crt", "private_key_file": "%[2]s/tls.key", "ca_certificate_file": "%[2]s/ca.crt", "refresh_interval": "1s"}}}
	}`, socket, client)
	if err := os.WriteFile(bootstrap, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "call", "-o", "json", "xds:///"+target)
	cmd.Env = append(cmd.Env, "GRPC_XDS_BOOTSTRAP="+bootstrap, "GRPC_EXPERIMENTAL_XDS_SNI=true")
	out, err := cmd.Output()
	calls, _ := parse(t, out)
	if err != nil || !calls[0].OK {
		t.Fatalf("%v, %s", err, out)
	}
	if c := calls[0]; c.ClientID != "spiffe://fm.local/ns/demo/sa/client" || c.ServerID != "spiffe://fm.local/ns/demo/sa/echo" ||
		c.ServerName != sni || c.Peer != e.grpc {
		t.Errorf("%+v", c)
	}
}

// serveXDS serves one service with one endpoint.
func serveXDS(t *testing.T, socket, endpoint string) {
	t.Helper()
	to := netip.MustParseAddrPort(endpoint)
	const name = "outbound|80||echo.demo.svc.cluster.local"
	ads := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	routes := &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}},
	}}}}}
	manager := &hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes},
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: wrap(t, &routerv3.Router{})}}},
	}
	provider := &tlsv3.CertificateProviderPluginInstance{InstanceName: "default"}
	security := &tlsv3.UpstreamTlsContext{Sni: sni, CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateProviderInstance: provider,
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{CaCertificateProviderInstance: provider},
		},
	}}
	snapshot, err := cache.NewSnapshot("1", map[resource.Type][]types.Resource{
		resource.ListenerType: {&listenerv3.Listener{Name: target, ApiListener: &listenerv3.ApiListener{ApiListener: wrap(t, manager)}}},
		resource.ClusterType: {&clusterv3.Cluster{
			Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads, ServiceName: name},
			TransportSocket: &corev3.TransportSocket{
				Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: wrap(t, security)},
			},
		}},
		resource.EndpointType: {&endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			Locality: &corev3.Locality{Region: "r"}, LoadBalancingWeight: wrapperspb.UInt32(1),
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: to.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(to.Port())},
				}}},
			}}}},
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	store := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	if err := store.SetSnapshot(t.Context(), "client", snapshot); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	ctx, cancel := context.WithCancel(t.Context())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(ctx, store, nil))
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(func() { cancel(); g.Stop() })
}

func wrap(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
