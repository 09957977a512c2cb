package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// folder is a cluster's folder, which the control plane reads.
func (f *fixture) folder(cluster string) string { return filepath.Join(f.Dir(), "clusters", cluster) }

// add adds clusters to the lab.
func (f *fixture) add(topology string) {
	f.t.Helper()
	spec, err := lab.ParseTopology("more.yaml", []byte(topology))
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.AddClusters(f.t.Context(), spec); err != nil {
		f.t.Fatal(err)
	}
}

// A cluster that overlaps an established one gets no tunnels, every surface says
// why, and the established ones lose nothing. When it goes, the conflict does.
func TestOverlap(t *testing.T) {
	f := up(t, twoClusters)
	flow := f.stream("east/n1/p1", "west/n1/p1")
	f.add(`clusters: [{name: south, podCIDRs: [10.1.128.0/17], serviceCIDRs: [10.103.0.0/16], nodes: 1}]`)
	f.await("south is registered and conflicts", func() error {
		s := f.mesh()
		if s.Nodes.Registered != 5 || s.Nodes.Connected != 5 || s.Tunnels.Expected != 8 || s.Tunnels.Up != 8 {
			return fmt.Errorf("%+v %+v", s.Nodes, s.Tunnels)
		}
		return nil
	})
	i := slices.IndexFunc(f.mesh().Conflicts, func(c mesh.Conflict) bool { return c.Effect == mesh.Yields })
	if i < 0 {
		t.Fatalf("no conflict: %v", f.mesh().Conflicts)
	}
	if c := f.mesh().Conflicts[i]; c.First.Cluster != "east" || c.Second.Cluster != "south" {
		t.Errorf("conflict %v", c)
	}
	f.await("south's status says why", func() error {
		out, code := f.try("south/n1", "agent", "status")
		if code != 0 || !strings.Contains(out, "10.1.128.0/17") || !strings.Contains(out, "10.1.0.0/16 of east") || !strings.Contains(out, "no IPv4 tunnels") {
			return fmt.Errorf("exit code %d:\n%s", code, out)
		}
		return nil
	})
	if out, _ := f.try("controlplane", "controlplane", "status"); !strings.Contains(out, "pod range 10.1.128.0/17 of south overlaps pod range 10.1.0.0/16 of east") {
		t.Errorf("the control plane's status does not say why:\n%s", out)
	}
	if f.logged("controlplane", lab.ControlPlane, "10.1.128.0/17 of south overlaps") != 1 {
		t.Error("the log does not tell of the conflict once")
	}
	if out := f.exec("controlplane", "lab", "call", "--help"); out == "" { // the lab's own binary is on the path
		t.Error("no help")
	}
	f.refused("west/n1/p1", "south/n1/p1")
	f.refused("south/n1/p1", "west/n1/p1")
	f.reach("east/n2/p1", "west/n2/p1")
	if err := f.RemoveCluster(t.Context(), "south"); err != nil {
		t.Fatal(err)
	}
	f.await("the conflict has ended", func() error {
		if s := f.mesh(); slices.ContainsFunc(s.Conflicts, func(c mesh.Conflict) bool { return c.Effect == mesh.Yields }) || len(s.Clusters) != 2 {
			return fmt.Errorf("%v, %d clusters", s.Conflicts, len(s.Clusters))
		}
		return nil
	})
	flow.lostNone()
}

