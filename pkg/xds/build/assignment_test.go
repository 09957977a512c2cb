package build

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var compareValues = []cmp.Option{cmpopts.EquateComparable(netip.AddrPort{})}

func addrs(ss ...string) (out []netip.AddrPort) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func tunnel(addr, node string, priority uint8) Direct {
	id, _ := mesh.ParseNodeID(node)
	return Direct{Addr: netip.MustParseAddrPort(addr), Node: id, Reason: mesh.ReasonTunnel, Priority: priority}
}

func local(addr, node string) Direct {
	d := tunnel(addr, node, 0)
	d.Reason = mesh.ReasonLocal
	return d
}

func TestNormal(t *testing.T) {
	for _, c := range []struct {
		name     string
		in, want Assignment
	}{
		{
			"an address twice: the earlier priority has it, pods before gateways, serving before standby",
			Assignment{
				Direct: []Direct{tunnel("10.0.0.1:80", "west/n1", 1), tunnel("10.0.0.1:80", "east/n1", 0), tunnel("[::ffff:10.0.0.2]:80", "west/n1", 1), tunnel("10.0.0.2:80", "west/n1", 1)},
				Remote: []Remote{{Cluster: "west", Standby: true, Serving: addrs("10.0.0.1:80", "10.9.0.1:2", "10.9.0.1:1", "10.9.0.1:1"), StandbyAddrs: addrs("10.9.0.1:1", "10.9.0.1:3")}},
			},
			Assignment{
				Direct: []Direct{tunnel("10.0.0.1:80", "east/n1", 0), tunnel("10.0.0.2:80", "west/n1", 1)}, GatewayPriority: 1,
				Remote: []Remote{{Cluster: "west", Standby: true, Serving: addrs("10.9.0.1:1", "10.9.0.1:2"), StandbyAddrs: addrs("10.9.0.1:3")}},
			},
		},
		{
			"what nobody can dial",
			Assignment{Direct: []Direct{{}, tunnel("0.0.0.0:80", "west/n1", 0), tunnel("10.0.0.1:0", "west/n1", 0), tunnel("[fe80::1%eth0]:80", "west/n1", 0), tunnel("224.0.0.1:80", "west/n1", 0)}},
			Assignment{Direct: []Direct{}},
		},
		{
			"levels without gaps, the gateways behind what is preferred",
			Assignment{Direct: []Direct{tunnel("10.0.0.1:80", "west/n1", 3), tunnel("10.0.0.2:80", "west/n1", 7)}, GatewayPriority: 9},
			Assignment{Direct: []Direct{tunnel("10.0.0.1:80", "west/n1", 0), tunnel("10.0.0.2:80", "west/n1", 1)}, GatewayPriority: 2},
		},
		{
			"gateways never before a pod",
			Assignment{Direct: []Direct{tunnel("10.0.0.1:80", "west/n1", 0), tunnel("10.0.0.2:80", "west/n1", 1)}},
			Assignment{Direct: []Direct{tunnel("10.0.0.1:80", "west/n1", 0), tunnel("10.0.0.2:80", "west/n1", 1)}, GatewayPriority: 1},
		},
		{
			"nothing preferred is there",
			Assignment{Direct: []Direct{tunnel("10.0.0.2:80", "west/n1", 1)}, GatewayPriority: 1},
			Assignment{Direct: []Direct{tunnel("10.0.0.2:80", "west/n1", 0)}},
		},
		{
			"a standby for nothing, contradictions, no reason",
			Assignment{Remote: []Remote{
				{Cluster: "west", Standby: true, StandbyAddrs: addrs("10.9.0.1:3"), Serving: addrs("10.9.0.1:1"), Reason: mesh.ReasonNoTLS, Pods: -1},
				{Cluster: "east"},
				{Cluster: "zulu", Serving: addrs("10.9.0.1:1")},
			}},
			Assignment{Direct: []Direct{}, Remote: []Remote{
				{Cluster: "east", Reason: mesh.ReasonNoGateway},
				{Cluster: "west", Serving: addrs("10.9.0.1:1")},
				{Cluster: "zulu", Reason: mesh.ReasonGatewayUnroutable},
			}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, c.in.Normal(), append(compareValues, cmpopts.EquateEmpty())...); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDemote(t *testing.T) {
	a := Assignment{
		Name:   "x",
		Direct: []Direct{local("10.0.0.1:80", "east/n1"), tunnel("10.1.0.1:80", "west/n1", 0), tunnel("10.1.0.2:80", "west/n1", 0), tunnel("10.1.0.3:80", "west/n2", 0), tunnel("10.2.0.1:80", "north/n1", 0)},
		Remote: []Remote{
			{Cluster: "north", Reason: mesh.ReasonNoGateway},
			{Cluster: "west", Pods: 1, Standby: true, Serving: addrs("10.9.0.1:1"), StandbyAddrs: addrs("10.9.0.1:2")},
		},
	}
	down := func(nodes ...string) func(mesh.NodeID) bool {
		return func(n mesh.NodeID) bool { return slices.Contains(nodes, n.String()) }
	}
	before := a.Normal()
	for _, c := range []struct {
		name string
		down []string
		want Assignment
	}{
		{"nothing is down", nil, a.Normal()},
		{"only tunnels can be down", []string{"east/n1"}, a.Normal()},
		{"one node of two", []string{"west/n1"}, Assignment{
			Name: "x", Direct: []Direct{local("10.0.0.1:80", "east/n1"), tunnel("10.1.0.3:80", "west/n2", 0), tunnel("10.2.0.1:80", "north/n1", 0)},
			Remote: []Remote{
				{Cluster: "north", Reason: mesh.ReasonNoGateway},
				{Cluster: "west", Pods: 3, Standby: true, Serving: addrs("10.9.0.1:1"), StandbyAddrs: addrs("10.9.0.1:2")},
			},
		}},
		{"all of a cluster: nothing to stand by for", []string{"west/n1", "west/n2"}, Assignment{
			Name: "x", Direct: []Direct{local("10.0.0.1:80", "east/n1"), tunnel("10.2.0.1:80", "north/n1", 0)},
			Remote: []Remote{
				{Cluster: "north", Reason: mesh.ReasonNoGateway},
				{Cluster: "west", Pods: 4, Serving: addrs("10.9.0.1:1")},
			},
		}},
		{"no gateway: withheld", []string{"north/n1"}, Assignment{
			Name: "x", Direct: []Direct{local("10.0.0.1:80", "east/n1"), tunnel("10.1.0.1:80", "west/n1", 0), tunnel("10.1.0.2:80", "west/n1", 0), tunnel("10.1.0.3:80", "west/n2", 0)},
			Remote: []Remote{
				{Cluster: "north", Pods: 1, Reason: mesh.ReasonNoGateway},
				{Cluster: "west", Pods: 1, Standby: true, Serving: addrs("10.9.0.1:1"), StandbyAddrs: addrs("10.9.0.1:2")},
			},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, a.Demote(down(c.down...)), compareValues...); d != "" {
				t.Error(d)
			}
		})
	}
	if d := cmp.Diff(before, a.Normal(), compareValues...); d != "" {
		t.Errorf("the assignment itself has changed: %s", d)
	}
}

// demoteInvariants holds for any assignment and any nodes that are down.
func demoteInvariants(t *testing.T, a Assignment, down func(mesh.NodeID) bool) {
	t.Helper()
	before, after := a.Normal(), a.Demote(down)
	if d := cmp.Diff(after, after.Normal(), compareValues...); d != "" {
		t.Errorf("what Demote returns is not in its normal form: %s", d)
	}
	if d := cmp.Diff(after, after.Demote(down), compareValues...); d != "" {
		t.Errorf("a second time changes more: %s", d)
	}
	had := map[netip.AddrPort]bool{}
	pods := map[string]int{}
	for _, d := range before.Direct {
		had[d.Addr] = true
		pods[d.Node.Cluster]++
	}
	for _, d := range after.Direct {
		if !had[d.Addr] {
			t.Errorf("%v became direct", d.Addr)
		}
		if d.Reason == mesh.ReasonTunnel && down(d.Node) {
			t.Errorf("%v is direct, and %v is down", d.Addr, d.Node)
		}
		pods[d.Node.Cluster]--
	}
	for _, r := range before.Remote {
		pods[r.Cluster] += r.Pods
	}
	for _, r := range after.Remote {
		if pods[r.Cluster] -= r.Pods; pods[r.Cluster] > 0 && r.Pods < maxPods {
			t.Errorf("%d pods of %s are lost", pods[r.Cluster], r.Cluster)
		}
		delete(pods, r.Cluster)
	}
	for cluster, n := range pods {
		if n != 0 {
			t.Errorf("%d pods of %s are lost", n, cluster)
		}
	}
}
