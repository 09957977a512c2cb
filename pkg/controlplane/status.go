package controlplane

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// Status is what `controlplane status` shows. Its JSON fields are stable.
type Status struct {
	Mesh         string         `json:"mesh"`
	Version      string         `json:"version"`
	TunnelRanges []netip.Prefix `json:"tunnelRanges"`
	// Unsaved says why state could last not be written.
	Unsaved   string          `json:"unsaved,omitempty"`
	Nodes     NodeCounts      `json:"nodes"`
	Tunnels   TunnelCounts    `json:"tunnels"`
	Clusters  []ClusterStatus `json:"clusters"`
	Sources   []SourceError   `json:"sourceErrors"`
	Conflicts []mesh.Conflict `json:"conflicts"`
	NodeList  []NodeStatus    `json:"nodeList"`
}

// NodeCounts counts nodes: those of the sources, those whose agent has
// registered, and those whose agent has a report stream open.
type NodeCounts struct {
	Total      int `json:"total"`
	Registered int `json:"registered"`
	Connected  int `json:"connected"`
}

// TunnelCounts counts directed tunnels: those that there should be, and what
// connected agents report.
type TunnelCounts struct {
	Expected int `json:"expected"`
	Up       int `json:"up"`
	Down     int `json:"down"`
	Unknown  int `json:"unknown"`
}

// ClusterStatus is one cluster's line.
type ClusterStatus struct {
	mesh.Cluster
	Source     string         `json:"source"`
	Gone       bool           `json:"gone,omitempty"`
	Nodes      int            `json:"nodes"`
	Registered int            `json:"registered"`
	Objects    map[string]int `json:"objects,omitempty"`
	// Held are nodes that the source no longer has and that are still in force.
	Held      []string   `json:"held,omitempty"`
	HeldSince *time.Time `json:"heldSince,omitempty"`
	HeldUntil *time.Time `json:"heldUntil,omitempty"`
	Error     string     `json:"error,omitempty"`
	// Services counts those that can be served, Gateways the addresses that admit
	// traffic into the cluster.
	Services int            `json:"services"`
	Gateways []mesh.Gateway `json:"gateways"`
	// Withheld are changes that would take all services or endpoints at once, since
	// when they are held, and until when.
	Withheld      int        `json:"withheld,omitempty"`
	WithheldUntil *time.Time `json:"withheldUntil,omitempty"`
	// Problems are what is wrong with single objects, and what follows; at most
	// 100.
	Problems []string `json:"problems,omitempty"`
}

// maxProblems bounds the problems that a status shows of one cluster.
const maxProblems = 100

// SourceError says why a source's newest state was refused.
type SourceError struct {
	Source string `json:"source"`
	Error  string `json:"error"`
}

// NodeStatus is one node's line.
type NodeStatus struct {
	Node        mesh.NodeID          `json:"node"`
	Prefixes    []netip.Prefix       `json:"prefixes"`
	Refused     []mesh.RefusedPrefix `json:"refused,omitempty"`
	TunnelAddrs []netip.Addr         `json:"tunnelAddresses,omitempty"`
	Key         mesh.PublicKey       `json:"key,omitzero"`
	Endpoints   []netip.AddrPort     `json:"endpoints,omitempty"`
	Device      string               `json:"device,omitempty"`
	Version     string               `json:"version,omitempty"`
	Connected   bool                 `json:"connected"`
	Barriers    []mesh.Barrier       `json:"barriers,omitempty"`
	Up          int                  `json:"up"`
	Down        int                  `json:"down"`
	Unknown     int                  `json:"unknown"`
}

