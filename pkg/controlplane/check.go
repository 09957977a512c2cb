package controlplane

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/flatmesh/flatmesh/pkg/ipam"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
)

// Checked is what Check found. Its JSON fields are stable.
type Checked struct {
	Clusters []mesh.Cluster `json:"clusters"`
	// Conflicts holds the harmless ones too; see Bad.
	Conflicts []mesh.Conflict `json:"conflicts"`
	// Refused are nodes' prefixes that would never be routed.
	Refused []RefusedNodePrefix `json:"refused"`
	// Proposal is the next free range, where one was asked for.
	Proposal *netip.Prefix `json:"proposal,omitempty"`

	claims []mesh.Claim
}

// RefusedNodePrefix is a node's prefix that would not be routed, and why.
type RefusedNodePrefix struct {
	Node mesh.NodeID `json:"node"`
	mesh.RefusedPrefix
}

// Bad counts what a person must look at: conflicts that cost tunnels, and
// refused prefixes.
func (c Checked) Bad() int {
	n := len(c.Refused)
	for _, x := range c.Conflicts {
		if x.Effect != mesh.Listed {
			n++
		}
	}
	return n
}

// Check judges cluster folders as the control plane would that has seen them
// in this order: the first has the oldest claims. Its error joins what is wrong
// with the folders.
func Check(folders []string, tunnelRanges []netip.Prefix) (Checked, error) {
	f := facts{tunnelRanges: tunnelRanges}
	declared := map[string]string{}
	var errs []error
	for _, folder := range folders {
		s, err := dir.Load(folder)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if other, ok := declared[s.Cluster.Name]; ok {
			errs = append(errs, fmt.Errorf("cluster name %s is declared by both %s and %s: give one of the two another name", s.Cluster.Name, other, folder))
			continue
		}
		declared[s.Cluster.Name] = folder
		nodes, err := s.Nodes()
		errs = append(errs, err)
		f.clusters = append(f.clusters, s.Cluster)
		f.nodes = append(f.nodes, nodes...)
	}
	if err := errors.Join(errs...); err != nil {
		return Checked{}, err
	}
	t, err := buildTopology(f, folderOrder(f))
	if err != nil {
		return Checked{}, err
	}
	out := Checked{Clusters: append([]mesh.Cluster{}, f.clusters...), Conflicts: []mesh.Conflict{}, Refused: []RefusedNodePrefix{}, claims: t.Claims}
	out.Conflicts = append(out.Conflicts, t.Conflicts...)
	for _, n := range t.Nodes {
		for _, r := range n.Refused {
			out.Refused = append(out.Refused, RefusedNodePrefix{Node: n.ID, RefusedPrefix: r})
		}
	}
	return out, nil
}

// folderOrder numbers keys by the place of their cluster's folder, the mesh's
// own first, and within a cluster as they come.
func folderOrder(f facts) func([]string) (map[string]uint64, error) {
	var last uint64
	return func(keys []string) (map[string]uint64, error) {
		out := map[string]uint64{}
		number := func(owned func(string) bool) {
			for _, k := range keys {
				if _, done := out[k]; !done && owned(k) {
					last++
					out[k] = last
				}
			}
		}
		number(func(k string) bool { return ownedBy(k, "") })
		for _, c := range f.clusters {
			number(func(k string) bool { return ownedBy(k, c.Name) })
		}
		return out, nil
	}
}

// Propose returns the next free range of a length inside supernet: free of every
// claim of the clusters and of the mesh.
func (c *Checked) Propose(supernet netip.Prefix, bits int, tunnelRanges []netip.Prefix) error {
	taken := append([]netip.Prefix{}, tunnelRanges...)
	for _, k := range c.claims {
		taken = append(taken, k.Prefix)
	}
	p, err := ipam.NextFree(supernet, bits, taken)
	if err != nil {
		return err
	}
	c.Proposal = &p
	return nil
}
