package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Limits of a lab, of its address plan and of what veth and IPv6 (RFC 8200,
// section 5) allow.
const (
	maxClusters = 62
	maxNodes    = 4000
	maxPods     = 200
	maxGateways = 16
	minMTU      = 1280
	maxMTU      = 9216
)

// underlay is what the lab gives to nodes, routers and the control plane.
var underlay = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fd00:100::/32"),
}

// problem is something wrong with one field of a topology.
type problem struct {
	path string // for example clusters[1].podCIDRs[0]
	err  error
}

func (p problem) Error() string {
	if p.path == "" {
		return p.err.Error()
	}
	return p.path + ": " + p.err.Error()
}

func (p problem) Unwrap() error { return p.err }

// Validate reports everything that is wrong with the topology, joined.
func (t Topology) Validate() error {
	var errs []error
	for _, p := range t.problems() {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

func (t Topology) problems() []problem {
	var ps []problem
	add := func(path, format string, args ...any) {
		ps = append(ps, problem{path, fmt.Errorf(format, args...)})
	}
	if len(t.Clusters) == 0 {
		add("clusters", "want at least one cluster")
	}
	if len(t.Clusters) > maxClusters {
		add("clusters", "%d clusters; a lab holds at most %d", len(t.Clusters), maxClusters)
	}
	for i, c := range t.Clusters {
		at := fmt.Sprintf("clusters[%d].", i)
		for _, p := range c.problems() {
			ps = append(ps, problem{at + p.path, p.err})
		}
		if err := c.addressProblem(len(t.Services)); err != nil {
			add(at+"serviceCIDRs", "%w", err)
		}
		for _, o := range t.Clusters[:i] {
			if o.Name == c.Name {
				add(at+"name", "there are two clusters called %s", c.Name)
				continue
			}
			if o.Network != c.Network {
				continue
			}
			if o.NAT || c.NAT {
				add(at+"network", "%s and %s share network %s; a cluster with nat needs a network of its own", o.Name, c.Name, c.Network)
			}
			for j, p := range c.PodCIDRs {
				for _, q := range o.PodCIDRs {
					if p.Overlaps(q) {
						add(fmt.Sprintf("%spodCIDRs[%d]", at, j), "%v overlaps %v of %s in the same network, which could not route both", p, q, o.Name)
					}
				}
			}
		}
	}
	return append(ps, t.serviceProblems()...)
}

func (c Cluster) problems() []problem {
	var ps []problem
	add := func(path, format string, args ...any) {
		ps = append(ps, problem{path, fmt.Errorf(format, args...)})
	}
	if err := mesh.ValidateClusterName(c.Name); err != nil {
		add("name", "%w", err)
	}
	if err := mesh.ValidateClusterName(c.Network); err != nil && c.Network != c.Name {
		add("network", "%w", err)
	}
	if c.Name == string(KindRouter) || c.Name == string(KindGateway) {
		add("name", "%q is what the lab calls its %[1]ss; take another name", c.Name)
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		add("nodes", "%d: want 1 to %d", c.Nodes, maxNodes)
	}
	if c.PodsPerNode < 0 || c.PodsPerNode > maxPods {
		add("podsPerNode", "%d: want 0 to %d", c.PodsPerNode, maxPods)
	}
	if c.Gateways < 0 || c.Gateways > maxGateways {
		add("gateways", "%d: want 0 to %d", c.Gateways, maxGateways)
	}
	if c.NAT && c.Gateways > 0 {
		add("gateways", "nobody would reach a gateway behind a NAT")
	}
	for i, z := range c.Zones {
		// Such names are also good values of labels.
		if mesh.ValidateClusterName(z.Region) != nil || mesh.ValidateClusterName(z.Zone) != nil {
			add(fmt.Sprintf("zones[%d]", i), "%s/%s: want REGION/ZONE in lower-case letters, digits and dashes", z.Region, z.Zone)
		}
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		add("mtu", "%d: want %d to %d", c.MTU, minMTU, maxMTU)
	}
	if len(c.PodCIDRs) == 0 {
		add("podCIDRs", "want one range, or one of each family")
	}
	type named struct {
		field string
		netip.Prefix
	}
	var all []named
	for i, p := range c.PodCIDRs {
		all = append(all, named{fmt.Sprintf("podCIDRs[%d]", i), p})
	}
	for i, p := range c.ServiceCIDRs {
		all = append(all, named{fmt.Sprintf("serviceCIDRs[%d]", i), p})
	}
	for i, p := range all {
		if err := mesh.ValidatePrefix(p.Prefix); err != nil {
			add(p.field, "%w", err)
			continue
		}
		for _, u := range underlay {
			if p.Overlaps(u) {
				add(p.field, "%v overlaps %v, from which the lab takes the nodes' addresses", p.Prefix, u)
			}
		}
		for _, q := range all[:i] {
			if q.IsValid() && p.Overlaps(q.Prefix) {
				add(p.field, "%v overlaps %s %v of the same cluster", p.Prefix, q.field, q.Prefix)
			}
		}
	}
	for i, p := range c.PodCIDRs {
		field := fmt.Sprintf("podCIDRs[%d]", i)
		for _, q := range c.PodCIDRs[:i] {
			if p.Addr().Is4() == q.Addr().Is4() {
				add(field, "a second %v range; want one range, or one of each family", mesh.FamilyOf(p.Addr()))
			}
		}
		if _, err := nodeBits(p, c.Nodes, c.PodsPerNode); p.IsValid() && err != nil {
			add(field, "%w", err)
		}
	}
	return ps
}

var labName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// validateName accepts the name of a lab. It holds no dot: a dot ends it in the
// names of namespaces.
func validateName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: want lower-case letters, digits and dashes, at most 32", name)
	}
	return nil
}
