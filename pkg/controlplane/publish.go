package controlplane

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// published remembers which sets are in the cache, so that those of clusters
// and nodes that are gone are dropped.
type published map[xds.SetKey]bool

// peerSet, clusterSet and nodeSet name the sets that agents see: one of peers
// for all agents of a cluster, one of each node's own.
func peerSet(cluster string) xds.SetKey {
	return xds.SetKey{TypeURL: xds.PeerType, View: cluster}
}

func clusterSet(cluster string) xds.SetKey {
	return xds.SetKey{TypeURL: xds.ClusterConfigType, View: cluster}
}

func nodeSet(node mesh.NodeID) xds.SetKey {
	return xds.SetKey{TypeURL: xds.NodeConfigType, View: node.String()}
}

// publish brings the cache in line with t and returns how many resources that
// changed.
func (p *published) publish(cache *xds.Cache, t mesh.Topology) (int, error) {
	next := published{}
	changed := 0
	replace := func(k xds.SetKey, rs []*discovery.Resource) {
		next[k] = true
		changed += cache.Replace(k, rs)
	}
	shared := sharedPeers{}
	for _, c := range t.Clusters {
		peers, err := shared.resources(mesh.Peers(t, c.Name))
		if err != nil {
			return changed, err
		}
		replace(peerSet(c.Name), peers)
		cfg, _ := mesh.ClusterConfigOf(t, c.Name)
		r, err := xds.ClusterConfigResource(cfg)
		if err != nil {
			return changed, err
		}
		replace(clusterSet(c.Name), []*discovery.Resource{r})
		for _, n := range mesh.NodeConfigs(t, c.Name) {
			r, err := xds.NodeConfigResource(n)
			if err != nil {
				return changed, err
			}
			replace(nodeSet(n.Node), []*discovery.Resource{r})
		}
	}
	for k := range *p {
		if !next[k] {
			cache.Drop(k)
		}
	}
	*p = next
	return changed, nil
}

// sharedPeers makes the resource of each peer once for all clusters of one
// Topology: they see the same node alike but for the families that are barred.
type sharedPeers map[sharedPeer]*discovery.Resource

type sharedPeer struct {
	node     mesh.NodeID
	families int
}

func (s sharedPeers) resources(peers []mesh.Peer) ([]*discovery.Resource, error) {
	out := make([]*discovery.Resource, 0, len(peers))
	for _, p := range peers {
		k := sharedPeer{p.Node, familyMask(p.Has)}
		if s[k] == nil {
			r, err := xds.PeerResource(p)
			if err != nil {
				return nil, err
			}
			s[k] = r
		}
		out = append(out, s[k])
	}
	return out, nil
}
