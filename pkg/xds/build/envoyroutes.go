package build

import (
	"strconv"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previous "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// EnvoyRDS returns the routes for one port number of an Envoy beside a workload,
// named by the number: by all host names and virtual addresses of those of the
// services that have the port and say that it is HTTP. Another host passes
// through. Each domain occurs once, or Envoy would refuse all of them: where two
// services claim one the first by name has it.
func EnvoyRDS(number uint16, ports []ServicePort) (*discovery.Resource, error) {
	name := strconv.Itoa(int(number))
	var pack packer
	config := &route.RouteConfiguration{Name: name, IgnorePortInHostMatching: true}
	taken := map[string]bool{}
	for _, p := range outbound(ports) {
		if p.Port != number || p.application() == opaque {
			continue
		}
		var domains []string
		for _, d := range p.domains() {
			if !taken[d] {
				taken[d] = true
				domains = append(domains, d)
			}
		}
		config.VirtualHosts = append(config.VirtualHosts, &route.VirtualHost{
			Name: p.hostPort(), Domains: domains, Routes: []*route.Route{everything(envoyAction(&pack, p.Name(Envoy), p.Retry))},
		})
	}
	config.VirtualHosts = append(config.VirtualHosts, &route.VirtualHost{
		Name: "passthrough", Domains: []string{"*"}, Routes: []*route.Route{everything(envoyAction(&pack, passthrough, false))},
	})
	return pack.resource(name, resource.RouteType, config)
}

// domains returns the Host headers that mean the port's service.
func (p ServicePort) domains() []string {
	out := Aliases(p.Service, p.Scope)
	for _, ip := range p.ClusterIPs {
		if ip.Is6() {
			out = append(out, "["+ip.String()+"]")
		} else {
			out = append(out, ip.String())
		}
	}
	return out
}

func envoyAction(pack *packer, cluster string, retry bool) *route.RouteAction {
	action := &route.RouteAction{
		ClusterSpecifier: &route.RouteAction_Cluster{Cluster: cluster},
		Timeout:          durationpb.New(0), // Envoy's default ends every request after 15 s
	}
	if retry {
		action.RetryPolicy = retryPolicy("unavailable,connect-failure,refused-stream")
		action.RetryPolicy.RetryHostPredicate = []*route.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: pack.any(&previous.PreviousHostsPredicate{})},
		}}
		action.RetryPolicy.HostSelectionRetryMaxAttempts = 5
	}
	return action
}
