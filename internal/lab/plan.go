package lab

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Kind says what a host is.
type Kind string

// The kinds of host.
const (
	KindPod          Kind = "pod"
	KindNode         Kind = "node"
	KindRouter       Kind = "router"
	KindCore         Kind = "core"
	KindControlPlane Kind = "controlplane"
	KindGateway      Kind = "gateway"
)

// Host is a network namespace of a lab.
type Host struct {
	// Name is CLUSTER/NODE, CLUSTER/NODE/POD, gateway/CLUSTER/NAME, router/NETWORK,
	// core or controlplane.
	Name      string       `json:"name"`
	Kind      Kind         `json:"kind"`
	Cluster   string       `json:"cluster,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	// Namespace is the name that ip-netns(8) shows.
	Namespace string    `json:"namespace"`
	Processes []Process `json:"processes"`
}

// namespaces is the prefix of all names of a lab's network namespaces. The dot,
// which no lab's name holds, keeps labs a and a-b apart.
func namespaces(lab string) string { return "fm-" + lab + "." }

// newHost makes the entry of a host; its place in the lab follows from its name.
func (s *state) newHost(kind Kind, cluster, name string, addrs ...netip.Addr) Host {
	ns := namespaces(s.Name) + string(kind)
	if rest := strings.TrimPrefix(name, string(kind)); rest != "" {
		ns += "." + strings.ReplaceAll(strings.TrimPrefix(rest, "/"), "/", ".")
	}
	return Host{Name: name, Kind: kind, Cluster: cluster, Addresses: addrs, Namespace: ns, Processes: []Process{}}
}

// hosts lists what the lab is made of, in the order in which it is built.
func (s *state) hosts() []Host {
	hs := []Host{s.core(), s.controlPlane()}
	for i := range s.Clusters {
		c := &s.Clusters[i]
		if !slices.ContainsFunc(s.Clusters[:i], func(o clusterState) bool { return o.Network == c.Network }) {
			hs = append(hs, s.router(c))
		}
	}
	for i := range s.Clusters {
		for _, g := range s.Clusters[i].gateways() {
			hs = append(hs, s.gatewayHost(g))
		}
		for _, n := range s.Clusters[i].nodes() {
			hs = append(hs, s.nodeHosts(n)...)
		}
	}
	return hs
}

func (s *state) core() Host { return s.newHost(KindCore, "", string(KindCore)) }

func (s *state) controlPlane() Host {
	return s.newHost(KindControlPlane, "", string(KindControlPlane), controlPlaneAddrs...)
}

func (s *state) router(c *clusterState) Host {
	return s.newHost(KindRouter, "", string(KindRouter)+"/"+c.Network, routerAddrs(c.Router)...)
}

// nodeHosts returns a node and its pods.
func (s *state) nodeHosts(n node) []Host {
	hs := []Host{s.newHost(KindNode, n.cluster.Name, n.id().String(), n.addrs()...)}
	for _, p := range n.pods() {
		hs = append(hs, s.podHost(p))
	}
	return hs
}

func (s *state) podHost(p pod) Host {
	return s.newHost(KindPod, p.node.cluster.Name, p.name(), p.addrs()...)
}

func (s *state) host(name string) (Host, error) {
	hs := s.hosts()
	i := slices.IndexFunc(hs, func(h Host) bool { return h.Name == name })
	if i < 0 {
		return Host{}, fmt.Errorf("there is no host %q in lab %s (see `lab ls`)", name, s.Name)
	}
	return hs[i], nil
}

// node finds a node by its host name, CLUSTER/NODE.
func (s *state) node(name string) (node, error) {
	id, err := mesh.ParseNodeID(name)
	if err != nil {
		return node{}, err
	}
	c, err := s.cluster(id.Cluster)
	if err != nil {
		return node{}, err
	}
	k, err := nodeNumber(id.Name)
	if err != nil {
		return node{}, err
	}
	if !slices.Contains(c.Numbers, k) {
		return node{}, fmt.Errorf("there is no node %s in lab %s (see `lab ls`)", id, s.Name)
	}
	return node{c, k}, nil
}

// pod finds a pod by its host name, CLUSTER/NODE/POD.
func (s *state) pod(name string) (pod, error) {
	n, err := s.node(path.Dir(name))
	if err != nil {
		return pod{}, fmt.Errorf("pod %q: want CLUSTER/NODE/POD: %w", name, err)
	}
	for _, p := range n.pods() {
		if p.name() == name {
			return p, nil
		}
	}
	return pod{}, fmt.Errorf("there is no pod %s in lab %s (see `lab ls`)", name, s.Name)
}

func (s *state) cluster(name string) (*clusterState, error) {
	i := slices.IndexFunc(s.Clusters, func(c clusterState) bool { return c.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no cluster %q in lab %s (see `lab ls`)", name, s.Name)
	}
	return &s.Clusters[i], nil
}

// nodeNumber reads n1, n2, …: all of a node's addresses follow from its number.
func nodeNumber(name string) (int, error) {
	k, err := strconv.Atoi(strings.TrimPrefix(name, "n"))
	if err != nil || k < 1 || k > maxNodes || name != "n"+strconv.Itoa(k) {
		return 0, fmt.Errorf("node %q: a lab's nodes are called n1, n2, … up to n%d", name, maxNodes)
	}
	return k, nil
}

// node is one node of a cluster.
type node struct {
	cluster *clusterState
	number  int
}

func (c *clusterState) nodes() []node {
	ns := make([]node, len(c.Numbers))
	for i, k := range c.Numbers {
		ns[i] = node{c, k}
	}
	return ns
}

func (n node) id() mesh.NodeID {
	return mesh.NodeID{Cluster: n.cluster.Name, Name: "n" + strconv.Itoa(n.number)}
}

// link is the name of the router's interface towards the node.
func (n node) link() string { return fmt.Sprintf("c%dn%d", n.cluster.Index, n.number) }

// addrs are the node's own, one of each family that its cluster's pods have.
func (n node) addrs() []netip.Addr {
	var as []netip.Addr
	for _, r := range n.cluster.nodeRanges() {
		as = append(as, shift(r.Addr(), uint64(n.number), 0))
	}
	return as
}

// prefixes are the node's parts of its cluster's pod ranges.
func (n node) prefixes() []netip.Prefix {
	var ps []netip.Prefix
	for i, r := range n.cluster.PodCIDRs {
		// The number was checked when the node was added.
		if p, err := cut(r, n.cluster.NodeBits[i], n.number); err == nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// zone is the node's, if its cluster has any.
func (n node) zone() (Zone, bool) {
	zs := n.cluster.Zones
	if len(zs) == 0 {
		return Zone{}, false
	}
	return zs[(n.number-1)%len(zs)], true
}

// gatewayFor returns the prefix's gateway among the node's own addresses.
func (n node) gatewayFor(p netip.Prefix) netip.Addr {
	for _, a := range n.addrs() {
		if a.Is4() == p.Addr().Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (n node) pods() []pod {
	ps := make([]pod, n.cluster.PodsPerNode)
	for i := range ps {
		ps[i] = pod{n, i + 1}
	}
	return ps
}

// pod is one pod of a node.
type pod struct {
	node   node
	number int
}

// link is the name of the node's interface towards the pod.
func (p pod) link() string { return "p" + strconv.Itoa(p.number) }

func (p pod) name() string { return p.node.id().String() + "/" + p.link() }

// kubeName is the pod's name in Kubernetes.
func (p pod) kubeName() string { return p.node.id().Name + "-" + p.link() }

func (p pod) state() podState { return p.node.cluster.Pods[p.kubeName()] }

// addrs are the pod's, from its node's prefixes. The first two stay free.
func (p pod) addrs() []netip.Addr {
	var as []netip.Addr
	for _, r := range p.node.prefixes() {
		as = append(as, shift(r.Addr(), uint64(p.number+1), 0))
	}
	return as
}
