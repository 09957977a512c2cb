package xds

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	types "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// message puts a message on the shelf, and tells.
func (s *service) message(t testing.TB, sh *shelf, typeURL, name string, m proto.Message) {
	t.Helper()
	r, err := resource(name, typeURL, m)
	if err != nil {
		t.Fatal(err)
	}
	sh.mu.Lock()
	sh.names[topic{typeURL: typeURL, key: name}] = r
	sh.mu.Unlock()
	s.server.Changed(typeURL, name)
}

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// publish makes a target that gRPC resolves, whose calls go to the addresses.
func (s *service) publish(t testing.TB, sh *shelf, target string, to ...netip.AddrPort) {
	t.Helper()
	ads := &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3, ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}
	assignment := &endpoint.ClusterLoadAssignment{ClusterName: target}
	if len(to) > 0 {
		locality := &endpoint.LocalityLbEndpoints{Locality: &core.Locality{Zone: "z"}, LoadBalancingWeight: wrapperspb.UInt32(1)}
		for _, a := range to {
			socket := &core.SocketAddress{Address: a.Addr().String(), PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(a.Port())}}
			locality.LbEndpoints = append(locality.LbEndpoints, &endpoint.LbEndpoint{HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{
				Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: socket}},
			}}})
		}
		assignment.Endpoints = append(assignment.Endpoints, locality)
	}
	s.message(t, sh, types.EndpointType, target, assignment)
	s.message(t, sh, types.ClusterType, target, &cluster.Cluster{
		Name: target, LbPolicy: cluster.Cluster_ROUND_ROBIN,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads, ServiceName: target},
	})
	s.message(t, sh, types.RouteType, target, &route.RouteConfiguration{Name: target, VirtualHosts: []*route.VirtualHost{{
		Name: "v", Domains: []string{"*"},
		Routes: []*route.Route{{
			Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{}},
			Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: target}}},
		}},
	}}})
	s.message(t, sh, types.ListenerType, target, &listener.Listener{Name: target, ApiListener: &listener.ApiListener{ApiListener: packed(t, &hcm.HttpConnectionManager{
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: ads, RouteConfigName: target}},
		HttpFilters:    []*hcm.HttpFilter{{Name: "router", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: packed(t, &router.Router{})}}},
	})}})
}

type healthy struct {
	healthpb.UnimplementedHealthServer
}

func (healthy) Check(context.Context, *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// listen serves on loopback until the test ends.
func listen(t testing.TB, register func(*grpc.Server)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gs := grpc.NewServer()
	register(gs)
	ended := make(chan error, 1)
	go func() { ended <- gs.Serve(ln) }()
	t.Cleanup(func() {
		gs.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(ln.Addr().String())
}

// An unmodified grpc-go client finds its way through listener, route, cluster
// and endpoints, follows changes, and refuses nothing.
func TestGRPCClient(t *testing.T) {
	s, sh := newService(), newShelf()
	s.server = NewServer(sh, slog.New(slog.DiscardHandler), func(ctx context.Context) (Client, context.Context, func(), error) {
		return Client{Name: "grpc", View: func(node *core.Node, _ string) (string, bool) { return node.GetId(), true }}, ctx, func() {}, nil
	}, func(typeURL string) {
		t.Errorf("the client refuses a %s", typeURL)
	})
	addr := listen(t, func(gs *grpc.Server) { discovery.RegisterAggregatedDiscoveryServiceServer(gs, s.server) })
	backend := func() netip.AddrPort {
		return listen(t, func(gs *grpc.Server) { healthpb.RegisterHealthServer(gs, healthy{}) })
	}
	one, two := backend(), backend()

	bootstrap := fmt.Sprintf(`{"xds_servers":[{"server_uri":%q,"channel_creds":[{"type":"insecure"}],"server_features":["xds_v3"]}],"node":{"id":"n"}}`, addr)
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(bootstrap))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(target string) *grpc.ClientConn {
		conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	call := func(conn *grpc.ClientConn) (netip.AddrPort, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var p peer.Peer
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&p))
		if err != nil {
			return netip.AddrPort{}, err
		}
		return netip.MustParseAddrPort(p.Addr.String()), nil
	}
	reaches := func(conn *grpc.ClientConn, want netip.AddrPort) {
		t.Helper()
		eventually(t, fmt.Sprint("calls reach ", want), func() bool {
			got, err := call(conn)
			if err != nil {
				t.Fatal(err)
			}
			return got == want
		})
	}

	s.publish(t, sh, "echo.demo:80", one)
	echo := dial("echo.demo:80")
	reaches(echo, one)
	s.publish(t, sh, "echo.demo:80", two)
	reaches(echo, two)

	// A target that is not known yet waits, and holds up no other of the same
	// stream.
	late := dial("late.demo:80")
	late.Connect()
	eventually(t, "it is asked for", func() bool {
		return s.server.index.count(topic{byName, types.ListenerType, "late.demo:80"}) == 1
	})
	s.publish(t, sh, "echo.demo:80", one)
	reaches(echo, one)
	s.publish(t, sh, "more.demo:80", two)
	reaches(dial("more.demo:80"), two)
	s.publish(t, sh, "late.demo:80", two)
	reaches(late, two)

	// What is not known for a while stays as it is, while others change.
	sh.put(types.ListenerType, "echo.demo:80?")
	s.server.Changed(types.ListenerType, "echo.demo:80")
	s.publish(t, sh, "late.demo:80", one)
	reaches(late, one)
	reaches(echo, one)

	// What is removed is gone; what is empty fails calls and comes back.
	s.publish(t, sh, "late.demo:80")
	eventually(t, "there is nobody to call", func() bool { _, err := call(late); return status.Code(err) == codes.Unavailable })
	s.publish(t, sh, "late.demo:80", two)
	eventually(t, "there is again", func() bool { got, err := call(late); return err == nil && got == two })
	s.publish(t, sh, "echo.demo:80", one)
	s.change(sh, types.ListenerType, "late.demo:80")
	eventually(t, "it is gone", func() bool { _, err := call(late); return status.Code(err) == codes.Unavailable })
	reaches(echo, one)
}