// A pod range over another cluster's services puts the two apart, both ways and
// at run time, closed rather than in plaintext; a third cluster keeps both.
func TestPutApart(t *testing.T) {
	f := up(t, `clusters: [{name: a, podCIDRs: [10.1.0.0/16]}, {name: b, podCIDRs: [10.2.0.0/16]}, {name: c, podCIDRs: [10.3.0.0/16]}]`)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	flow := f.stream("a/n1/p1", "b/n1/p1")
	watch := f.begin("core", "sniff", "core", "env", roleVariable+"=sniff", self, "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")
	declaration := filepath.Join(f.folder("c"), "cluster.yaml")
	good, err := os.ReadFile(declaration)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(declaration, append(good, "\nserviceCIDRs: [10.2.128.0/20]\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	f.await("b and c are apart", func() error { return f.wantTunnels(4) })
	f.await("and say so", func() error {
		if out, _ := f.try("b/n1", "agent", "status"); !strings.Contains(out, "no IPv4 tunnels between b and c") && !strings.Contains(out, "no IPv4 tunnels between c and b") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	f.refused("b/n1/p1", "c/n1/p1")
	f.refused("c/n1/p1", "b/n1/p1")
	f.reach("a/n1/p1", "c/n1/p1")
	f.reach("c/n1/p1", "a/n1/p1")
	if err := os.WriteFile(declaration, good, 0o600); err != nil {
		t.Fatal(err)
	}
	f.await("together again", func() error { return f.wantTunnels(6) })
	f.reach("b/n1/p1", "c/n1/p1")
	flow.lostNone()
	var r sniffed
	if watch.finish(&r); r.Leaked != 0 {
		t.Errorf("%d packets leaked, the first %s", r.Leaked, r.First)
	}
}

// Nodes and clusters come and go at run time.
func TestAddAndRemove(t *testing.T) {
	f := up(t, twoClusters)
	flow := f.stream("east/n1/p1", "west/n1/p1")
	host, err := f.AddNode(t.Context(), "east/n3")
	if err != nil || host != "east/n3" {
		t.Fatal(host, err)
	}
	f.await("the new node's tunnels", func() error { return f.wantTunnels(12) })
	f.reach("east/n3/p1", "west/n2/p1")
	f.add(`clusters: [{name: north, podCIDRs: [10.3.0.0/16], nodes: 1}]`)
	f.await("the new cluster's tunnels", func() error { return f.wantTunnels(22) })
	f.reach("north/n1/p1", "west/n2/p1")
	f.reach("east/n3/p1", "north/n1/p1")
	if err := f.RemoveNode(t.Context(), "east/n3"); err != nil {
		t.Fatal(err)
	}
	f.await("the node is gone", func() error { return f.wantTunnels(16) })
	if err := f.RemoveCluster(t.Context(), "north"); err != nil {
		t.Fatal(err)
	}
	f.await("the cluster is gone", func() error { return f.wantTunnels(8) })
	f.await("nothing of it is left on a node", func() error {
		if out := f.exec("west/n1", "ip", "route", "show", "table", "51830"); strings.Contains(out, "10.3.") || strings.Contains(out, "10.1.2.") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	flow.lostNone()
}

func (f *fixture) wantTunnels(n int) error {
	if s := f.mesh(); s.Tunnels.Up != n || s.Tunnels.Expected != n || s.Nodes.Connected != s.Nodes.Total {
		return fmt.Errorf("%+v %+v, want %d up", s.Nodes, s.Tunnels, n)
	}
	return nil
}

// A folder that empties or vanishes is held; that it comes back or is confirmed
// ends that.
func TestHeldRemoval(t *testing.T) {
	f := up(t, twoClusters)
	flow := f.stream("east/n1/p1", "west/n1/p1")
	aside := filepath.Join(f.Dir(), "aside")
	held := func() error {
		out, code := f.try("controlplane", "controlplane", "status")
		if code != 1 || !strings.Contains(out, "controlplane confirm west") {
			return fmt.Errorf("exit code %d:\n%s", code, out)
		}
		return nil
	}
	free := func() error {
		if out, code := f.try("controlplane", "controlplane", "status"); code != 0 {
			return fmt.Errorf("exit code %d:\n%s", code, out)
		}
		return nil
	}
	nodes := filepath.Join(f.folder("west"), "nodes.yaml")
	content, err := os.ReadFile(nodes)
	if err != nil {
		t.Fatal(err)
	}
	for name, step := range map[string]struct{ take, giveBack func() error }{
		"the file of nodes is gone": {
			func() error { return os.Remove(nodes) },
			func() error { return os.WriteFile(nodes, content, 0o600) },
		},
		"the folder vanishes": {
			func() error { return os.Rename(f.folder("west"), aside) },
			func() error { return os.Rename(aside, f.folder("west")) },
		},
	} {
		if err := step.take(); err != nil {
			t.Fatal(err)
		}
		f.await(name+": held", held)
		f.reach("east/n2/p1", "west/n2/p1")
		// A restart does not forget that it is held.
		f.restart(lab.ControlPlane, "controlplane")
		f.await(name+": held after a restart", held)
		if err := step.giveBack(); err != nil {
			t.Fatal(err)
		}
		f.await(name+": and back", free)
		f.connected()
	}
	flow.lostNone()

	if err := os.Rename(f.folder("west"), aside); err != nil {
		t.Fatal(err)
	}
	f.await("held again", held)
	out := f.exec("controlplane", "controlplane", "confirm", "west", "-o", "json")
	var c controlplane.Confirmed
	if err := json.Unmarshal([]byte(out), &c); err != nil || len(c.Removed) != 2 {
		t.Errorf("%v: %s", err, out)
	}
	f.await("west is gone", func() error {
		if s, err := f.status("east/n1"); err != nil || len(s.Peers) != 0 {
			return fmt.Errorf("%d peers, %v", len(s.Peers), err)
		}
		return nil
	})
	f.refused("east/n1/p1", "west/n1/p1")
	if out, code := f.try("controlplane", "controlplane", "confirm", "nowhere"); code != 2 || !strings.Contains(out, "nowhere") {
		t.Errorf("confirm of an unknown cluster: exit code %d: %s", code, out)
	}
}

// What cannot be read is refused with file, line and field, and changes nothing.
func TestBadYAML(t *testing.T) {
	f := up(t, twoClusters)
	flow := f.stream("east/n1/p1", "west/n1/p1")
	nodes := filepath.Join(f.folder("west"), "nodes.yaml")
	good, err := os.ReadFile(nodes)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(string) string
		want   []string
	}{
		"half written":    {func(s string) string { return s[:len(s)*2/3] }, []string{"nodes.yaml"}},
		"unknown field":   {func(s string) string { return strings.Replace(s, "podCIDRs:", "podCIDRz:", 1) }, []string{"nodes.yaml:", "podCIDRz"}},
		"bad prefix":      {func(s string) string { return strings.Replace(s, "10.2.0.0/24", "10.2.0.0/240", 1) }, []string{"nodes.yaml:", "10.2.0.0/240"}},
		"a node twice":    {func(s string) string { return s + "\n---\n" + s }, []string{"nodes.yaml:", "n1"}},
		"a tab":           {func(s string) string { return s + "\n\t- x" }, []string{"nodes.yaml"}},
		"an unknown kind": {func(s string) string { return s + "\n---\napiVersion: v1\nkind: Nodule\nmetadata: {name: x}\n" }, []string{"nodes.yaml:", "Nodule"}},
	} {
		if err := os.WriteFile(nodes, []byte(tt.change(string(good))), 0o600); err != nil {
			t.Fatal(err)
		}
		f.await(name+": refused", func() error {
			out, code := f.try("controlplane", "controlplane", "status")
			if code != 1 || !strings.Contains(out, "source refused") {
				return fmt.Errorf("exit code %d:\n%s", code, out)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					return fmt.Errorf("it lacks %q:\n%s", w, out)
				}
			}
			return nil
		})
		f.reach("east/n2/p1", "west/n2/p1")
		if err := os.WriteFile(nodes, good, 0o600); err != nil {
			t.Fatal(err)
		}
		f.await(name+": good again", func() error {
			if s := f.mesh(); len(s.Sources) != 0 {
				return fmt.Errorf("%v", s.Sources)
			}
			return nil
		})
	}
	flow.lostNone()
	if err := f.wantTunnels(8); err != nil {
		t.Error(err)
	}
}

// A prefix outside the declared range, or another node's, never reaches a
// device; a node without one has a tunnel and no pods.
func TestNodePrefixes(t *testing.T) {
	f := up(t, twoClusters)
	more := filepath.Join(f.folder("west"), "more.yaml")
	node := func(name, prefix string) string {
		spec := "{}"
		if prefix != "" {
			spec = fmt.Sprintf("{podCIDR: %s, podCIDRs: [%s]}", prefix, prefix)
		}
		return fmt.Sprintf("---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: %s\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.77}]}\n", name, spec)
	}
	yaml := node("outside", "10.9.0.0/24") + node("twin", "10.2.0.0/24") + node("bare", "")
	if err := os.WriteFile(more, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	f.await("the prefixes are refused", func() error {
		reasons := map[string]mesh.Reason{}
		for _, n := range f.mesh().NodeList {
			for _, r := range n.Refused {
				reasons[n.Node.Name] = r.Reason
			}
		}
		if reasons["outside"] != mesh.ReasonOutsideRange || reasons["twin"] != mesh.ReasonDuplicate || len(reasons) != 2 {
			return fmt.Errorf("%v", reasons)
		}
		return nil
	})
	f.reach("east/n1/p1", "west/n1/p1")
}

// The offline check says the same as the control plane.
func TestCheck(t *testing.T) {
	f := up(t, twoClusters)
	clusters := "/var/lib/flatmesh/clusters"
	if out, code := f.try("controlplane", "controlplane", "check", clusters); code != 0 || !strings.Contains(out, "no conflict") {
		t.Errorf("exit code %d: %s", code, out)
	}
	f.add(`clusters: [{name: south, podCIDRs: [10.1.128.0/17], nodes: 1}]`)
	out, code := f.try("controlplane", "controlplane", "check", clusters+"/east", clusters+"/south", "-o", "json", "--supernet", "10.0.0.0/8", "--prefix-length", "16")
	var c controlplane.Checked
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 1 || c.Bad() != 1 || c.Proposal == nil || c.Proposal.String() != "10.0.0.0/16" {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
	if out, code := f.try("controlplane", "controlplane", "check", "/nowhere"); code != 2 || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
}
