package dir

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/source"
)

func nodeYAML(name, podCIDR string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [%s]}\n", name, podCIDR)
}

func TestFirstBatchIsEverything(t *testing.T) {
	parent := t.TempDir()
	write(t, parent, map[string]string{
		"east/cluster.yaml": "name: east", "east/n1.yaml": nodeYAML("n1", "10.1.0.0/24"),
		"west/cluster.yaml": "name: west",
		"twin/cluster.yaml": "name: east",
		"bad/cluster.yaml":  "name: Bad",
		"new/":              "",
		"README.md":         "not a folder", ".git/config": "", "lost+found/": "",
	})
	c := follow(t, parent)
	var got []string
	for _, u := range c.receive() {
		u.Err = nil
		got = append(got, strings.ReplaceAll(show([]source.Update{u}), parent+"/", ""))
	}
	want := []string{"new/ gone", "bad/", "east/east full +n1", "twin/east full", "west/west full"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFirstBatchOfNothing(t *testing.T) {
	parent := t.TempDir()
	c := follow(t, parent)
	if got := c.receive(); got == nil || len(got) != 0 {
		t.Errorf("got %v, want an empty batch", got)
	}
	write(t, parent, map[string]string{"east/cluster.yaml": "name: east"})
	c.until(func() bool { return c.known["east"] != nil && c.agrees("east") })
}

func TestNoParent(t *testing.T) {
	for name, path := range map[string]string{"absent": "absent", "file": "file"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"file": ""})
			err := New(filepath.Join(dir, path), slog.New(slog.DiscardHandler)).Run(t.Context(), nil)
			if err == nil || !strings.Contains(err.Error(), "with a sub-folder for each cluster") {
				t.Errorf("got %v, want what to do", err)
			}
		})
	}
}

func TestRunEndsWhileTheConsumerIsBusy(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- New(t.TempDir(), slog.New(slog.DiscardHandler)).Run(ctx, make(chan []source.Update)) }()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestChanges takes a folder through what happens to folders, one step after
// the other, each seen through the kernel's notices alone.
func TestChanges(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "clusters")
	write(t, parent, map[string]string{"east/cluster.yaml": "name: east", "east/n.yaml": nodeYAML("n1", "10.1.0.0/24")})
	in := func(name string) string { return filepath.Join(parent, name) }
	c := follow(t, parent)
	c.receive()
	for _, step := range []struct {
		name string
		do   func() error
		want string // last update
	}{
		{"a file is written half", func() error {
			return os.WriteFile(in("east/n.yaml"), []byte("apiVersion: v1\nkind: Node\nmetadata: {name: n1"), 0o644)
		}, "east/east (east/n.yaml:3: did not find expected ',' or '}')"},
		{"and whole", func() error {
			return os.WriteFile(in("east/n.yaml"), []byte(nodeYAML("n1", "10.1.1.0/24")), 0o644)
		}, "east/east +n1"},
		{"a file is emptied", func() error { return os.Truncate(in("east/n.yaml"), 0) },
			"east/east (east/n.yaml: is empty; a file that means to hold nothing needs a comment in it, or can be removed)"},
		{"and written as it was", func() error {
			return os.WriteFile(in("east/n.yaml"), []byte(nodeYAML("n1", "10.1.1.0/24")), 0o644)
		}, "east/east"},
		{"a file is written beside and renamed", func() error {
			write(t, parent, map[string]string{"east/.n.yaml.tmp": nodeYAML("n2", "10.1.2.0/24")})
			return os.Rename(in("east/.n.yaml.tmp"), in("east/n.yaml"))
		}, "east/east -n1 +n2"},
		{"a sub-folder comes with a file", func() error {
			write(t, parent, map[string]string{"east/more/deep/n1.yaml": nodeYAML("n1", "10.1.1.0/24")})
			return nil
		}, "east/east +n1"},
		{"the file in it changes", func() error {
			write(t, parent, map[string]string{"east/more/deep/n1.yaml": nodeYAML("n1", "10.1.3.0/24")})
			return nil
		}, "east/east +n1"},
		{"a node is there twice", func() error {
			write(t, parent, map[string]string{"east/twice.yaml": nodeYAML("n2", "10.1.2.0/24")})
			return nil
		}, "east/east (east/twice.yaml:1: Node n2: is already in east/n.yaml:1)"},
		{"and once again", func() error { return os.Remove(in("east/twice.yaml")) }, "east/east"},
		{"the sub-folder goes", func() error { return os.RemoveAll(in("east/more")) }, "east/east -n1"},
		{"the declaration changes", func() error {
			return os.WriteFile(in("east/cluster.yaml"), []byte("name: east\nnetwork: vpc"), 0o644)
		}, "east/east"},
		{"the name changes", func() error { return os.WriteFile(in("east/cluster.yaml"), []byte("name: west"), 0o644) }, "east/west full +n2"},
		{"cluster.yaml goes", func() error { return os.Rename(in("east/cluster.yaml"), in("east/cluster.off")) },
			"east/west gone (east/cluster.yaml: there is no such file; it declares the cluster: its name and, where they are known, network, podCIDRs, serviceCIDRs and nodeCIDRs)"},
		{"and comes back", func() error { return os.Rename(in("east/cluster.off"), in("east/cluster.yaml")) }, "east/west full +n2"},
		{"the folder goes", func() error { return os.Rename(in("east"), in("../east")) }, "east/west gone (east: there is no such folder)"},
		{"and comes back", func() error { return os.Rename(in("../east"), in("east")) }, "east/west full +n2"},
		{"a file changes then", func() error { return os.WriteFile(in("east/n.yaml"), []byte(nodeYAML("n3", "10.1.2.0/24")), 0o644) }, "east/west -n2 +n3"},
		{"the folder is made anew", func() error {
			must(t, os.RemoveAll(in("east")))
			write(t, parent, map[string]string{"east/n.yaml": nodeYAML("n3", "10.1.2.0/24"), "east/cluster.yaml": "name: west\npodCIDRs: [10.1.0.0/16]"})
			return nil
		}, "*"},
		{"a file changes then", func() error { return os.WriteFile(in("east/n.yaml"), []byte(nodeYAML("n4", "10.1.2.0/24")), 0o644) }, "east/west -n3 +n4"},
		{"the parent goes", func() error { return os.Rename(parent, parent+".off") }, "east/west gone (east: there is no such folder)"},
		{"and comes back", func() error { return os.Rename(parent+".off", parent) }, "east/west full +n4"},
	} {
		must(t, step.do())
		c.until(func() bool { return c.agrees("east") })
		if got := c.log[len(c.log)-1]; got != step.want && step.want != "*" {
			t.Fatalf("%s: got %q, want %q; all:\n%s", step.name, got, step.want, strings.Join(c.log, "\n"))
		}
	}
}

