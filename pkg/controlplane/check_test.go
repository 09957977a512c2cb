package controlplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/ipam"
)

// clusterFolder makes one of the text of cluster.yaml and nodes, each
// "n1 10.1.1.0/24 192.168.1.1".
func clusterFolder(t *testing.T, name, cluster string, nodes ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(file, text string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if cluster != "" {
		put("cluster.yaml", cluster)
	}
	var docs []string
	for _, n := range nodes {
		f := strings.Fields(n)
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: %s, podCIDRs: [%s]}\nstatus: {addresses: [{type: InternalIP, address: %s}]}\n", f[0], f[1], f[1], f[2]))
	}
	if len(docs) > 0 {
		put("nodes.yaml", strings.Join(docs, "---\n"))
	}
	return dir
}

func TestCheck(t *testing.T) {
	east := "name: east\npodCIDRs: [10.1.0.0/16]\nserviceCIDRs: [10.96.0.0/12]\nnodeCIDRs: [192.168.0.0/16]\n"
	for name, c := range map[string]struct {
		folders   [][]string // each: cluster.yaml, nodes
		conflicts []string
		refused   []string
		bad       int
	}{
		"two default clusters": {
			folders:   [][]string{{east, "n1 10.1.1.0/24 192.168.1.1"}, {"name: west\npodCIDRs: [10.2.0.0/16]\nserviceCIDRs: [10.96.0.0/12]\nnodeCIDRs: [192.168.0.0/16]\n"}},
			conflicts: []string{"service range 10.96.0.0/12 of west overlaps service range 10.96.0.0/12 of east: harmless", "node range 192.168.0.0/16 of west overlaps node range 192.168.0.0/16 of east: harmless"},
		},
		"the first folder has the oldest claim, whatever its name": {
			folders:   [][]string{{"name: west\npodCIDRs: [10.1.128.0/17]\n"}, {east}},
			conflicts: []string{"pod range 10.1.0.0/16 of east overlaps pod range 10.1.128.0/17 of west: the later claim yields, so nodes of east with pods in it have no IPv4 tunnels"},
			bad:       1,
		},
		"the mesh's own range is older than all": {
			folders:   [][]string{{"name: west\npodCIDRs: [198.19.0.0/24]\nserviceCIDRs: [198.18.0.0/15]\n"}},
			conflicts: []string{"pod range 198.19.0.0/24 of west overlaps tunnel range 198.19.0.0/16 of the mesh: the later claim yields, so nodes of west with pods in it have no IPv4 tunnels", "service range 198.18.0.0/15 of west overlaps tunnel range 198.19.0.0/16 of the mesh: west has no IPv4 tunnels"},
			bad:       2,
		},
		"pods over services": {
			folders:   [][]string{{east}, {"name: west\npodCIDRs: [10.100.0.0/16]\n"}},
			conflicts: []string{"pod range 10.100.0.0/16 of west overlaps service range 10.96.0.0/12 of east: no IPv4 tunnels between east and west"},
			bad:       1,
		},
		"undeclared: the nodes' prefixes and addresses are the claims": {
			folders:   [][]string{{"name: east\n", "n1 10.1.1.0/24 192.168.1.1"}, {"name: west\n", "n1 10.1.1.0/25 192.168.1.1"}},
			conflicts: []string{"pod range 10.1.1.0/25 of west/n1 overlaps pod range 10.1.1.0/24 of east/n1: the later claim yields, so nodes of west with pods in it have no IPv4 tunnels", "node range 192.168.1.1/32 of west/n1 overlaps node range 192.168.1.1/32 of east/n1: harmless"},
			bad:       1,
		},
		"refused prefixes": {
			folders: [][]string{{east, "n1 10.1.1.0/24 192.168.1.1", "n2 10.1.1.0/25 192.168.1.2", "n3 10.9.0.0/24 192.168.1.3"}},
			refused: []string{"10.1.1.0/25 of east/n2, duplicate", "10.9.0.0/24 of east/n3, outside-range"},
			bad:     2,
		},
		"nothing at all": {},
	} {
		t.Run(name, func(t *testing.T) {
			var folders []string
			for i, f := range c.folders {
				folders = append(folders, clusterFolder(t, fmt.Sprint("f", i), f[0], f[1:]...))
			}
			got, err := Check(folders, []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")})
			if err != nil {
				t.Fatal(err)
			}
			var conflicts, refused []string
			for _, x := range got.Conflicts {
				conflicts = append(conflicts, x.String())
			}
			for _, r := range got.Refused {
				refused = append(refused, fmt.Sprintf("%v of %v, %v", r.Prefix, r.Node, r.Reason))
			}
			if !slices.Equal(conflicts, c.conflicts) {
				t.Errorf("conflicts:\n%s\nwant\n%s", strings.Join(conflicts, "\n"), strings.Join(c.conflicts, "\n"))
			}
			if !slices.Equal(refused, c.refused) {
				t.Errorf("refused: %q, want %q", refused, c.refused)
			}
			if got.Bad() != c.bad || len(got.Clusters) != len(c.folders) {
				t.Errorf("%d bad, %d clusters", got.Bad(), len(got.Clusters))
			}
			b, err := json.Marshal(got)
			if err != nil || strings.Contains(string(b), ":null") {
				t.Errorf("%s (%v)", b, err)
			}
		})
	}
}

func TestCheckRefusesFolders(t *testing.T) {
	good := clusterFolder(t, "good", "name: east\n")
	for name, c := range map[string]struct {
		folder string
		want   []string
	}{
		"no such folder":   {filepath.Join(t.TempDir(), "x"), []string{"there is no such folder"}},
		"no declaration":   {clusterFolder(t, "empty", ""), []string{"cluster.yaml"}},
		"the same cluster": {clusterFolder(t, "again", "name: east\n"), []string{"cluster name east is declared by both", "good", "again", "give one of the two another name"}},
		"a bad range":      {clusterFolder(t, "bad", "name: west\npodCIDRs: [10.1.0.1/16]\n"), []string{"cluster.yaml:2", "podCIDRs[0]", "did you mean 10.1.0.0/16?"}},
		"a bad node":       {clusterFolder(t, "badnode", "name: west\n", "n1 10.1.0.1/24 192.168.1.1"), []string{"nodes.yaml", "Node n1", "spec.podCIDR"}},
	} {
		_, err := Check([]string{good, c.folder}, nil)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", name, err, want)
			}
		}
		if name == "no such folder" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPropose(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	declared := clusterFolder(t, "a", "name: east\npodCIDRs: [10.1.0.0/16]\nserviceCIDRs: [10.2.0.0/16]\nnodeCIDRs: [10.3.128.0/17]\n")
	// Without a declaration, what nodes hold is claimed.
	undeclared := clusterFolder(t, "b", "name: west\n", "n1 10.4.1.0/24 10.5.0.1")
	for _, c := range []struct {
		folders []string
		in      string
		bits    int
		want    string
		err     error
	}{
		{nil, "10.0.0.0/8", 16, "10.1.0.0/16", nil},
		{[]string{declared}, "10.0.0.0/8", 16, "10.4.0.0/16", nil},
		{[]string{declared, undeclared}, "10.0.0.0/8", 16, "10.6.0.0/16", nil},
		{[]string{declared, undeclared}, "10.4.0.0/16", 24, "10.4.0.0/24", nil},
		{[]string{undeclared}, "10.4.0.0/23", 24, "10.4.0.0/24", nil},
		{[]string{undeclared}, "10.5.0.0/31", 32, "10.5.0.0/32", nil},
		{[]string{undeclared}, "10.5.0.0/31", 31, "", ipam.ErrExhausted},
		{[]string{declared}, "10.1.0.0/16", 24, "", ipam.ErrExhausted},
	} {
		got, err := Check(c.folders, ranges)
		if err != nil {
			t.Fatal(err)
		}
		err = got.Propose(netip.MustParsePrefix(c.in), c.bits, ranges)
		switch {
		case c.err != nil && (!errors.Is(err, c.err) || got.Proposal != nil):
			t.Errorf("%s: got %v, %v", c.in, got.Proposal, err)
		case c.err == nil && (err != nil || got.Proposal.String() != c.want):
			t.Errorf("a /%d in %s: got %v (%v), want %s", c.bits, c.in, got.Proposal, err, c.want)
		}
	}
	none, _ := Check(nil, nil)
	if err := none.Propose(netip.MustParsePrefix("10.0.0.0/8"), 4, nil); err == nil {
		t.Error("a range wider than the supernet")
	}
}
