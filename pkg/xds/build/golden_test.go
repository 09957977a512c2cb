package build

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var update = flag.Bool("update", false, "write the golden files of testdata")

// gather collects resources, each of which must be made and valid.
type gather struct {
	t   *testing.T
	all []*discovery.Resource
}

func (g *gather) one(r *discovery.Resource, err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
	g.many([]*discovery.Resource{r}, nil)
}

func (g *gather) many(rs []*discovery.Resource, err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, r := range rs {
		if err := Validate(r); err != nil {
			g.t.Error(err)
		}
	}
	g.all = append(g.all, rs...)
}

func echoPort() ServicePort {
	return ServicePort{
		Service: mesh.ServiceName{Namespace: "demo", Name: "echo"}, Port: 80, Protocol: mesh.TCP, AppProtocol: "grpc", TLS: true, Retry: true,
		SANs: []string{"spiffe://lab.local/ns/demo/sa/echo", "spiffe://lab.local/ns/demo/sa/beta"}, TrustDomain: "lab.local",
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
}

func TestGolden(t *testing.T) {
	echo := echoPort()
	plain := ServicePort{Service: mesh.ServiceName{Namespace: "demo", Name: "plain"}, Port: 80, Protocol: mesh.TCP}
	web := ServicePort{
		Service: mesh.ServiceName{Namespace: "shop", Name: "web"}, Port: 80, Protocol: mesh.TCP, AppProtocol: "http", TrustDomain: "lab.local", TLS: true,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.11"), netip.MustParseAddr("fd00:96::11")},
	}
	db := ServicePort{
		Service: mesh.ServiceName{Namespace: "shop", Name: "db"}, Port: 5432, Protocol: mesh.TCP, TrustDomain: "lab.local", TLS: true,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.12"), netip.MustParseAddr("fd00:96::12")},
	}
	dns := ServicePort{Service: mesh.ServiceName{Namespace: "shop", Name: "dns"}, Port: 53, Protocol: mesh.UDP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.13")}}
	set := echo
	set.Scope, set.ClusterIPs = mesh.ScopeSet, nil
	own := echo
	own.Scope = mesh.ScopeCluster

	for name, build := range map[string]func(g *gather){
		"grpc": func(g *gather) {
			for _, n := range ListenerNames(echo.Service, echo.Port, echo.Scope) {
				g.one(LDS(n, echo))
			}
			g.one(RDS(echo))
			g.one(CDS(GRPC, echo))
			g.one(RDS(plain))
			g.one(CDS(GRPC, plain))
			g.one(CDS(GRPC, set))
			g.many(FixedClusters(GRPC))
		},
		"envoy": func(g *gather) {
			ports := []ServicePort{web, db, dns, echo, plain}
			g.many(EnvoyLDS(ports))
			g.one(EnvoyRDS(80, ports))
			for _, p := range ports[:4] {
				g.one(CDS(Envoy, p))
			}
			g.many(FixedClusters(Envoy))
			g.many(Secrets())
		},
		"envoy-mcs": func(g *gather) {
			g.many(EnvoyLDS([]ServicePort{set, own}))
			g.one(EnvoyRDS(80, []ServicePort{set, own}))
		},
		"gateway": func(g *gather) {
			g.many(GatewayLDS([]uint16{15443, 15447}, false))
			g.one(CDS(Gateway, echo))
			g.one(CDS(Gateway, set))
			g.many(FixedClusters(Gateway))
			g.one(EDS(Assignment{Name: echo.Name(Gateway), Direct: []Direct{local("10.0.0.1:80", "east/n1")}}))
		},
		"eds": func(g *gather) {
			d := []Direct{local("10.0.0.1:80", "east/n1"), tunnel("10.1.0.1:80", "west/n1", 0), tunnel("[fd00:1::2]:80", "west/n1", 0)}
			d[0].Region, d[0].Zone = "eu-central-1", "eu-central-1a"
			west := Remote{Cluster: "west", Pods: 3, Standby: true, Serving: addrs("203.0.113.1:15443", "203.0.113.1:15444"), StandbyAddrs: addrs("203.0.113.1:15447")}
			north := Remote{Cluster: "north", Pods: 1, Reason: mesh.ReasonNoGateway}
			g.one(EDS(Assignment{Name: "alike", Direct: d, Remote: []Remote{west, north}}))
			d[1].Priority, d[2].Priority = 1, 1
			g.one(EDS(Assignment{Name: "own-cluster-first", Direct: d, Remote: []Remote{west}, GatewayPriority: 1}))
			g.one(EDS(Assignment{Name: "withheld", Remote: []Remote{north}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := &gather{t: t}
			build(g)
			var got txtar.Archive
			for _, r := range g.all {
				j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r.GetResource())
				if err != nil {
					t.Fatal(err)
				}
				y, err := yaml.JSONToYAML(j)
				if err != nil {
					t.Fatal(err)
				}
				got.Files = append(got.Files, txtar.File{Name: r.GetName(), Data: y})
			}
			file := filepath.Join("testdata", name+".txtar")
			if *update {
				if err := os.WriteFile(file, txtar.Format(&got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(txtar.Format(&got))); d != "" {
				t.Errorf("not as in %s (run with -update to accept): %s", file, d)
			}
		})
	}
}

// Equal values give equal bytes, in whatever order they come.
func TestDeterministic(t *testing.T) {
	a, b := echoPort(), echoPort()
	b.SANs[0], b.SANs[1] = b.SANs[1], b.SANs[0]
	other := ServicePort{Service: mesh.ServiceName{Namespace: "shop", Name: "web"}, Port: 80, Protocol: mesh.TCP, AppProtocol: "http"}
	versions := func(p ServicePort, ports []ServicePort) (out []string) {
		g := &gather{t: t}
		g.one(CDS(GRPC, p))
		g.one(CDS(Envoy, p))
		g.many(EnvoyLDS(ports))
		g.one(EnvoyRDS(80, ports))
		for _, r := range g.all {
			out = append(out, r.GetName()+" "+r.GetVersion())
		}
		return out
	}
	if d := cmp.Diff(versions(a, []ServicePort{a, other}), versions(b, []ServicePort{other, b, b})); d != "" {
		t.Error(d)
	}
}

func TestClustersClaimingOneThing(t *testing.T) {
	a, b := echoPort(), echoPort()
	b.Service.Name = "other"
	ports := []ServicePort{b, a}
	g := &gather{t: t}
	g.one(EnvoyRDS(80, ports)) // one virtual address for two: Validate would see it twice
	for i := range ports {
		ports[i].AppProtocol = ""
	}
	g.many(EnvoyLDS(ports))
	names := map[string]int{}
	for _, r := range g.all {
		names[r.GetName()]++
	}
	if names["10.96.0.10_80"] != 1 {
		t.Errorf("listeners %v, want one of the address", names)
	}
}

func TestCDSRefusesAnyIdentity(t *testing.T) {
	p := echoPort()
	p.SANs, p.TrustDomain = nil, ""
	for _, k := range []Kind{GRPC, Envoy} {
		if r, err := CDS(k, p); err == nil {
			t.Errorf("%s: %v, want an error: any certificate would do", k, r)
		}
	}
	if _, err := CDS(Gateway, p); err != nil {
		t.Errorf("a gateway looks at no certificate: %v", err)
	}
}