func TestRenamedFolder(t *testing.T) {
	parent := t.TempDir()
	write(t, parent, map[string]string{"a/cluster.yaml": "name: east", "a/n.yaml": nodeYAML("n1", "10.1.0.0/24")})
	c := follow(t, parent)
	c.receive()
	must(t, os.Rename(filepath.Join(parent, "a"), filepath.Join(parent, "b")))
	c.until(func() bool { return c.known["b"] != nil && c.agrees("a") && c.agrees("b") })
	if got := strings.Join(c.log[1:], "; "); got != "a/east gone (a: there is no such folder); b/east full +n1" {
		t.Errorf("got %s", got)
	}
}

// TestMountedFolder swaps links as a kubelet does for a ConfigMap's volume.
func TestMountedFolder(t *testing.T) {
	parent, mounts := t.TempDir(), t.TempDir()
	mount := filepath.Join(mounts, "east")
	write(t, mount, map[string]string{
		"..1/cluster.yaml": "name: east", "..1/n.yaml": nodeYAML("n1", "10.1.0.0/24"),
		"..2/cluster.yaml": "name: east", "..2/n.yaml": nodeYAML("n2", "10.1.0.0/24"),
	})
	for name, to := range map[string]string{"..data": "..1", "cluster.yaml": "..data/cluster.yaml", "n.yaml": "..data/n.yaml"} {
		must(t, os.Symlink(to, filepath.Join(mount, name)))
	}
	must(t, os.Symlink(mount, filepath.Join(parent, "east")))
	c := follow(t, parent)
	c.receive()
	must(t, os.Symlink("..2", filepath.Join(mount, "..new")))
	must(t, os.Rename(filepath.Join(mount, "..new"), filepath.Join(mount, "..data")))
	c.until(func() bool { return c.agrees("east") })

	// The link to the whole folder is turned to another.
	other := filepath.Join(mounts, "other")
	write(t, other, map[string]string{"cluster.yaml": "name: east", "n.yaml": nodeYAML("n3", "10.1.0.0/24")})
	must(t, os.Symlink(other, filepath.Join(parent, ".new")))
	must(t, os.Rename(filepath.Join(parent, ".new"), filepath.Join(parent, "east")))
	c.until(func() bool { return c.agrees("east") })
	write(t, other, map[string]string{"n.yaml": nodeYAML("n4", "10.1.0.0/24")})
	c.until(func() bool { return c.agrees("east") })
	if got := strings.Join(c.log, "; "); got != "east/east full +n1; east/east -n1 +n2; east/east -n2 +n3; east/east -n3 +n4" {
		t.Errorf("got %s", got)
	}
}

