package e2e

import (
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const twoClusters = `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16], nodes: 2}
  - {name: west, podCIDRs: [10.2.0.0/16], serviceCIDRs: [10.102.0.0/16], nodes: 2}
`

// Every pod reaches every other at its own address, with its own as source.
func TestReach(t *testing.T) {
	for name, topology := range map[string]string{
		"two clusters": twoClusters,
		"dual stack": `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16, "fd00:1::/48"], serviceCIDRs: [10.101.0.0/16], nodes: 2}
  - {name: west, podCIDRs: [10.2.0.0/16, "fd00:2::/48"], serviceCIDRs: [10.102.0.0/16], nodes: 1}
`,
		"IPv6 alone": `
clusters:
  - {name: east, podCIDRs: ["fd00:1::/48"], nodes: 1}
  - {name: west, podCIDRs: ["fd00:2::/48"], nodes: 1}
`,
		"one network of two": `
clusters:
  - {name: east, network: coast, podCIDRs: [10.1.0.0/16], nodes: 1}
  - {name: north, network: coast, podCIDRs: [10.3.0.0/16], nodes: 1}
  - {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}
`,
		"same service and node ranges": `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.96.0.0/12], nodes: 1}
  - {name: west, podCIDRs: [10.2.0.0/16], serviceCIDRs: [10.96.0.0/12], nodes: 1}
`,
		"behind a NAT": `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16], nodes: 2}
  - {name: home, podCIDRs: [10.2.0.0/16], nodes: 2, nat: true}
`,
	} {
		t.Run(name, func(t *testing.T) {
			f := up(t, topology)
			for _, from := range f.pods() {
				for _, to := range f.pods() {
					if from != to {
						f.reach(from, to)
					}
				}
			}
		})
	}
}

// A process on a node reaches remote pods with the node's tunnel address.
func TestNodeReachesPods(t *testing.T) {
	f := up(t, twoClusters)
	s, err := f.status("east/n1")
	if err != nil {
		t.Fatal(err)
	}
	answer, err := f.Call(t.Context(), "east/n1", f.addrs("west/n1/p1")[0], patience)
	if err != nil || answer.Caller != s.Device.TunnelAddrs[0] {
		t.Errorf("%v, caller %v, want %v", err, answer.Caller, s.Device.TunnelAddrs)
	}
}

func TestStatus(t *testing.T) {
	f := up(t, twoClusters)
	s, err := f.status("east/n1")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Complete || len(s.Peers) != 2 || len(s.Problems) != 0 || !s.ControlPlane.Connected {
		t.Fatalf("%+v", s)
	}
	for _, p := range s.Peers {
		if p.Node.Cluster != "west" || p.State != mesh.Up || p.Handshake == nil || p.RTT == 0 || p.RxBytes == 0 || p.TxBytes == 0 || len(p.AllowedIPs) != 2 || !p.Endpoint.IsValid() {
			t.Errorf("%+v", p)
		}
	}
	table := f.exec("east/n1", "agent", "status")
	for _, want := range []string{"east/n1", "flatmesh0", "userspace", s.Device.PublicKey.String(), "connected for", "west/n1", "west/n2", "Up", "tunnel", "10.2.0.0/24"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
	if out, code := f.try("east/n1", "agent", "status", "--cluster", "north", "-o", "wide"); code != 0 || strings.Contains(out, "west/n1") {
		t.Errorf("filtered by cluster: exit code %d\n%s", code, out)
	}
	f.Cut(t.Context(), "east/n1", "west/n1", false)
	f.awaitTunnel("east/n1", "west/n1", mesh.Down)
	out, code := f.try("east/n1", "agent", "status", "--state", "Down", "-o", "yaml")
	if code != 1 || !strings.Contains(out, "west/n1") || strings.Contains(out, "west/n2") {
		t.Errorf("with a tunnel down: exit code %d\n%s", code, out)
	}
	if out, code := f.try("east/n1", "agent", "status", "--state", "Asleep"); code != 2 || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("bad usage: exit code %d, want 2 and one line: %s", code, out)
	}
	if out, code := f.try("east/n1", "agent", "status", "--run-dir", "/nowhere"); code != 2 || !strings.Contains(out, "no agent runs here") {
		t.Errorf("no agent: exit code %d: %s", code, out)
	}
}
