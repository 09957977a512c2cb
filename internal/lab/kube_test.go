package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
)

// stateOf takes up a topology as Up does.
func stateOf(t *testing.T, topology Topology) *state {
	t.Helper()
	s := &state{Name: "l"}
	for _, sv := range topology.Services {
		s.addService(sv)
	}
	for _, c := range topology.Clusters {
		if err := s.add(c); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// load writes a cluster's folder and reads it as the control plane does.
func load(t *testing.T, s *state, cluster string) dir.State {
	t.Helper()
	c, err := s.cluster(cluster)
	must(t, err)
	folder := t.TempDir()
	must(t, s.writeFolder(folder, c))
	got, err := dir.Load(folder)
	must(t, err)
	return got
}

func keys(st dir.State) string {
	var list []string
	for k := range st.Objects {
		list = append(list, k.String())
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

func TestClusterFolder(t *testing.T) {
	s := stateOf(t, parse(t, `
clusters:
  - name: east
    podCIDRs: [10.1.0.0/16, "fd00:1::/48"]
    serviceCIDRs: [10.101.0.0/16, "fd00:101::/108"]
    nodes: 2
    podsPerNode: 2
    gateways: 2
    zones: [coast/a, coast/b]
  - {name: west, podCIDRs: [10.2.0.0/16], serviceCIDRs: [10.102.0.0/16]}
services:
  - {name: echo, pods: [p1]}
  - {name: web, namespace: shop, clusters: [east], pods: [n2/p2], serviceAccount: seller, ports: [{appProtocol: http}, {port: 443}]}
`))
	s.Clusters[0].GatewayNumbers = []int{1, 3}
	p := s.Clusters[0].Pods["n1-p1"]
	p.Unready = true
	s.Clusters[0].Pods["n1-p1"] = p

	east := load(t, s, "east")
	if diff := cmp.Diff(strings.TrimSpace(`
EndpointSlice demo/echo-v4-1
EndpointSlice demo/echo-v6-1
EndpointSlice shop/web-v4-1
EndpointSlice shop/web-v6-1
Namespace demo
Namespace flatmesh-system
Namespace shop
Node n1
Node n2
Pod demo/n1-p1
Pod demo/n1-p2
Pod demo/n2-p1
Pod shop/n2-p2
Service demo/echo
Service flatmesh-system/gateway
Service shop/web`), keys(east)); diff != "" {
		t.Fatal(diff)
	}
	get := func(kind source.Kind, ns, name string) any {
		return east.Objects[source.Key{Kind: kind, Namespace: ns, Name: name}]
	}
	n := get(source.KindNode, "", "n2").(*corev1.Node)
	if n.Labels["topology.kubernetes.io/region"] != "coast" || n.Labels["topology.kubernetes.io/zone"] != "b" {
		t.Errorf("labels of n2: %v", n.Labels)
	}
	pod := get(source.KindPod, "shop", "n2-p2").(*corev1.Pod)
	if pod.Spec.NodeName != "n2" || pod.Spec.ServiceAccountName != "seller" || pod.Status.PodIP != "10.1.1.3" || len(pod.Status.PodIPs) != 2 || pod.UID == "" {
		t.Errorf("%+v", pod)
	}
	for name, want := range map[string]string{"n1-p1": "echo", "n1-p2": "default"} {
		if got := get(source.KindPod, "demo", name).(*corev1.Pod).Spec.ServiceAccountName; got != want {
			t.Errorf("service account of %s: %s, want %s", name, got, want)
		}
	}
	slice := get(source.KindEndpointSlice, "demo", "echo-v6-1").(*discoveryv1.EndpointSlice)
	var lines []string
	for _, e := range slice.Endpoints {
		lines = append(lines, fmt.Sprintf("%v %s %s %v %v %v %s", e.Addresses, *e.NodeName, *e.Zone,
			*e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating, e.TargetRef.Name))
	}
	if diff := cmp.Diff([]string{"[fd00:1::2] n1 a false false false n1-p1", "[fd00:1:0:1::2] n2 b true true false n2-p1"}, lines); diff != "" {
		t.Error(diff)
	}
	if got := *slice.Ports[0].Port; got != GRPCPort || slice.Labels["kubernetes.io/service-name"] != "echo" {
		t.Errorf("%+v", slice)
	}
	web := get(source.KindService, "shop", "web").(*corev1.Service)
	if strings.Join(web.Spec.ClusterIPs, " ") != "10.101.0.17 fd00:101::11" || len(web.Spec.Ports) != 2 || web.CreationTimestamp.IsZero() {
		t.Errorf("%+v", web)
	}
	gw := get(source.KindService, "flatmesh-system", "gateway").(*corev1.Service)
	var ips []string
	for _, in := range gw.Status.LoadBalancer.Ingress {
		ips = append(ips, in.IP)
	}
	if want := "100.65.240.1 fd00:100:1::f001 100.65.240.3 fd00:100:1::f003"; strings.Join(ips, " ") != want || gw.Labels["topology.istio.io/network"] != "east" {
		t.Errorf("gateways at %v, %v; want %s", ips, gw.Labels, want)
	}

	west := load(t, s, "west")
	if got := keys(west); strings.Contains(got, "web") || strings.Contains(got, "gateway") || !strings.Contains(got, "Service demo/echo") {
		t.Errorf("west has\n%s", got)
	}
}

// What the lab's pods speak is what flatmesh makes of the YAML.
func TestServicesAsFlatmeshSeesThem(t *testing.T) {
	s := stateOf(t, parse(t, `
clusters: [{name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16], podsPerNode: 3, gateways: 1}]
services:
  - {name: echo, pods: [p1]}
  - {name: plain, pods: [p2], annotations: {flatmesh.io/tls: "false"}}
  - {name: web, pods: [p1, p2], ports: [{appProtocol: http}]}
  - {name: both, pods: [p1], ports: [{port: 80, appProtocol: http}, {port: 81}]}
  - {name: raw, pods: [p3], ports: [{appProtocol: tcp}]}
  - {name: mesh, pods: [p1], ports: [{appProtocol: tcp}], annotations: {flatmesh.io/tls: mesh}}
`))
	st := load(t, s, "east")
	index := source.NewIndex(st.Cluster, source.Options{})
	var changes []source.Change
	for k, o := range st.Objects {
		changes = append(changes, source.Change{Key: k, Object: o})
	}
	slices.SortFunc(changes, func(a, b source.Change) int { return a.Key.Compare(b.Key) })
	index.Apply(changes)
	if p := index.AllProblems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
	if gs := index.Gateways(); len(gs) != 1 || gs[0].Addr.String() != "100.65.240.1" || !slices.Equal(gs[0].Ports, gatewayPorts) || !slices.Equal(gs[0].StandbyPorts, standbyPorts) {
		t.Errorf("gateways: %+v", gs)
	}
	for _, sv := range s.Services {
		part, ok := index.Part(sv.id())
		if !ok || len(part.Ports) != len(sv.Ports) {
			t.Fatalf("%v: %+v", sv.id(), part)
		}
		for _, port := range part.Ports {
			for _, b := range port.Backends {
				if want := s.Clusters[0].Pods[b.Pod]; port.TLS != (want.MTLS && b.Addr.Port() == GRPCPort) || b.ServiceAccount != want.ServiceAccount {
					t.Errorf("%v: flatmesh takes port %d for TLS %v, account %q; the pod is %+v", sv.id(), port.Number, port.TLS, b.ServiceAccount, want)
				}
			}
			if len(port.Backends) != len(s.podsOf(sv.Service)) {
				t.Errorf("%v: %d backends", sv.id(), len(port.Backends))
			}
		}
	}
}

// A lab without services shows nodes alone, and one that lost its last service
// shows that there are none.
func TestFolderWithoutServices(t *testing.T) {
	s := stateOf(t, parse(t, `{clusters: [{name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16]}]}`))
	if got := keys(load(t, s, "east")); got != "Node n1" {
		t.Errorf("got %s", got)
	}
	folder := t.TempDir()
	for _, n := range []int{1, 0} {
		s.Services = nil
		if n == 1 {
			s.addService(Service{Name: "echo"}.complete())
		}
		must(t, s.writeFolder(folder, &s.Clusters[0]))
		st, err := dir.Load(folder)
		must(t, err)
		if got := strings.Count(keys(st), "Service "); got != n {
			t.Errorf("%d services in\n%s", got, keys(st))
		}
	}
	if left, err := filepath.Glob(filepath.Join(folder, ".*")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	if _, err := os.Stat(filepath.Join(folder, "pods.yaml")); err != nil {
		t.Error(err)
	}
}

// Kubernetes writes no more than 100 endpoints into a slice.
func TestManyEndpoints(t *testing.T) {
	s := stateOf(t, parse(t, `{clusters: [{name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16], nodes: 3, podsPerNode: 70}], services: [{name: echo}]}`))
	sizes := ""
	for _, o := range s.Clusters[0].slices(s.Services[0]) {
		sizes += fmt.Sprint(len(o["endpoints"].([]kubeObject)), " ")
	}
	if sizes != "100 100 10 " {
		t.Errorf("slices of %s", sizes)
	}
}

// Who comes later finds the pods as they are.
func TestFit(t *testing.T) {
	s := stateOf(t, parse(t, `
clusters: [{name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16], podsPerNode: 3}]
services:
  - {name: echo, pods: [p1]}
  - {name: web, namespace: shop, pods: [p2], ports: [{appProtocol: http}]}
`))
	for _, c := range []struct {
		sv   Service
		want string
	}{
		{Service{Name: "a", Pods: []string{"p1"}}, ""},
		{Service{Name: "a", Pods: []string{"p3"}}, "false"},
		{Service{Name: "a", Pods: []string{"p3"}, Annotations: map[string]string{"flatmesh.io/tls": "true"}}, "east/n1/p3 was made with mTLS false"},
		{Service{Name: "a", Pods: []string{"p1"}, Annotations: map[string]string{"flatmesh.io/tls": "false"}}, "east/n1/p1 was made with mTLS true"},
		{Service{Name: "a", Pods: []string{"p1", "p3"}}, "east/n1/p1 was made with mTLS true"},
		{Service{Name: "a", Pods: []string{"p2"}}, "east/n1/p2 was made with namespace shop"},
		{Service{Name: "a", Namespace: "shop", Pods: []string{"p2"}}, "false"},
		{Service{Name: "a", Pods: []string{"p1"}, ServiceAccount: "other"}, "east/n1/p1 was made with serviceAccount echo"},
		{Service{Name: "a", Pods: []string{"p1"}, ServiceAccount: "echo"}, ""},
		{Service{Name: "a", Pods: []string{"p9"}}, ""},
	} {
		got, err := s.fit(c.sv)
		said := got.Annotations["flatmesh.io/tls"]
		if err != nil {
			said = err.Error()
		}
		if said != c.want && (err == nil || !strings.Contains(said, c.want)) {
			t.Errorf("%+v: %s, want %s", c.sv, said, c.want)
		}
	}
}

// Services that named a cluster are not left with a name that means nothing, or
// with none, which means all.
func TestRemoveClusterOfServices(t *testing.T) {
	s := stateOf(t, parse(t, `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16]}
  - {name: west, podCIDRs: [10.2.0.0/16], serviceCIDRs: [10.102.0.0/16]}
services:
  - {name: a}
  - {name: b, clusters: [east, west]}
  - {name: c, clusters: [west]}
`))
	s.remove("west")
	must(t, s.topology().Validate())
	var names []string
	for _, sv := range s.Services {
		names = append(names, fmt.Sprint(sv.Name, sv.Clusters, sv.Number))
	}
	if got := strings.Join(names, " "); got != "a[] 0 b[east] 1" {
		t.Errorf("left: %s", got)
	}
	s.addService(Service{Name: "d"}.complete())
	if n := s.Services[2].Number; n != 2 {
		t.Errorf("number %d", n)
	}
}
