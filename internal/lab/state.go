package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// root holds a folder for each lab of the machine. It is on a tmpfs: a lab does
// not survive a reboot, and neither should what is known of it.
const root = "/run/flatmesh-lab"

// state is what a lab's folder says of it. Everything else, such as which
// processes run, is read from the machine when it is asked for.
type state struct {
	Version    int            `json:"version"`
	Name       string         `json:"name"`
	Bin        string         `json:"bin"`
	NoAgents   bool           `json:"noAgents"`
	AgentFlags []string       `json:"agentFlags,omitempty"`
	Clusters   []clusterState `json:"clusters"`
	Services   []serviceState `json:"services"`
}

// clusterState is a cluster with what must not change while it exists.
type clusterState struct {
	Cluster
	// Index, from 1, gives the range of the nodes' addresses.
	Index int `json:"index"`
	// Router, from 1, is the same for the clusters of one network.
	Router int `json:"router"`
	// NodeBits holds the length of a node's part for each of PodCIDRs.
	NodeBits []int `json:"nodeBits"`
	// Numbers are those of the nodes that exist, ascending.
	Numbers []int `json:"numbers"`
	// GatewayNumbers are those of the gateways that exist, ascending.
	GatewayNumbers []int `json:"gatewayNumbers,omitempty"`
	// Pods holds the pods that exist, by their names in Kubernetes.
	Pods map[string]podState `json:"pods"`
}

const stateVersion = 2

// topology returns what the state says as a Topology, to be checked together
// with what is to be added.
func (s *state) topology() Topology {
	var t Topology
	for _, c := range s.Clusters {
		c.Gateways = len(c.GatewayNumbers)
		t.Clusters = append(t.Clusters, c.Cluster)
	}
	for _, sv := range s.Services {
		t.Services = append(t.Services, sv.Service)
	}
	return t
}

// add takes up a valid cluster, with nodes n1 to nN. The services that it is to
// have come first.
func (s *state) add(c Cluster) error {
	cs := clusterState{Cluster: c, Pods: map[string]podState{}}
	for _, p := range c.PodCIDRs {
		b, err := nodeBits(p, c.Nodes, c.PodsPerNode)
		if err != nil {
			return err
		}
		cs.NodeBits = append(cs.NodeBits, b)
	}
	for k := range c.Nodes {
		cs.Numbers = append(cs.Numbers, k+1)
	}
	for k := range c.Gateways {
		cs.GatewayNumbers = append(cs.GatewayNumbers, k+1)
	}
	for _, n := range cs.nodes() {
		s.addPods(n)
	}
	cs.Index = lowestFree(s.Clusters, func(o clusterState) int { return o.Index })
	cs.Router = lowestFree(s.Clusters, func(o clusterState) int { return o.Router })
	for _, o := range s.Clusters {
		if o.Network == c.Network {
			cs.Router = o.Router
		}
	}
	s.Clusters = append(s.Clusters, cs)
	return nil
}

func lowestFree(cs []clusterState, number func(clusterState) int) int {
	n := 1
	for slices.ContainsFunc(cs, func(c clusterState) bool { return number(c) == n }) {
		n++
	}
	return n
}

// remove forgets a cluster, and the services that were in it alone.
func (s *state) remove(cluster string) {
	s.Clusters = slices.DeleteFunc(s.Clusters, func(c clusterState) bool { return c.Name == cluster })
	s.Services = slices.DeleteFunc(s.Services, func(sv serviceState) bool { return slices.Equal(sv.Clusters, []string{cluster}) })
	for i := range s.Services {
		sv := &s.Services[i]
		sv.Clusters = slices.DeleteFunc(sv.Clusters, func(c string) bool { return c == cluster })
	}
}

// nodeRanges are those of the families that the cluster has.
func (c *clusterState) nodeRanges() []netip.Prefix {
	return slices.DeleteFunc(nodeRanges(c.Index), func(r netip.Prefix) bool {
		return !slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == r.Addr().Is4() })
	})
}

func labDir(name string) string    { return filepath.Join(root, name) }
func statePath(name string) string { return filepath.Join(labDir(name), "state.json") }

func loadState(name string) (*state, error) {
	if err := validateName(name); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(statePath(name))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(labDir(name)); err == nil {
			return nil, fmt.Errorf("lab %s is being made, or was left half-made (then run `lab down --name %s`)", name, name)
		}
		return nil, fmt.Errorf("there is no lab %s (run `lab up`)", name)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, checkRoot()
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of lab %s: %w", name, err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged; run `lab down --name %s`: %w", statePath(name), name, err)
	}
	if s.Version != stateVersion || s.Name != name {
		return nil, fmt.Errorf("%s was written by another version of lab; run `lab down --name %s`", statePath(name), name)
	}
	return &s, nil
}

func (s *state) save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(statePath(s.Name), data)
}

// writeFile replaces a file at once, so that no reader ever sees half of it.
// The name in between begins with a dot, which watchers of folders pass over.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
