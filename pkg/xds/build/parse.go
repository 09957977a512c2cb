package build

import (
	"fmt"
	"net/netip"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// ParseEDS reads what EDS made: the normal form of its Assignment. Of one that
// gives nothing only the name comes back, as there is nothing left to demote.
func ParseEDS(r *discovery.Resource) (Assignment, error) {
	if got := r.GetResource().GetTypeUrl(); got != resource.EndpointType {
		return Assignment{}, fmt.Errorf("resource %q: type %q, want %q", r.GetName(), got, resource.EndpointType)
	}
	var m endpoint.ClusterLoadAssignment
	if err := proto.Unmarshal(r.GetResource().GetValue(), &m); err != nil {
		return Assignment{}, fmt.Errorf("assignment %q: %w", r.GetName(), err)
	}
	if m.GetClusterName() != r.GetName() {
		return Assignment{}, fmt.Errorf("assignment %q: the resource is of %q", r.GetName(), m.GetClusterName())
	}
	a := Assignment{Name: m.GetClusterName()}
	for i, l := range m.GetEndpoints() {
		if i == 0 {
			if err := parseRemotes(&a, ours(l)); err != nil {
				return Assignment{}, fmt.Errorf("assignment %q: %w", a.Name, err)
			}
		}
		if l.GetLocality().GetSubZone() != "" {
			continue // of a gateway, which Remote says too
		}
		for _, e := range l.GetLbEndpoints() {
			d, err := parseDirect(l, e)
			if err != nil {
				return Assignment{}, fmt.Errorf("assignment %q: %w", a.Name, err)
			}
			a.Direct = append(a.Direct, d)
		}
	}
	return a.Normal(), nil
}

func parseDirect(l *endpoint.LocalityLbEndpoints, e *endpoint.LbEndpoint) (Direct, error) {
	socket := e.GetEndpoint().GetAddress().GetSocketAddress()
	addr, err := netip.ParseAddr(socket.GetAddress())
	if err != nil {
		return Direct{}, fmt.Errorf("address of a pod: %w", err)
	}
	if socket.GetPortValue() > 65535 {
		return Direct{}, fmt.Errorf("pod %v: port %d", addr, socket.GetPortValue())
	}
	if l.GetPriority() > maxLevel {
		return Direct{}, fmt.Errorf("pod %v: priority %d is more than %d", addr, l.GetPriority(), maxLevel)
	}
	fields := ours(e)
	cluster, node, ok := strings.Cut(fields[keyNode].GetStringValue(), "/")
	if !ok {
		return Direct{}, fmt.Errorf("pod %v: its metadata names no node", addr)
	}
	return Direct{
		Addr: netip.AddrPortFrom(addr, uint16(socket.GetPortValue())),
		Node: mesh.NodeID{Cluster: cluster, Name: node}, Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone(),
		Reason: mesh.Reason(fields[keyPath].GetStringValue()), Priority: uint8(l.GetPriority()),
	}, nil
}

func parseRemotes(a *Assignment, fields map[string]*structpb.Value) error {
	a.GatewayPriority = uint8(min(max(fields[keyLevel].GetNumberValue(), 0), maxLevel+1))
	for _, v := range fields[keyRemotes].GetListValue().GetValues() {
		f := v.GetStructValue().GetFields()
		r := Remote{
			Cluster: f[keyCluster].GetStringValue(), Pods: int(min(f[keyPods].GetNumberValue(), maxPods)),
			Standby: f[keyStandby].GetBoolValue(), Reason: mesh.Reason(f[keyReason].GetStringValue()),
		}
		var err error
		if r.Serving, err = parseAddrs(f[keyServing]); err != nil {
			return fmt.Errorf("gateways of %q: %w", r.Cluster, err)
		}
		if r.StandbyAddrs, err = parseAddrs(f[keyStandbys]); err != nil {
			return fmt.Errorf("standby gateways of %q: %w", r.Cluster, err)
		}
		a.Remote = append(a.Remote, r)
	}
	return nil
}

func parseAddrs(v *structpb.Value) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, x := range v.GetListValue().GetValues() {
		a, err := netip.ParseAddrPort(x.GetStringValue())
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// ours returns the fields of our metadata.
func ours(m interface {
	GetMetadata() *core.Metadata
}) map[string]*structpb.Value {
	return m.GetMetadata().GetFilterMetadata()[metadataKey].GetFields()
}
