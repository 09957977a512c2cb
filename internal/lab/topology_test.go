package lab

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTopology(t *testing.T) {
	got, err := ParseTopology("lab.yaml", []byte(`
clusters:
  - name: east
    podCIDRs: [10.1.0.0/16, fd00:1::/48]
    serviceCIDRs: [10.101.0.0/16]
  - name: west
    network: coast
    podCIDRs: &pods
      - 10.2.0.0/16
    serviceCIDRs: [10.102.0.0/16]
    nodes: 3
    podsPerNode: 0
    mtu: 1400
    gateways: 2
    zones: [eu/a, eu/b]
  - {name: home, nat: true, podCIDRs: *pods, serviceCIDRs: [10.102.0.0/16]}
  - {name: bare, podCIDRs: [10.3.0.0/16], serviceCIDRs: [10.103.0.0/24]}
services:
  - name: echo
    pods: [p1]
  - name: shop
    namespace: trade
    clusters: [west, home]
    pods: [p2, n1/p3]
    serviceAccount: seller
    annotations: {flatmesh.io/tls: "false", flatmesh.io/export: "false"}
    ports:
      - {port: 80, appProtocol: http}
      - {port: 443, targetPort: 50051}
      - {name: odd, port: 9, targetPort: 9, appProtocol: x}
`))
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix
	want := Topology{Clusters: []Cluster{
		{Name: "east", Network: "east", PodCIDRs: []netip.Prefix{p("10.1.0.0/16"), p("fd00:1::/48")}, ServiceCIDRs: []netip.Prefix{p("10.101.0.0/16")}, Nodes: 1, PodsPerNode: 1, MTU: 1500},
		{Name: "west", Network: "coast", PodCIDRs: []netip.Prefix{p("10.2.0.0/16")}, ServiceCIDRs: []netip.Prefix{p("10.102.0.0/16")}, Nodes: 3, MTU: 1400,
			Gateways: 2, Zones: []Zone{{"eu", "a"}, {"eu", "b"}}},
		{Name: "home", Network: "home", PodCIDRs: []netip.Prefix{p("10.2.0.0/16")}, ServiceCIDRs: []netip.Prefix{p("10.102.0.0/16")}, Nodes: 1, PodsPerNode: 1, NAT: true, MTU: 1500},
		{Name: "bare", Network: "bare", PodCIDRs: []netip.Prefix{p("10.3.0.0/16")}, ServiceCIDRs: []netip.Prefix{p("10.103.0.0/24")}, Nodes: 1, PodsPerNode: 1, MTU: 1500},
	}, Services: []Service{
		{Name: "echo", Namespace: "demo", Pods: []string{"p1"}, Ports: []ServicePort{{"grpc-80", 80, 50051, "grpc"}}},
		{
			Name: "shop", Namespace: "trade", Clusters: []string{"west", "home"}, Pods: []string{"p2", "n1/p3"}, ServiceAccount: "seller",
			Annotations: map[string]string{"flatmesh.io/tls": "false", "flatmesh.io/export": "false"},
			Ports:       []ServicePort{{"http-80", 80, 8080, "http"}, {"grpc-443", 443, 50051, "grpc"}, {"odd", 9, 9, "x"}},
		},
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestParseTopologyErrors(t *testing.T) {
	const good = "clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/16]\n"
	const served = good + "    serviceCIDRs: [10.101.0.0/16]\nservices:\n"
	for name, c := range map[string]struct{ yaml, want string }{
		"empty":              {"", "lab.yaml: the file is empty"},
		"not YAML":           {"clusters: [", "lab.yaml: yaml: line 1"},
		"two documents":      {good + "---\n" + good, "lab.yaml: line 4: a second YAML document"},
		"not a mapping":      {"- a", "lab.yaml:1: want fields with values"},
		"no clusters":        {"clusters: []", "lab.yaml:1: clusters: want at least one"},
		"clusters no list":   {"clusters: east", "lab.yaml:1: clusters: want a list"},
		"unknown at top":     {"cluster: []", "lab.yaml:1: cluster: unknown field"},
		"unknown field":      {good + "    nods: 2\n", "lab.yaml:4: clusters[0].nods: unknown field"},
		"merge key":          {good + "    <<: {nodes: 2}\n", "lab.yaml:4: clusters[0].<<: unknown field"},
		"given twice":        {good + "    nodes: 2\n    nodes: 2\n", "lab.yaml:5: clusters[0].nodes: given twice"},
		"no nodes":           {good + "    nodes: 0\n", "lab.yaml:4: clusters[0].nodes: 0: want 1 to"},
		"nodes text":         {good + "    nodes: two\n", "lab.yaml:4: clusters[0].nodes: want a number"},
		"nodes fraction":     {good + "    nodes: 1.5\n", "lab.yaml:4: clusters[0].nodes: want a number"},
		"nodes huge":         {good + "    nodes: 99999999999999999999\n", "clusters[0].nodes: "},
		"nodes hex":          {good + "    nodes: 0x2\n", `clusters[0].nodes: "0x2": want a whole number`},
		"pods negative":      {good + "    podsPerNode: -1\n", "lab.yaml:4: clusters[0].podsPerNode: -1: want 0 to"},
		"nat text":           {good + "    nat: sometimes\n", "lab.yaml:4: clusters[0].nat: want true or false"},
		"mtu zero":           {good + "    mtu: 0\n", "lab.yaml:4: clusters[0].mtu: 0: want 1280 to"},
		"name missing":       {"clusters:\n  - podCIDRs: [10.1.0.0/16]\n", "lab.yaml:2: clusters[0].name: cluster name"},
		"name bad":           {"clusters:\n  - name: East\n    podCIDRs: [10.1.0.0/16]\n", `lab.yaml:2: clusters[0].name: cluster name "East"`},
		"name taken":         {"clusters:\n  - name: router\n    podCIDRs: [10.1.0.0/16]\n", "lab.yaml:2: clusters[0].name: \"router\" is what the lab"},
		"network bad":        {good + "    network: a.b\n", "lab.yaml:4: clusters[0].network: "},
		"no pod range":       {"clusters:\n  - name: east\n", "lab.yaml:2: clusters[0].podCIDRs: want one range"},
		"bad prefix":         {"clusters:\n  - name: east\n    podCIDRs:\n      - 10.1.0.0/16\n      - 10.2.0.0\n", "lab.yaml:5: clusters[0].podCIDRs[1]: \"10.2.0.0\": want an address range"},
		"host bits":          {"clusters:\n  - name: east\n    podCIDRs: [10.1.0.1/16]\n", "did you mean 10.1.0.0/16?"},
		"two of a family":    {"clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/16, 10.2.0.0/16]\n", "clusters[0].podCIDRs[1]: a second IPv4 range"},
		"own overlap":        {good + "    serviceCIDRs: [10.1.128.0/17]\n", "lab.yaml:4: clusters[0].serviceCIDRs[0]: 10.1.128.0/17 overlaps podCIDRs[0] 10.1.0.0/16"},
		"underlay":           {good + "    serviceCIDRs: [100.64.0.0/16]\n", "from which the lab takes the nodes' addresses"},
		"too small":          {"clusters:\n  - name: east\n    podCIDRs: [10.1.0.0/30]\n    nodes: 2\n", "lab.yaml:3: clusters[0].podCIDRs[0]: 10.1.0.0/30 is too small for 2 nodes"},
		"same name":          {good + "  - name: east\n    podCIDRs: [10.2.0.0/16]\n", "lab.yaml:4: clusters[1].name: there are two clusters called east"},
		"network overlap":    {good + "  - name: west\n    network: east\n    podCIDRs: [10.1.4.0/24]\n", "lab.yaml:6: clusters[1].podCIDRs[0]: 10.1.4.0/24 overlaps 10.1.0.0/16 of east in the same network"},
		"gateways many":      {good + "    gateways: 17\n", "lab.yaml:4: clusters[0].gateways: 17: want 0 to 16"},
		"gateways, no IPs":   {good + "    gateways: 1\n", "clusters[0].serviceCIDRs: services and gateways need a range"},
		"gateway in NAT":     {good + "    gateways: 1\n    nat: true\n    serviceCIDRs: [10.2.0.0/16]\n", "lab.yaml:4: clusters[0].gateways: nobody would reach"},
		"gateway name":       {"clusters:\n  - name: gateway\n    podCIDRs: [10.1.0.0/16]\n", "is what the lab calls its gateways"},
		"zone":               {good + "    zones: [a]\n", "lab.yaml:4: clusters[0].zones[0]: \"a\": want REGION/ZONE"},
		"zone bad":           {good + "    zones: [a/B]\n", "lab.yaml:4: clusters[0].zones[0]: a/B: want REGION/ZONE"},
		"services, no IPs":   {good + "services:\n  - name: echo\n", "lab.yaml:2: clusters[0].serviceCIDRs: services and gateways need a range"},
		"few service IPs":    {good + "    serviceCIDRs: [10.2.0.0/28]\nservices:\n  - name: echo\n", "10.2.0.0/28 is too small for 1 services"},
		"service unnamed":    {served + "  - ports: []\n", "lab.yaml:6: services[0].name: service"},
		"service field":      {served + "  - name: a\n    port: 80\n", "lab.yaml:7: services[0].port: unknown field"},
		"service twice":      {served + "  - name: a\n  - name: a\n", "lab.yaml:7: services[1].name: there are two services demo/a"},
		"service system":     {served + "  - name: a\n    namespace: flatmesh-system\n", "lab.yaml:7: services[0].namespace: "},
		"service cluster":    {served + "  - name: a\n    clusters: [west]\n", "lab.yaml:7: services[0].clusters[0]: there is no cluster \"west\""},
		"service account":    {served + "  - name: a\n    serviceAccount: A\n", "lab.yaml:7: services[0].serviceAccount: \"A\": want lower-case"},
		"service pods":       {served + "  - name: a\n    pods: [n1]\n", "lab.yaml:7: services[0].pods[0]: \"n1\": want p1"},
		"port large":         {served + "  - name: a\n    ports: [{port: 65536}]\n", "lab.yaml:7: services[0].ports[0].port: 65536: out of range"},
		"port twice":         {served + "  - name: a\n    ports: [{port: 80}, {port: 80, targetPort: 8080}]\n", "services[0].ports[1].port: a second port 80"},
		"port name twice":    {served + "  - name: a\n    ports: [{port: 80, name: x}, {port: 81, name: x}]\n", "services[0].ports[1].name: a second port called x"},
		"annotation bool":    {served + "  - name: a\n    annotations: {flatmesh.io/tls: true}\n", "lab.yaml:7: services[0].annotations.flatmesh.io/tls: want text, in quotes"},
		"tls":                {served + "  - name: a\n    annotations: {flatmesh.io/tls: maybe}\n", "lab.yaml:7: services[0].annotations.flatmesh.io/tls: \"maybe\": want"},
		"tls of HTTP":        {served + "  - name: a\n    annotations: {flatmesh.io/tls: mesh}\n    ports: [{appProtocol: http}]\n", "the pods speak mTLS on port 50051 alone"},
		"tls and not":        {served + "  - name: a\n    ports: [{port: 80}, {port: 81, appProtocol: tcp}]\n", "lab.yaml:7: services[0].ports: the pods speak either"},
		"pods of two spaces": {served + "  - name: a\n  - name: b\n    namespace: other\n", "lab.yaml:7: services[1].name: a pod cannot be in the namespaces of both"},
		"pods of accounts":   {served + "  - {name: a, serviceAccount: x}\n  - {name: b, serviceAccount: y, pods: [p2]}\n", "services[1].name: a pod cannot have the serviceAccount"},
		"pods of TLS":        {served + "  - {name: a, pods: [n1/p2]}\n  - {name: b, pods: [p2], annotations: {flatmesh.io/tls: none}}\n", "services[1].name: a pod speaks either"},
		"nat shares":         {good + "  - name: west\n    network: east\n    nat: true\n    podCIDRs: [10.2.0.0/16]\n", "a cluster with nat needs a network of its own"},
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
	if err != nil || len(files) < 8 {
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
	f.Add([]byte("clusters:\n  - {name: a, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.2.0.0/24], gateways: 2, zones: [r/z]}\nservices:\n  - {name: s, ports: [{port: 80}]}\n"))
	f.Add([]byte("clusters:\n  - &a {name: b, podCIDRs: [10.0.0.0/28], nodes: 2}\n  - *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		topology, err := ParseTopology("f", data)
		if err != nil {
			return
		}
		if len(topology.Clusters) > 2 || slices.ContainsFunc(topology.Clusters, func(c Cluster) bool { return c.Nodes > 100 }) {
			return
		}
		s := stateOf(t, topology)
		for i := range s.Clusters {
			s.serviceObjects(&s.Clusters[i])
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
