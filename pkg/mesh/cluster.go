package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// Cluster is one Kubernetes cluster, as it was declared.
type Cluster struct {
	Name string `json:"name"`
	// Network holds the clusters whose nodes reach each other's pods with no
	// tunnel. By default it is the cluster's own name.
	Network string `json:"network"`
	// The ranges that the cluster declares. Where PodCIDRs or NodeCIDRs is empty,
	// each node's prefixes or addresses are the claims instead.
	PodCIDRs     []netip.Prefix `json:"podCIDRs,omitempty"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	NodeCIDRs    []netip.Prefix `json:"nodeCIDRs,omitempty"`
}

// Compare orders clusters by name.
func (c Cluster) Compare(o Cluster) int { return cmp.Compare(c.Name, o.Name) }

// Equal reports whether two declarations say the same.
func (c Cluster) Equal(o Cluster) bool {
	return c.Name == o.Name && c.Network == o.Network &&
		slices.Equal(c.PodCIDRs, o.PodCIDRs) &&
		slices.Equal(c.ServiceCIDRs, o.ServiceCIDRs) &&
		slices.Equal(c.NodeCIDRs, o.NodeCIDRs)
}

// Validate reports everything that is wrong with the declaration, joined.
func (c Cluster) Validate() error {
	var errs []error
	if err := ValidateClusterName(c.Name); err != nil {
		errs = append(errs, err)
	}
	if err := ValidateClusterName(c.Network); err != nil {
		errs = append(errs, fmt.Errorf("network: %w", err))
	}
	for _, r := range []struct {
		field    string
		prefixes []netip.Prefix
	}{
		{"podCIDRs", c.PodCIDRs}, {"serviceCIDRs", c.ServiceCIDRs}, {"nodeCIDRs", c.NodeCIDRs},
	} {
		for i, p := range r.prefixes {
			if err := ValidatePrefix(p); err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %w", r.field, i, err))
				continue
			}
			for j, q := range r.prefixes[:i] {
				if q.IsValid() && p.Overlaps(q) {
					errs = append(errs, fmt.Errorf("%s[%d]: %v overlaps %s[%d] %v", r.field, i, p, r.field, j, q))
				}
			}
		}
	}
	return errors.Join(errs...)
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

// ValidateClusterName accepts a DNS label (RFC 1123).
func ValidateClusterName(s string) error {
	if !label.MatchString(s) {
		return fmt.Errorf("cluster name %q: want lower-case letters, digits and dashes, at most 63, beginning and ending with a letter or digit", s)
	}
	return nil
}

// ValidateNodeName accepts a DNS subdomain (RFC 1123), as Kubernetes does.
func ValidateNodeName(s string) error {
	if len(s) > 253 || !subdomain.MatchString(s) {
		return fmt.Errorf("node name %q: want a lower-case DNS name of at most 253 characters", s)
	}
	return nil
}

// never holds ranges in which no pod, service, node or tunnel address can lie.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/96"), // unspecified, loopback, IPv4-compatible
	netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// ValidatePrefix accepts a canonical prefix (no bits set behind its length, no
// zone) that covers nothing which can never be routed: loopback, link-local,
// multicast, and with them the default route.
func ValidatePrefix(p netip.Prefix) error {
	if !p.IsValid() {
		return errors.New("not an address range")
	}
	if p.Addr().Zone() != "" {
		return fmt.Errorf("%v: a range has no zone", p)
	}
	if p.Addr().Is4In6() {
		return fmt.Errorf("%v: write an IPv4 range in its own form", p)
	}
	if m := p.Masked(); m != p {
		return fmt.Errorf("%v has bits set behind its length; did you mean %v?", p, m)
	}
	for _, n := range never {
		if p.Overlaps(n) {
			return fmt.Errorf("%v covers %v, which cannot be routed between clusters", p, n)
		}
	}
	return nil
}

// ValidateAddr accepts an address that could be a node's, a pod's or a
// gateway's: not loopback, link-local, multicast or unspecified, unmapped.
func ValidateAddr(a netip.Addr) error {
	if !a.IsValid() {
		return errors.New("not an address")
	}
	if a.Zone() != "" {
		return fmt.Errorf("%v: an address in the mesh has no zone", a)
	}
	for _, n := range never {
		if n.Contains(a) {
			return fmt.Errorf("%v lies in %v, which cannot be reached from another node", a, n)
		}
	}
	return nil
}

// ComparePrefix orders by family, address and length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
