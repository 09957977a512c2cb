package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func cluster(name, network, pods string) Cluster {
	return Cluster{Name: name, Network: network, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(pods)}, Nodes: 2, PodsPerNode: 1, MTU: 1500}
}

// What remains keeps its numbers when others come and go.
func TestNumbersAreStable(t *testing.T) {
	var s state
	check := func(name string, index, router int) {
		t.Helper()
		c, err := s.cluster(name)
		if err != nil || c.Index != index || c.Router != router {
			t.Errorf("%s: index %d, router %d, %v; want %d, %d", name, c.Index, c.Router, err, index, router)
		}
	}
	for _, c := range []Cluster{cluster("a", "a", "10.1.0.0/16"), cluster("b", "b", "10.2.0.0/16"), cluster("c", "a", "10.3.0.0/16")} {
		if err := s.add(c); err != nil {
			t.Fatal(err)
		}
	}
	check("a", 1, 1)
	check("b", 2, 2)
	check("c", 3, 1)
	s.remove("a")
	if err := s.add(cluster("d", "d", "10.4.0.0/16")); err != nil {
		t.Fatal(err)
	}
	check("b", 2, 2)
	check("c", 3, 1)
	check("d", 1, 3) // router 1 still serves c
}

func TestNodeNames(t *testing.T) {
	s := state{Name: "l"}
	if err := s.add(cluster("east", "east", "10.1.0.0/24")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"east":     "east/n3",
		"east/n4":  "east/n4",
		"east/n1":  "already",
		"east/n5":  "10.1.0.0/24 has room for 4 nodes",
		"east/n01": "called n1, n2",
		"east/x":   "called n1, n2",
		"west":     "want CLUSTER/NODE",
		"west/n1":  `no cluster "west"`,
	} {
		got := ""
		n, err := s.newNode(name)
		if err != nil {
			got = err.Error()
		} else {
			got = n.id().String()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s; want %s", name, got, want)
		}
	}
}

// The files must be what Kubernetes' own types accept.
func TestNodeObject(t *testing.T) {
	s := state{Name: "l"}
	c := cluster("east", "east", "10.1.0.0/16")
	c.PodCIDRs = append(c.PodCIDRs, netip.MustParsePrefix("fd00:1::/48"))
	if err := s.add(c); err != nil {
		t.Fatal(err)
	}
	b, err := yaml.Marshal(s.Clusters[0].nodes()[1].object())
	if err != nil {
		t.Fatal(err)
	}
	var n corev1.Node
	if err := yaml.UnmarshalStrict(b, &n); err != nil {
		t.Fatalf("%v in:\n%s", err, b)
	}
	if n.Kind != "Node" || n.Name != "n2" || strings.Join(n.Spec.PodCIDRs, " ") != "10.1.1.0/24 fd00:1:0:1::/64" ||
		len(n.Status.Addresses) != 3 || n.Status.Addresses[0].Address != "100.65.0.2" || n.Status.Addresses[1].Address != "fd00:100:1::2" {
		t.Errorf("%s", b)
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []string{"one", "two"} {
		if err := writeFile(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Error(string(got), err)
		}
	}
	if err := writeFile(filepath.Join(path, "below-a-file"), nil); err == nil {
		t.Error("no error")
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
}

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	unlock, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockDir(ended, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("locked twice: %v", err)
	}
	// The next holder must not end up with the lock of a folder that is gone.
	got := make(chan error)
	go func() {
		unlock, err := lockDir(context.Background(), dir)
		if err == nil {
			_, err = os.Stat(dir)
			unlock()
		}
		got <- err
	}()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestCutAt(t *testing.T) {
	var s state
	for _, c := range []Cluster{cluster("a", "a", "10.1.0.0/16"), cluster("b", "b", "10.2.0.0/16"), cluster("c", "c", "10.3.0.0/16"), cluster("d", "d", "10.4.0.0/16")} {
		c.NAT = c.Name > "b"
		if err := s.add(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ from, to, want string }{
		{"a/n1", "b/n1", "a"},
		{"b/n1", "a/n1", "a"},
		{"a/n1", "c/n1", "c"},
		{"c/n1", "a/n1", "c"},
		{"c/n1", "c/n2", "c"},
		{"c/n1", "d/n1", ""},
		{"a/n1", "a/n1", ""},
	} {
		from, err := s.site(c.from)
		if err != nil {
			t.Fatal(err)
		}
		to, err := s.site(c.to)
		if err != nil {
			t.Fatal(err)
		}
		at, err := cutAt(from, to)
		if (err == nil) != (c.want != "") || err == nil && at.cluster.Name != c.want {
			t.Errorf("%s to %s: at %v, %v; want %s", c.from, c.to, at, err, c.want)
		}
	}
}
