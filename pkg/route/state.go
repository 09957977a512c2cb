package route

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// The metrics sort an unreachable route behind the one into the interface where
// both are for the same prefix. IPv6 gives 1024 to whoever asks for none.
const (
	viaMetric         = 1024
	unreachableMetric = 1 << 30
)

// Desired is what a node's routing should be. Every prefix has passed Safe.
type Desired struct {
	// Addrs are the node's tunnel addresses, at most one of each family. They lie
	// on Options.Link as /32 and /128.
	Addrs []netip.Addr
	// Via is led into Options.Link, with the tunnel address of its family as the
	// source of what the node itself sends. A family without a tunnel address has
	// no such routes: the far end would drop what the node sends from another.
	Via []netip.Prefix
	// Unreachable is refused wherever no Via is more specific, or the same. A
	// prefix of Via that lies in no such range falls to the default route when its
	// route goes.
	Unreachable []netip.Prefix
	// Forward lets packets from Options.Link be forwarded to the node's pods. Where
	// it is false the interface's setting is left alone.
	Forward bool
}

// Actual is what of flatmesh's the kernel holds, and what else of the node's
// state the agent reports.
type Actual struct {
	// LinkIndex is 0 where there is no such interface.
	LinkIndex int
	LinkUp    bool
	// IPv6 is false on a kernel that runs without it. Nothing can leak there.
	IPv6 bool
	// Addrs are those on Options.Link, link-local ones aside.
	Addrs []netip.Prefix
	// Routes and Rules are those that carry Options.Protocol and are of
	// Options.Table, sorted.
	Routes []Route
	Rules  []Rule
	// Settings are those of Options.Link that the package sets, where they exist,
	// by their path below /proc/sys.
	Settings map[string]string

	// Forwarding4 and Forwarding6 report whether the node forwards between its
	// interfaces (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding). They are
	// never set here.
	Forwarding4, Forwarding6 bool
	// Foreign says, a sentence each, who else uses the table or the rules'
	// priority. It is left as it is.
	Foreign []string
	// Notes says, a sentence each, what could not be read in full.
	Notes []string
}

// Route is a route of flatmesh's.
type Route struct {
	Dst    netip.Prefix
	Metric int
	// Unreachable refuses. Link and Src are then not set.
	Unreachable bool
	Link        int
	Src         netip.Addr
	// Odd is set on a route that carries the marks of flatmesh's and yet is of a
	// form that it never writes, such as one with a next hop.
	Odd bool
}

// routeKey is what the kernel allows once in a table.
type routeKey struct {
	dst    netip.Prefix
	metric int
}

func (r Route) key() routeKey { return routeKey{r.Dst, r.Metric} }

// compare orders routes by prefix, the winning metric first.
func (r Route) compare(o Route) int {
	return cmp.Or(mesh.ComparePrefix(r.Dst, o.Dst), cmp.Compare(r.Metric, o.Metric))
}

// String reads "route 10.2.0.0/24 dev 7 src 198.19.0.1" or "route unreachable 10.2.0.0/16".
func (r Route) String() string {
	if r.Unreachable {
		return fmt.Sprintf("route unreachable %v", r.Dst)
	}
	s := fmt.Sprintf("route %v dev %d", r.Dst, r.Link)
	if r.Src.IsValid() {
		s += fmt.Sprintf(" src %v", r.Src)
	}
	if r.Odd {
		s += " (altered)"
	}
	return s
}

// Rule is a rule that leads to Options.Table.
type Rule struct {
	Family   mesh.Family
	Priority int
	Mark     uint32
	Mask     uint32
	// Invert: the rule holds for packets without the mark.
	Invert bool
	// Odd is set on a rule that selects by something else too.
	Odd bool
}

func (r Rule) compare(o Rule) int {
	return cmp.Or(cmp.Compare(r.Family, o.Family), cmp.Compare(r.Priority, o.Priority), cmp.Compare(r.Mark, o.Mark))
}

// String reads "IPv4 rule 5183: not fwmark 0x2030".
func (r Rule) String() string {
	not := ""
	if r.Invert {
		not = "not "
	}
	return fmt.Sprintf("%v rule %d: %sfwmark %#x", r.Family, r.Priority, not, r.Mark)
}
