package build

import (
	"fmt"
	"math"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	http "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// connectTimeout is Envoy's for one pod: a first lost SYN is sent again after a
// second. gRPC has its own.
const connectTimeout = 2 * time.Second

// CDS returns the cluster that clients of a kind have of a port.
func CDS(kind Kind, p ServicePort) (*discovery.Resource, error) {
	var pack packer
	name := p.Name(kind)
	c := &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: overADS()},
		LbPolicy:             cluster.Cluster_ROUND_ROBIN,
		CircuitBreakers:      unlimited(),
		OutlierDetection:     outliers(kind),
	}
	if kind != GRPC {
		c.ConnectTimeout = durationpb.New(connectTimeout)
		// Without it Envoy gives each endpoint the same, and a gateway's port as much
		// as a pod. gRPC always weighs localities.
		c.CommonLbConfig = &cluster.Cluster_CommonLbConfig{
			LocalityConfigSpecifier: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
				LocalityWeightedLbConfig: &cluster.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
			},
		}
	}
	if kind == Envoy {
		c.TypedExtensionProtocolOptions = protocolOptions(&pack, p.application())
	}
	// A gateway passes the client's TLS on: it holds no keys.
	if p.TLS && kind != Gateway {
		socket, err := transportSocket(&pack, kind, p)
		if err != nil {
			return nil, fmt.Errorf("cluster %s: %w", name, err)
		}
		c.TransportSocket = socket
	}
	return pack.resource(name, resource.ClusterType, c)
}

func overADS() *core.ConfigSource {
	return &core.ConfigSource{
		ResourceApiVersion:    core.ApiVersion_V3,
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
	}
}

// unlimited lifts the limits that clients have by default: gRPC 1024 concurrent
// requests a cluster (gRFC A32), Envoy 1024 connections and requests and 3
// retries. A mesh that drops requests which plain clients would send is a
// surprise, and the limits that would be right are the service's own.
func unlimited() *cluster.CircuitBreakers {
	most := wrapperspb.UInt32(math.MaxUint32)
	return &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
		MaxConnections: most, MaxPendingRequests: most, MaxRequests: most, MaxRetries: most,
	}}}
}

// outliers returns when a client leaves out an endpoint that fails by its own
// experience. It is for what no probe of a tunnel sees: a pod that froze, or a
// gateway that accepts and never answers.
//
// gRPC (gRFC A50) counts every status but OK as a failure, NOT_FOUND too, so only
// endpoints that fail every single call are left out, on enough calls, and only
// next to another one with as many. At most half of them go, so that a client
// whose calls all fail for their own sake still reaches the service. Ejection by
// success rate is off: it needs five endpoints to see one that is dead.
//
// Envoy counts what a gateway would answer in an endpoint's place (502, 503, 504,
// and connections that fail), which is the better measure.
func outliers(kind Kind) *cluster.OutlierDetection {
	o := &cluster.OutlierDetection{
		Interval:             durationpb.New(2 * time.Second),
		BaseEjectionTime:     durationpb.New(10 * time.Second),
		MaxEjectionTime:      durationpb.New(time.Minute),
		MaxEjectionPercent:   wrapperspb.UInt32(50),
		EnforcingSuccessRate: wrapperspb.UInt32(0),
	}
	if kind == GRPC {
		o.EnforcingFailurePercentage = wrapperspb.UInt32(100)
		o.FailurePercentageThreshold = wrapperspb.UInt32(99)
		o.FailurePercentageMinimumHosts = wrapperspb.UInt32(2)
		o.FailurePercentageRequestVolume = wrapperspb.UInt32(10)
		return o
	}
	o.EnforcingConsecutive_5Xx = wrapperspb.UInt32(0)
	o.ConsecutiveGatewayFailure = wrapperspb.UInt32(5)
	o.EnforcingConsecutiveGatewayFailure = wrapperspb.UInt32(100)
	return o
}

// protocolOptions says which HTTP an Envoy speaks to the pods.
func protocolOptions(pack *packer, app application) map[string]*anypb.Any {
	explicit := &http.HttpProtocolOptions_ExplicitHttpConfig{}
	switch app {
	case http1:
		explicit.ProtocolConfig = &http.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &core.Http1ProtocolOptions{}}
	case http2:
		explicit.ProtocolConfig = &http.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &core.Http2ProtocolOptions{}}
	default:
		return nil
	}
	return map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack.any(&http.HttpProtocolOptions{
			UpstreamProtocolOptions: &http.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
		}),
	}
}

// The clusters of what is not the mesh's own: passed on to where it was going, or
// nowhere.
const (
	passthrough = "PassthroughCluster"
	blackHole   = "BlackHoleCluster"
)

// FixedClusters returns the clusters that all clients of a kind have besides
// those of services.
func FixedClusters(kind Kind) ([]*discovery.Resource, error) {
	hole := &cluster.Cluster{
		Name: blackHole, ConnectTimeout: durationpb.New(connectTimeout),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
	}
	through := &cluster.Cluster{
		Name: passthrough, ConnectTimeout: durationpb.New(connectTimeout),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST},
		LbPolicy:             cluster.Cluster_CLUSTER_PROVIDED, CircuitBreakers: unlimited(),
	}
	var all []*cluster.Cluster
	switch kind {
	case Envoy:
		all = []*cluster.Cluster{hole, through}
	case Gateway:
		all = []*cluster.Cluster{hole}
	case GRPC:
	}
	var out []*discovery.Resource
	for _, c := range all {
		r, err := resourceOf(c.GetName(), resource.ClusterType, c)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
