package build

import (
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestParseListenerName(t *testing.T) {
	echo := mesh.ServiceName{Namespace: "demo", Name: "echo"}
	for _, c := range []struct {
		target string
		mcs    bool
		want   mesh.ServiceName
		port   uint16
		scope  mesh.Scope
	}{
		{"echo.demo:80", false, echo, 80, mesh.ScopeMesh},
		{"echo.demo.svc:80", false, echo, 80, mesh.ScopeMesh},
		{"echo.demo.svc.cluster.local:80", false, echo, 80, mesh.ScopeMesh},
		{"echo.demo.svc.clusterset.local:80", false, echo, 80, mesh.ScopeMesh},
		{"echo.demo:80", true, echo, 80, mesh.ScopeCluster},
		{"echo.demo.svc:80", true, echo, 80, mesh.ScopeCluster},
		{"echo.demo.svc.cluster.local:80", true, echo, 80, mesh.ScopeCluster},
		{"echo.demo.svc.clusterset.local:80", true, echo, 80, mesh.ScopeSet},
		{"echo.demo", false, echo, 0, mesh.ScopeMesh},
		{"Echo.DEMO.svc.Cluster.Local:65535", false, echo, 65535, mesh.ScopeMesh},
		{"echo.demo.svc.cluster.local.:80", false, echo, 80, mesh.ScopeMesh},
		{"echo.svc:80", false, mesh.ServiceName{Namespace: "svc", Name: "echo"}, 80, mesh.ScopeMesh},
		{"svc.svc.svc:80", false, mesh.ServiceName{Namespace: "svc", Name: "svc"}, 80, mesh.ScopeMesh},
		{"echo.svc.svc.cluster.local:80", false, mesh.ServiceName{Namespace: "svc", Name: "echo"}, 80, mesh.ScopeMesh},
	} {
		s, port, scope, err := ParseListenerName(c.target, c.mcs)
		if err != nil || s != c.want || port != c.port || scope != c.scope {
			t.Errorf("%q (mcs %v): %v, port %d, scope %d, %v; want %v, %d, %d", c.target, c.mcs, s, port, scope, err, c.want, c.port, c.scope)
		}
	}
	for _, target := range []string{
		"", ":80", "echo", "echo:80", "echo.demo:", "echo.demo:0", "echo.demo:080", "echo.demo:65536", "echo.demo:http", "echo.demo:80:80", "echo.demo:+80",
		"echo.demo.svc.cluster", "echo.demo.cluster.local", "echo.demo.example.com:80", "a.b.c.svc.cluster.local:80", ".demo:80", "echo.:80",
		"echo.demo..:80", "ec_ho.demo:80", "-echo.demo:80", "10.96.0.1:80", "[fd00::1]:80", "echo.demo.svc.svc.cluster.local:80",
		"xdstp://x/envoy.config.listener.v3.Listener/echo.demo:80", "outbound|80||echo.demo.svc.cluster.local",
		strings.Repeat("a", 64) + ".demo:80", strings.Repeat("a.", 5000) + "demo:80",
	} {
		if s, port, _, err := ParseListenerName(target, false); err == nil {
			t.Errorf("%.40q: read as %v port %d, want an error", target, s, port)
		} else if len(err.Error()) > 1000 {
			t.Errorf("%.40q: an error of %d characters", target, len(err.Error()))
		}
	}
}

func TestNames(t *testing.T) {
	echo := mesh.ServiceName{Namespace: "demo", Name: "echo"}
	if got, want := Host(echo, mesh.ScopeMesh), "echo.demo.svc.cluster.local"; got != want {
		t.Errorf("host %q, want %q", got, want)
	}
	if got, want := Host(echo, mesh.ScopeSet), "echo.demo.svc.clusterset.local"; got != want {
		t.Errorf("host %q, want %q", got, want)
	}
	if got, want := ClusterName(80, Host(echo, mesh.ScopeMesh)), "outbound|80||echo.demo.svc.cluster.local"; got != want {
		t.Errorf("cluster name %q, want %q", got, want)
	}
	if got, want := SNI(80, Host(echo, mesh.ScopeMesh)), "outbound_.80_._.echo.demo.svc.cluster.local"; got != want {
		t.Errorf("server name %q, want %q", got, want)
	}
	// Each name is read back as what it was made for, and no name twice.
	for _, mcs := range []bool{false, true} {
		scopes := []mesh.Scope{mesh.ScopeMesh}
		if mcs {
			scopes = []mesh.Scope{mesh.ScopeCluster, mesh.ScopeSet}
		}
		var all []string
		for _, scope := range scopes {
			for _, n := range ListenerNames(echo, 80, scope) {
				all = append(all, n)
				if s, port, sc, err := ParseListenerName(n, mcs); err != nil || s != echo || port != 80 || sc != scope {
					t.Errorf("%q (mcs %v): %v %d %d %v", n, mcs, s, port, sc, err)
				}
			}
		}
		slices.Sort(all)
		if len(all) != 4 || len(slices.Compact(all)) != 4 {
			t.Errorf("mcs %v: names %q, want 4 different", mcs, all)
		}
	}
}

func TestParseClusterNameAndSNI(t *testing.T) {
	const host = "echo.demo.svc.cluster.local"
	if port, h, err := ParseClusterName("outbound|80||" + host); err != nil || port != 80 || h != host {
		t.Errorf("%d %q %v", port, h, err)
	}
	if port, h, err := ParseSNI("Outbound_.80_._.Echo.demo.svc.clusterset.local"); err != nil || port != 80 || h != "echo.demo.svc.clusterset.local" {
		t.Errorf("%d %q %v", port, h, err)
	}
	for _, n := range []string{
		"", host, "outbound|80|" + host, "outbound|80|v1|" + host, "inbound|80||" + host, "outbound|080||" + host, "outbound|0||" + host,
		"outbound|80||echo.demo", "outbound|80||" + host + ".", "outbound|80||Echo.demo.svc.cluster.local", "Outbound|80||" + host,
		"outbound|80||example.com", "outbound|99999||" + host, "PassthroughCluster",
	} {
		if port, h, err := ParseClusterName(n); err == nil {
			t.Errorf("cluster name %q: read as %d %q, want an error", n, port, h)
		}
	}
	for _, n := range []string{"", host, "outbound_.80_._." + host + ".", "outbound_.080_._." + host, "outbound_.80_.v1_." + host, "outbound_.80_._.echo.demo", "outbound_._._." + host, "xoutbound_.80_._." + host} {
		if port, h, err := ParseSNI(n); err == nil {
			t.Errorf("server name %q: read as %d %q, want an error", n, port, h)
		}
	}
}

// Whatever is read names a service that could exist, and its own names are read
// as the same.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"echo.demo:80", "a.svc.svc.cluster.local.", "outbound|80||echo.demo.svc.cluster.local", "outbound_.80_._.echo.demo.svc.clusterset.local"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for _, mcs := range []bool{false, true} {
			s, port, scope, err := ParseListenerName(in, mcs)
			if err != nil {
				continue
			}
			if _, err := mesh.ParseServiceName(s.String()); err != nil {
				t.Errorf("%q: %v", in, err)
			}
			names := Aliases(s, scope)
			if port != 0 {
				names = ListenerNames(s, port, scope)
			}
			for _, n := range names {
				if s2, port2, scope2, err := ParseListenerName(n, mcs); err != nil || s2 != s || port2 != port || scope2 != scope {
					t.Errorf("%q, from %q: %v %d %d %v; want %v %d %d", n, in, s2, port2, scope2, err, s, port, scope)
				}
			}
			if !slices.Contains(names, strings.Replace(strings.ToLower(in), ".:", ":", 1)) && !strings.HasSuffix(in, ".") {
				t.Errorf("%q is read as %v port %d, none of whose names it is: %q", in, s, port, names)
			}
		}
		if port, host, err := ParseClusterName(in); err == nil && ClusterName(port, host) != in {
			t.Errorf("cluster name %q is read as %d %q", in, port, host)
		}
		if port, host, err := ParseSNI(in); err == nil && SNI(port, host) != strings.ToLower(in) {
			t.Errorf("server name %q is read as %d %q", in, port, host)
		}
	})
}