// TestRescan changes what gives no notice: the file behind a link.
func TestRescan(t *testing.T) {
	parent, elsewhere := t.TempDir(), t.TempDir()
	write(t, elsewhere, map[string]string{"n": nodeYAML("n1", "10.1.0.0/24")})
	write(t, parent, map[string]string{"east/cluster.yaml": "name: east"})
	must(t, os.Symlink(filepath.Join(elsewhere, "n"), filepath.Join(parent, "east/n.yaml")))
	c := follow(t, parent, Rescan(10*time.Millisecond))
	c.receive()
	write(t, elsewhere, map[string]string{"n": nodeYAML("n2", "10.1.0.0/24")})
	c.until(func() bool { return c.agrees("east") })
}

// TestUnlistableParentKeepsWhatIsKnown: not to be able to look is no sign that anything went.
func TestUnlistableParentKeepsWhatIsKnown(t *testing.T) {
	parent := t.TempDir()
	must(t, os.Chmod(filepath.Dir(parent), 0o755))
	write(t, parent, map[string]string{"east/cluster.yaml": "name: east"})
	w := newWatches(parent, slog.New(slog.DiscardHandler))
	defer w.close()
	sc := scanner{parent: parent, watches: w, folders: map[string]*folder{}}
	for _, step := range []struct {
		mode fs.FileMode
		want string
	}{
		{0o755, "east/east full"},
		{0, "east/east (" + parent + ": permission denied)"},
		{0, ""},
		{0o755, "east/east"},
	} {
		must(t, os.Chmod(parent, step.mode))
		var got []source.Update
		asNobody(t, func() { got = sc.scan(t.Context()) })
		if s := strings.ReplaceAll(show(got), parent+"/", ""); s != step.want {
			t.Errorf("mode %v: got %q, want %q", step.mode, s, step.want)
		}
	}
}

// TestRandomWalk does whatever may be done to folders and waits each time until
// what the updates add up to is what lies there.
func TestRandomWalk(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "clusters")
	write(t, parent, map[string]string{"a/cluster.yaml": "name: a"})
	c := follow(t, parent)
	c.receive()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	folders := []string{"a", "b", "c"}
	agree := func() bool {
		return !slices.ContainsFunc(folders, func(name string) bool { return !c.agrees(name) })
	}
	for range 40 {
		folder := filepath.Join(parent, pick(folders...))
		file := filepath.Join(folder, pick("", "", "sub", "sub", "x.yaml"), pick("n.yaml", "m.yml", "o.json"))
		switch r.IntN(15) {
		case 0:
			must(t, os.RemoveAll(folder))
		case 1:
			_ = os.Rename(folder, filepath.Join(parent, pick(folders...)))
		case 10:
			must(t, os.RemoveAll(filepath.Join(folder, pick("sub", "x.yaml"))))
		case 11:
			if r.IntN(3) == 0 {
				must(t, os.Rename(parent, parent+".off"))
				c.until(agree)
				must(t, os.Rename(parent+".off", parent))
			}
		case 2:
			_ = os.Remove(filepath.Join(folder, "cluster.yaml"))
		case 3, 4:
			write(t, folder, map[string]string{"cluster.yaml": "name: " + pick("a", "a", "b", "b", "A")})
		case 5:
			_ = os.Remove(file)
		case 6:
			_ = os.Rename(file, filepath.Join(folder, pick("n.yaml", "m.yml", "o.json")))
		default:
			text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n%d", "labels": {"x": "%d"}}}`, r.IntN(4), r.IntN(4))
			if os.MkdirAll(filepath.Dir(file), 0o755) == nil {
				_ = os.WriteFile(file, []byte(text[:len(text)-(1-min(1, r.IntN(6)))*r.IntN(len(text))]), 0o644)
			}
		}
		c.until(agree)
	}
	t.Log(strings.Join(c.log, "\n"))
}
