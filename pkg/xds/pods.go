package xds

import (
	"fmt"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	peerv1 "github.com/flatmesh/flatmesh/api/peer/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// PodsType is the type URL of what an agent is told of its own node's pods.
const PodsType = "type.googleapis.com/flatmesh.peer.v1.Pods"

// PodsResource returns the pods of a node as a resource named for the node.
func PodsResource(node mesh.NodeID, pods []mesh.Pod) (*discovery.Resource, error) {
	m := &peerv1.Pods{Node: node.String()}
	for _, p := range pods {
		m.Pods = append(m.Pods, &peerv1.Pod{
			Namespace: p.Namespace, Name: p.Name, Uid: p.UID, ServiceAccount: p.ServiceAccount, Addresses: texts(p.Addresses),
		})
	}
	return resource(node.String(), PodsType, m)
}

// ParsePods reads what PodsResource made.
func ParsePods(r *discovery.Resource) (mesh.NodeID, []mesh.Pod, error) {
	var m peerv1.Pods
	if err := unmarshal(r, PodsType, &m); err != nil {
		return mesh.NodeID{}, nil, err
	}
	node, err := mesh.ParseNodeID(m.GetNode())
	if err != nil {
		return mesh.NodeID{}, nil, fmt.Errorf("pods %s: %w", r.GetName(), err)
	}
	if node.String() != r.GetName() {
		return mesh.NodeID{}, nil, fmt.Errorf("pods %s: the resource is of %s", r.GetName(), node)
	}
	out := make([]mesh.Pod, 0, len(m.GetPods()))
	for _, p := range m.GetPods() {
		addrs, err := parseAll(p.GetAddresses(), parseAddr)
		if err != nil {
			return mesh.NodeID{}, nil, fmt.Errorf("pods %s: %s/%s: %w", r.GetName(), p.GetNamespace(), p.GetName(), err)
		}
		// They become the names of a folder.
		if mesh.ValidateClusterName(p.GetNamespace()) != nil || mesh.ValidateNodeName(p.GetName()) != nil {
			return mesh.NodeID{}, nil, fmt.Errorf("pods %s: pod %q/%q has no name that Kubernetes would accept", r.GetName(), p.GetNamespace(), p.GetName())
		}
		out = append(out, mesh.Pod{
			Namespace: p.GetNamespace(), Name: p.GetName(), UID: p.GetUid(), Node: node.Name, ServiceAccount: p.GetServiceAccount(), Addresses: addrs,
		})
	}
	return node, out, nil
}