// status reads the loop's state. It shares nothing with it that changes.
func (l *loop) status(version string) Status {
	s := Status{
		Mesh: l.meshName, Version: version, TunnelRanges: l.ranges,
		Clusters: []ClusterStatus{}, Sources: []SourceError{}, NodeList: []NodeStatus{},
		Conflicts: append([]mesh.Conflict{}, l.topology.Conflicts...),
	}
	if l.unsaved != nil {
		s.Unsaved = l.unsaved.Error()
	}
	for _, name := range slices.Sorted(maps.Keys(l.sources)) {
		if text := l.sources[name]; text != "" {
			s.Sources = append(s.Sources, SourceError{Source: name, Error: text})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.clusters)) {
		s.Clusters = append(s.Clusters, l.clusterStatus(l.clusters[name]))
	}
	for _, c := range l.topology.Clusters {
		configs := mesh.NodeConfigs(l.topology, c.Name)
		for i, n := range l.topology.NodesOf(c.Name) {
			ns := l.nodeStatus(n, configs[i])
			s.NodeList = append(s.NodeList, ns)
			s.Nodes.Total++
			if n.Registered() {
				s.Nodes.Registered++
			}
			if ns.Connected {
				s.Nodes.Connected++
			}
			s.Tunnels.Up += ns.Up
			s.Tunnels.Down += ns.Down
			s.Tunnels.Unknown += ns.Unknown
		}
	}
	if l.expected < 0 {
		l.expected = expected(l.topology)
	}
	s.Tunnels.Expected = l.expected
	return s
}

func (l *loop) clusterStatus(c *cluster) ClusterStatus {
	s := ClusterStatus{Cluster: c.decl, Source: c.source, Gone: c.gone, Nodes: len(c.nodes), Held: c.held(), Error: l.sources[c.source]}
	for name := range c.nodes {
		if _, ok := l.registrations[mesh.NodeID{Cluster: c.decl.Name, Name: name}]; ok {
			s.Registered++
		}
	}
	for k := range c.objects.inForce {
		if s.Objects == nil {
			s.Objects = map[string]int{}
		}
		s.Objects[string(source.Kind(k.Kind))]++
	}
	s.Services, s.Gateways = len(c.details().Services), []mesh.Gateway{}
	for _, g := range l.topology.Gateways {
		if g.Cluster == c.decl.Name {
			s.Gateways = append(s.Gateways, g)
		}
	}
	if since := c.objects.since; !since.IsZero() {
		until := since.Add(l.hold)
		s.Withheld, s.WithheldUntil = len(c.objects.withheld), &until
	}
	if since := c.restoredSince; !since.IsZero() {
		until := since.Add(l.hold)
		s.Withheld, s.WithheldUntil = len(c.restored.Services), &until
	}
	problems := c.index.AllProblems()
	for _, p := range problems[:min(len(problems), maxProblems)] {
		s.Problems = append(s.Problems, p.Error())
	}
	if !c.heldSince.IsZero() {
		since, until := c.heldSince, c.heldSince.Add(l.hold)
		s.HeldSince, s.HeldUntil = &since, &until
	}
	return s
}

func (l *loop) nodeStatus(n mesh.Node, cfg mesh.NodeConfig) NodeStatus {
	s := NodeStatus{
		Node: n.ID, Prefixes: append([]netip.Prefix{}, n.Prefixes...), Refused: n.Refused,
		TunnelAddrs: n.TunnelAddrs, Key: n.Key, Endpoints: n.Endpoints, Barriers: cfg.Barriers,
	}
	if r, ok := l.registrations[n.ID]; ok {
		s.Device, s.Version = r.Device, r.Version
	}
	if session := l.reports[n.ID]; session != nil {
		s.Connected = true
		s.Up, s.Down, s.Unknown = session.counts[mesh.Up], session.counts[mesh.Down], session.counts[mesh.Unknown]
	}
	return s
}

// Tunnels returns what a node reports of its own tunnels.
type Tunnels map[mesh.NodeID]mesh.TunnelStatus

func (l *loop) tunnels(node mesh.NodeID) Tunnels {
	if s := l.reports[node]; s != nil {
		return s.tunnels
	}
	return Tunnels{}
}

// Healthy reports whether nothing wants a person's attention.
func (s Status) Healthy() bool {
	for _, c := range s.Clusters {
		if len(c.Held) > 0 || c.Error != "" || c.Withheld > 0 {
			return false
		}
	}
	for _, n := range s.NodeList {
		if len(n.Refused) > 0 {
			return false
		}
	}
	return s.Unsaved == "" && len(s.Sources) == 0 && s.Tunnels.Up == s.Tunnels.Expected
}
