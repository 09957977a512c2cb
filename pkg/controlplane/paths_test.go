package controlplane

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/source/dir"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestPaths goes from folders of YAML and tunnel states to what each node is
// served. An archive holds files under clusters/, the nodes that register in
// "registered", tunnels as "FROM TO STATE REASON" in "tunnels", and in "flags" mcs
// if that is on; "want" is what follows: peers of each cluster, and for each node
// that reports the assignments of all services, and why they are so.
func TestPaths(t *testing.T) {
	files, err := filepath.Glob("testdata/paths/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no archives", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := section(a, "want")
			got := []byte(pathsOf(t, a))
			if *update {
				a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "want" })
				a.Files = append(a.Files, txtar.File{Name: "want", Data: got})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, []byte(want)) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func section(a *txtar.Archive, name string) string {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func pathsOf(t *testing.T, a *txtar.Archive) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range a.Files {
		if !strings.HasPrefix(f.Name, "clusters/") {
			continue
		}
		path := filepath.Join(root, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlane(t, func(o *Options) {
		o.Services.MCS = strings.Contains(section(a, "flags"), "mcs")
		o.ValidateResources = true
	})
	var batch []source.Update
	folders, err := filepath.Glob(filepath.Join(root, "clusters", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		s, err := dir.Load(folder)
		if err != nil {
			t.Fatal(err)
		}
		u := source.Update{Source: folder, Cluster: s.Cluster, Full: true}
		for _, k := range slices.SortedFunc(maps.Keys(s.Objects), source.Key.Compare) {
			u.Changes = append(u.Changes, source.Change{Key: k, Object: s.Objects[k]})
		}
		batch = append(batch, u)
	}
	if err := p.turn1(func(l *loop) error { l.takeUpdates(batch, true); return nil }); err != nil {
		t.Fatal(err)
	}
	p.mustJoin(strings.Fields(section(a, "registered"))...)
	reports := mesh.Reachability{}
	for line := range strings.Lines(section(a, "tunnels")) {
		f := strings.Fields(line)
		if len(f) != 4 {
			t.Fatalf("tunnel %q: want FROM TO STATE REASON", line)
		}
		var s mesh.TunnelState
		if err := s.UnmarshalText([]byte(f[2])); err != nil {
			t.Fatal(err)
		}
		if reports[id(f[0])] == nil {
			reports[id(f[0])] = map[mesh.NodeID]mesh.TunnelStatus{}
		}
		reports[id(f[0])][id(f[1])] = mesh.TunnelStatus{State: s, Reason: mesh.Reason(f[3])}
	}
	var out strings.Builder
	for _, c := range p.topology.Clusters {
		fmt.Fprintf(&out, "peers of %s: %s\n", c.Name, p.peersOf(c.Name))
	}
	nodes := slices.SortedFunc(maps.Keys(reports), mesh.NodeID.Compare)
	for _, n := range nodes {
		p.catalog.SetReport(n, reports[n])
	}
	for _, n := range nodes {
		fmt.Fprintf(&out, "\nclients on %s:\n", n)
		for _, name := range clusterNames(p) {
			showAssignment(t, &out, p, n, name)
		}
		for _, s := range serviceNames(p) {
			showReasons(t, &out, p, n, s)
		}
	}
	for _, c := range p.topology.Clusters {
		names, _ := p.catalog.Names(view.Of(build.Gateway, mesh.NodeID{Cluster: c.Name}), resource.ClusterType)
		slices.Sort(names)
		fmt.Fprintf(&out, "\ngateways of %s:\n", c.Name)
		for _, name := range names {
			if r, answer := p.catalog.Lookup(view.Of(build.Gateway, mesh.NodeID{Cluster: c.Name}), resource.EndpointType, name); answer == xds.Found {
				writeAssignment(t, &out, r.GetResource().GetValue(), name)
			}
		}
	}
	return out.String()
}

func serviceNames(p *plane) []mesh.ServiceName {
	all := map[mesh.ServiceName]bool{}
	for _, c := range p.clusters {
		for _, s := range c.index.Services() {
			all[s] = true
		}
	}
	return slices.SortedFunc(maps.Keys(all), mesh.ServiceName.Compare)
}

// clusterNames lists all names under which some service port may be known.
func clusterNames(p *plane) []string {
	scopes := []mesh.Scope{mesh.ScopeMesh}
	if p.options.Services.MCS {
		scopes = []mesh.Scope{mesh.ScopeCluster, mesh.ScopeSet}
	}
	var out []string
	for _, s := range serviceNames(p) {
		ports := map[uint16]bool{}
		for _, c := range p.clusters {
			if part, ok := c.index.Part(s); ok {
				for _, q := range part.Ports {
					ports[q.Number] = true
				}
			}
		}
		for _, port := range slices.Sorted(maps.Keys(ports)) {
			for _, scope := range scopes {
				out = append(out, build.ClusterName(port, build.Host(s, scope)))
			}
		}
	}
	return out
}

func showAssignment(t *testing.T, out *strings.Builder, p *plane, n mesh.NodeID, name string) {
	t.Helper()
	r, answer := p.catalog.Lookup(view.Of(build.GRPC, n), resource.EndpointType, name)
	if answer != xds.Found {
		fmt.Fprintf(out, "  %s: %v\n", name, answer)
		return
	}
	writeAssignment(t, out, r.GetResource().GetValue(), name)
}

func writeAssignment(t *testing.T, out *strings.Builder, b []byte, name string) {
	t.Helper()
	var cla endpoint.ClusterLoadAssignment
	if err := proto.Unmarshal(b, &cla); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(out, "  %s:", name)
	if len(cla.GetEndpoints()) == 0 {
		out.WriteString(" withheld")
	}
	out.WriteByte('\n')
	var lines []string
	for _, l := range cla.GetEndpoints() {
		var addrs []string
		for _, e := range l.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			ip, err := netip.ParseAddr(a.GetAddress())
			if err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, netip.AddrPortFrom(ip, uint16(a.GetPortValue())).String())
		}
		lines = append(lines, fmt.Sprintf("    priority %d, weight %d, locality %q/%q/%q: %s\n", l.GetPriority(), l.GetLoadBalancingWeight().GetValue(),
			l.GetLocality().GetRegion(), l.GetLocality().GetZone(), l.GetLocality().GetSubZone(), strings.Join(addrs, " ")))
	}
	slices.Sort(lines)
	out.WriteString(strings.Join(lines, ""))
}

func showReasons(t *testing.T, out *strings.Builder, p *plane, n mesh.NodeID, s mesh.ServiceName) {
	t.Helper()
	answers, err := paths(p.catalog, n, s.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		fmt.Fprintf(out, "  %s %d %v on %s: %v, %s", a.Service, a.Port, a.Address, a.Node, a.Path, a.Reason)
		if a.Detail != "" {
			fmt.Fprintf(out, " (%s)", a.Detail)
		}
		out.WriteByte('\n')
	}
}
