package lab

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTopology(t *testing.T) {
	got, err := ParseTopology("lab.yaml", []byte(`
clusters:
  - name: east
    podCIDRs: [10.1.0.0/16, fd00:1::/48]
  - name: west
    network: coast
    podCIDRs: &pods
      - 10.2.0.0/16
    serviceCIDRs: [10.102.0.0/16]
    nodes: 3
    podsPerNode: 0
    mtu: 1400
  - {name: home, nat: true, podCIDRs: *pods}
`))
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix
	want := Topology{Clusters: []Cluster{
		{Name: "east", Network: "east", PodCIDRs: []netip.Prefix{p("10.1.0.0/16"), p("fd00:1::/48")}, Nodes: 1, PodsPerNode: 1, MTU: 1500},
		{Name: "west", Network: "coast", PodCIDRs: []netip.Prefix{p("10.2.0.0/16")}, ServiceCIDRs: []netip.Prefix{p("10.102.0.0/16")}, Nodes: 3, MTU: 1400},
		{Name: "home", Network: "home", PodCIDRs: []netip.Prefix{p("10.2.0.0/16")}, Nodes: 1, PodsPerNode: 1, NAT: true, MTU: 1500},
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestParseTopologyErrors(t *testing.T) {
	const good = "clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/16]\n"
	for name, c := range map[string]struct{ yaml, want string }{
		"empty":            {"", "lab.yaml: the file is empty"},
		"not YAML":         {"clusters: [", "lab.yaml: yaml: line 1"},
		"two documents":    {good + "---\n" + good, "lab.yaml: line 4: a second YAML document"},
		"not a mapping":    {"- a", "lab.yaml:1: want fields with values"},
		"no clusters":      {"clusters: []", "lab.yaml:1: clusters: want at least one"},
		"clusters no list": {"clusters: east", "lab.yaml:1: clusters: want a list"},
		"unknown at top":   {"cluster: []", "lab.yaml:1: cluster: unknown field"},
		"unknown field":    {good + "    nods: 2\n", "lab.yaml:4: clusters[0].nods: unknown field"},
		"merge key":        {good + "    <<: {nodes: 2}\n", "lab.yaml:4: clusters[0].<<: unknown field"},
		"given twice":      {good + "    nodes: 2\n    nodes: 2\n", "lab.yaml:5: clusters[0].nodes: given twice"},
		"no nodes":         {good + "    nodes: 0\n", "lab.yaml:4: clusters[0].nodes: 0: want 1 to"},
		"nodes text":       {good + "    nodes: two\n", "lab.yaml:4: clusters[0].nodes: want a number"},
		"nodes fraction":   {good + "    nodes: 1.5\n", "lab.yaml:4: clusters[0].nodes: want a number"},
		"nodes huge":       {good + "    nodes: 99999999999999999999\n", "clusters[0].nodes: "},
		"nodes hex":        {good + "    nodes: 0x2\n", `clusters[0].nodes: "0x2": want a whole number`},
		"pods negative":    {good + "    podsPerNode: -1\n", "lab.yaml:4: clusters[0].podsPerNode: -1: want 0 to"},
		"nat text":         {good + "    nat: sometimes\n", "lab.yaml:4: clusters[0].nat: want true or false"},
		"mtu zero":         {good + "    mtu: 0\n", "lab.yaml:4: clusters[0].mtu: 0: want 1280 to"},
		"name missing":     {"clusters:\n  - podCIDRs: [10.1.0.0/16]\n", "lab.yaml:2: clusters[0].name: cluster name"},
		"name bad":         {"clusters:\n  - name: East\n    podCIDRs: [10.1.0.0/16]\n", `lab.yaml:2: clusters[0].name: cluster name "East"`},
		"name taken":       {"clusters:\n  - name: router\n    podCIDRs: [10.1.0.0/16]\n", "lab.yaml:2: clusters[0].name: \"router\" is what the lab"},
		"network bad":      {good + "    network: a.b\n", "lab.yaml:4: clusters[0].network: "},
		"no pod range":     {"clusters:\n  - name: east\n", "lab.yaml:2: clusters[0].podCIDRs: want one range"},
		"bad prefix":       {"clusters:\n  - name: east\n    podCIDRs:\n      - 10.1.0.0/16\n      - 10.2.0.0\n", "lab.yaml:5: clusters[0].podCIDRs[1]: \"10.2.0.0\": want an address range"},
		"host bits":        {"clusters:\n  - name: east\n    podCIDRs: [10.1.0.1/16]\n", "did you mean 10.1.0.0/16?"},
		"two of a family":  {"clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/16, 10.2.0.0/16]\n", "clusters[0].podCIDRs[1]: a second IPv4 range"},
		"own overlap":      {good + "    serviceCIDRs: [10.1.128.0/17]\n", "lab.yaml:4: clusters[0].serviceCIDRs[0]: 10.1.128.0/17 overlaps podCIDRs[0] 10.1.0.0/16"},
		"underlay":         {good + "    serviceCIDRs: [100.64.0.0/16]\n", "from which the lab takes the nodes' addresses"},
		"too small":        {"clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/30]\n    nodes: 2\n", "lab.yaml:3: clusters[0].podCIDRs[0]: 10.1.0.0/30 is too small for 2 nodes"},
		"same name":        {good + "  - name: east\n    podCIDRs: [10.2.0.0/16]\n", "lab.yaml:4: clusters[1].name: there are two clusters called east"},
		"network overlap":  {good + "  - name: west\n    network: east\n    podCIDRs: [10.1.4.0/24]\n", "lab.yaml:6: clusters[1].podCIDRs[0]: 10.1.4.0/24 overlaps 10.1.0.0/16 of east in the same network"},
		"nat shares":       {good + "  - name: west\n    network: east\n    nat: true\n    podCIDRs: [10.2.0.0/16]\n", "a cluster with nat needs a network of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseTopology("lab.yaml", []byte(c.yaml))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../hack/lab/examples/*.yaml")
	if err != nil || len(files) < 7 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if _, err := LoadTopology(f); err != nil {
			t.Error(err)
		}
	}
}

// Whatever the bytes, there is an error or a topology that can be built.
func FuzzParseTopology(f *testing.F) {
	f.Add([]byte("clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/16, fd00::/64]\n    nodes: 3\n"))
	f.Add([]byte("clusters:\n  - &a {name: b, podCIDRs: [10.0.0.0/28], nodes: 2}\n  - *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		topology, err := ParseTopology("f", data)
		if err != nil {
			return
		}
		s := state{Name: "f"}
		for _, c := range topology.Clusters {
			if err := s.add(c); err != nil {
				t.Fatal(err)
			}
		}
		if len(topology.Clusters) > 2 {
			return
		}
		seen := map[string]bool{}
		for _, h := range s.hosts() {
			if seen[h.Name] || seen[h.Namespace] {
				t.Fatalf("%s or %s occurs twice", h.Name, h.Namespace)
			}
			seen[h.Name], seen[h.Namespace] = true, true
		}
	})
}
