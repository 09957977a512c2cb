package relay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// Explanation is what the node's clients get now of a service port, or would get:
// for `agent path`. Its JSON fields are stable.
type Explanation struct {
	Kind build.Kind `json:"kind"`
	// Name is the assignment's.
	Name    string           `json:"name"`
	Service mesh.ServiceName `json:"service"`
	Port    uint16           `json:"port"`
	// Clients counts the streams that subscribe to it.
	Clients int `json:"clients"`
	// Answer is "found", "missing" where the control plane has said that there is no
	// such port, or "pending" where it has said nothing yet.
	Answer    string         `json:"answer"`
	Endpoints []EndpointPath `json:"endpoints"`
	Gateways  []GatewayUse   `json:"gateways"`
}

// EndpointPath is a pod that the control plane calls direct for this node.
type EndpointPath struct {
	Address netip.AddrPort `json:"address"`
	Node    mesh.NodeID    `json:"node"`
	Region  string         `json:"region,omitempty"`
	Zone    string         `json:"zone,omitempty"`
	// Reason is why it is direct: local, native or tunnel.
	Reason mesh.Reason `json:"reason"`
	// Demoted: this node's tunnel cannot be used, so that clients have the pod
	// through its cluster's gateways, or not at all where there are none.
	Demoted bool `json:"demoted"`
}

// GatewayUse is what goes through the gateways of another cluster.
type GatewayUse struct {
	Cluster string `json:"cluster"`
	// Pods counts those that only the gateways reach, those demoted here included.
	Pods    int              `json:"pods"`
	Serving []netip.AddrPort `json:"serving"`
	// Standby: the gateways stand by for pods that are direct, at these addresses.
	Standby          bool             `json:"standby"`
	StandbyAddresses []netip.AddrPort `json:"standbyAddresses"`
	// Reason is why there are no gateways.
	Reason mesh.Reason `json:"reason,omitempty"`
}

// Explain says what the node's clients get of a service: by NAMESPACE/NAME, by any
// of its host names, with or without a port, by its cluster's name, or, by the
// address of a pod, of every service that has that pod direct. Nothing is returned
// for what no client of the node has asked for.
func (r *Relay) Explain(target string) ([]Explanation, error) {
	if addr, err := netip.ParseAddr(strings.Trim(target, "[]")); err == nil {
		all, err := r.explain(func(string) bool { return true })
		return slices.DeleteFunc(all, func(e Explanation) bool {
			return !slices.ContainsFunc(e.Endpoints, func(p EndpointPath) bool { return p.Address.Addr() == addr.Unmap() })
		}), err
	}
	service, port, err := parseTarget(target)
	if err != nil {
		return nil, err
	}
	return r.explain(func(name string) bool {
		s, p, err := parseAssignmentName(name)
		return err == nil && s == service && (port == 0 || p == port)
	})
}

// parseTarget reads a service and a port, 0 for any.
func parseTarget(target string) (mesh.ServiceName, uint16, error) {
	if s, err := mesh.ParseServiceName(target); err == nil {
		return s, 0, nil
	}
	if s, port, err := parseAssignmentName(target); err == nil {
		return s, port, nil
	}
	// Which of the clusters' services clusterset.local names does not matter here.
	s, port, _, err := build.ParseListenerName(target, false)
	if err != nil {
		return mesh.ServiceName{}, 0, fmt.Errorf("%w; want NAMESPACE/SERVICE, a host name of a service with or without :PORT, or the address of a pod", err)
	}
	return s, port, nil
}

func parseAssignmentName(name string) (mesh.ServiceName, uint16, error) {
	port, host, err := build.ParseClusterName(name)
	if err != nil {
		return mesh.ServiceName{}, 0, err
	}
	s, _, err := build.ParseHost(host, false)
	return s, port, err
}

// explain explains the assignments whose names are picked.
func (r *Relay) explain(pick func(name string) bool) ([]Explanation, error) {
	var out []Explanation
	for _, e := range r.cache.named(resource.EndpointType, pick) {
		x := Explanation{
			Kind: e.kind, Name: e.name, Clients: e.users, Answer: e.answer.String(),
			Endpoints: []EndpointPath{}, Gateways: []GatewayUse{},
		}
		x.Service, x.Port, _ = parseAssignmentName(e.name) // others are shown as they are
		if e.answer == xds.Found {
			a, err := build.ParseEDS(e.resource)
			if err != nil {
				return nil, err
			}
			x.fill(a, r.cache.isDown)
		}
		out = append(out, x)
	}
	return out, nil
}

func (x *Explanation) fill(a build.Assignment, down func(mesh.NodeID) bool) {
	for _, d := range a.Direct {
		x.Endpoints = append(x.Endpoints, EndpointPath{
			Address: d.Addr, Node: d.Node, Region: d.Region, Zone: d.Zone, Reason: d.Reason,
			Demoted: d.Reason == mesh.ReasonTunnel && down(d.Node),
		})
	}
	for _, m := range a.Demote(down).Remote {
		x.Gateways = append(x.Gateways, GatewayUse{
			Cluster: m.Cluster, Pods: m.Pods, Serving: m.Serving, Standby: m.Standby, StandbyAddresses: m.StandbyAddrs, Reason: m.Reason,
		})
	}
}

// isDown reports whether a node's pods are demoted.
func (c *cache) isDown(n mesh.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tunnels.down(n)
}
