package relay

import (
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// KindKey is the key in a node's metadata that says what kind of client it is. The
// relay writes it into what it tells the control plane of itself.
const KindKey = "flatmesh.io/kind"

// kinds are the kinds of client that are served. A gateway is the control plane's
// own client.
var kinds = [...]build.Kind{build.GRPC, build.Envoy}

// types are the types that are relayed.
var types = [...]string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType, resource.SecretType}

// kindOf tells a client's kind by what it says of itself in its first request;
// where it says nothing, by what it asks for: only Envoys ask for everything.
func kindOf(node *core.Node, wildcard bool) (build.Kind, error) {
	if v, ok := node.GetMetadata().GetFields()[KindKey]; ok {
		for _, k := range kinds {
			if v.GetStringValue() == string(k) {
				return k, nil
			}
		}
		return "", status.Errorf(codes.InvalidArgument, "node metadata %s is %.50q: want %q or %q", KindKey, v.GetStringValue(), kinds[0], kinds[1])
	}
	agent := strings.ToLower(node.GetUserAgentName())
	switch {
	case strings.HasPrefix(agent, "envoy"):
		return build.Envoy, nil
	case strings.HasPrefix(agent, "grpc"):
		return build.GRPC, nil
	case wildcard:
		return build.Envoy, nil
	default:
		return build.GRPC, nil
	}
}

// listsAll reports whether to name nothing of a type once meant everything of it
// (Envoy's legacy wildcard), as pkg/xds has it.
func listsAll(typeURL string) bool {
	return typeURL == resource.ListenerType || typeURL == resource.ClusterType
}
