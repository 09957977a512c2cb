package build

import (
	"fmt"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// LDS returns the listener by which a gRPC client finds a port (gRFC A27). Its
// name is what the client asked for, in the client's own spelling.
func LDS(name string, p ServicePort) (*discovery.Resource, error) {
	var pack packer
	manager := &hcm.HttpConnectionManager{
		RouteSpecifier: &hcm.HttpConnectionManager_Rds{Rds: &hcm.Rds{ConfigSource: overADS(), RouteConfigName: p.Name(GRPC)}},
		HttpFilters:    []*hcm.HttpFilter{routerFilter(&pack)},
		StatPrefix:     "outbound", // Envoy's definition demands one
	}
	return pack.resource(name, resource.ListenerType, &listener.Listener{
		Name: name, ApiListener: &listener.ApiListener{ApiListener: pack.any(manager)},
	})
}

// routerFilter is the last HTTP filter, which gRPC demands too (gRFC A39).
func routerFilter(pack *packer) *hcm.HttpFilter {
	return &hcm.HttpFilter{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: pack.any(&router.Router{})},
	}
}

// RDS returns the routes of a port for gRPC clients: all to its one cluster. They
// are shared by all of the service's names.
func RDS(p ServicePort) (*discovery.Resource, error) {
	name := p.Name(GRPC)
	action := &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: name}}
	if p.Retry {
		action.RetryPolicy = retryPolicy("unavailable")
	}
	r, err := resourceOf(name, resource.RouteType, &route.RouteConfiguration{
		Name: name,
		VirtualHosts: []*route.VirtualHost{{
			Name: p.hostPort(), Domains: []string{"*"}, Routes: []*route.Route{everything(action)},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	return r, nil
}

func everything(action *route.RouteAction) *route.Route {
	return &route.Route{
		Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_Route{Route: action},
	}
}

// retryPolicy tries twice more: a first retry may meet a second connection that
// is just being reset with the same path. The first pause is long enough for a
// client to have noticed the reset, and the last is well within what a switch of
// a path takes.
func retryPolicy(on string) *route.RetryPolicy {
	return &route.RetryPolicy{
		RetryOn:    on,
		NumRetries: wrapperspb.UInt32(2),
		RetryBackOff: &route.RetryPolicy_RetryBackOff{
			BaseInterval: durationpb.New(25 * time.Millisecond),
			MaxInterval:  durationpb.New(250 * time.Millisecond),
		},
	}
}
