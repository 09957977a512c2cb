package dir

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/flatmesh/flatmesh/pkg/source"
)

var update = flag.Bool("update", false, "write the golden parts of testdata")

// write lays out files below dir; a name that ends in a slash is a folder.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(path, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFolders loads the folders in testdata and compares what comes of them, or
// what is said to be wrong with them, with what is wanted.
func TestFolders(t *testing.T) {
	paths, err := filepath.Glob("testdata/folders/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no test data", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			must(t, err)
			dir := t.TempDir()
			folder := filepath.Join(dir, "east")
			want := -1
			for i, f := range archive.Files {
				if f.Name == "want" {
					want = i
					continue
				}
				write(t, folder, map[string]string{f.Name: string(f.Data)})
			}
			s, err := Load(folder)
			got := strings.ReplaceAll(describe(t, s, err), dir+"/", "")
			if *update {
				archive.Files[want].Data = []byte(got)
				must(t, os.WriteFile(path, txtar.Format(archive), 0o644))
				return
			}
			if w := string(archive.Files[want].Data); got != w {
				t.Errorf("got\n%s\nwant\n%s", got, w)
			}
		})
	}
}

func describe(t *testing.T, s State, err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	say := func(v any) {
		j, err := json.Marshal(v)
		must(t, err)
		b.Write(j)
		b.WriteByte('\n')
	}
	say(s.Cluster)
	nodes, err := s.Nodes()
	must(t, err)
	for _, n := range nodes {
		say(struct{ ID, PodCIDRs, Addresses any }{n.ID, n.PodCIDRs, n.Addresses})
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.Objects), source.Key.Compare) {
		b.WriteString(key.String() + ": ")
		say(s.Objects[key])
	}
	return b.String()
}

func TestLoadErrorsCarryTheirPlace(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "east")
	write(t, folder, map[string]string{"cluster.yaml": "name: east", "n.yaml": "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\nspec: {podCIDRz: []}\n"})
	_, err := Load(folder)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an Error in it", err)
	}
	if e.File != filepath.Join(folder, "n.yaml") || e.Line != 5 || e.Object != "Node n1" || e.Field != "spec.podCIDRz" {
		t.Errorf("got %+v", e)
	}
}

func TestLoadMissing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "", "empty/": ""})
	for _, name := range []string{"absent", "file", "empty"} {
		if _, err := Load(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want fs.ErrNotExist", name, err)
		}
	}
}

// TestOddFiles puts what is not a plain file where a file is read.
func TestOddFiles(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, folder string)
		want string // end of the error; empty for none
	}{
		{"folder named as a file", func(t *testing.T, folder string) {
			must(t, os.Mkdir(filepath.Join(folder, "x.yaml"), 0o755))
		}, "x.yaml: is a folder, not a file; container runtimes make one where the file to mount is missing"},
		{"cluster.yaml is a folder", func(t *testing.T, folder string) {
			must(t, os.Remove(filepath.Join(folder, "cluster.yaml")))
			must(t, os.Mkdir(filepath.Join(folder, "cluster.yaml"), 0o755))
		}, "cluster.yaml: is a folder, not a file; container runtimes make one where the file to mount is missing"},
		{"pipe", func(t *testing.T, folder string) {
			must(t, syscall.Mkfifo(filepath.Join(folder, "x.yaml"), 0o644))
		}, "x.yaml: is not a regular file (p---------)"},
		{"link to a pipe", func(t *testing.T, folder string) {
			must(t, syscall.Mkfifo(filepath.Join(folder, "pipe"), 0o644))
			must(t, os.Symlink("pipe", filepath.Join(folder, "x.yaml")))
		}, "x.yaml: is not a regular file (p---------)"},
		{"link to nothing", func(t *testing.T, folder string) {
			must(t, os.Symlink("absent", filepath.Join(folder, "x.yaml")))
		}, "x.yaml: is a symbolic link to nothing"},
		{"link to itself", func(t *testing.T, folder string) {
			must(t, os.Symlink("x.yaml", filepath.Join(folder, "x.yaml")))
		}, "x.yaml: too many levels of symbolic links"},
		{"link to the folder", func(t *testing.T, folder string) {
			must(t, os.Symlink(".", filepath.Join(folder, "again")))
		}, "again: leads back to a folder above it"},
		{"link to a file elsewhere", func(t *testing.T, folder string) {
			elsewhere := t.TempDir()
			write(t, elsewhere, map[string]string{"ns": "{apiVersion: v1, kind: Namespace, metadata: {name: a}}"})
			must(t, os.Symlink(filepath.Join(elsewhere, "ns"), filepath.Join(folder, "x.yaml")))
		}, ""},
		{"too deep", func(t *testing.T, folder string) {
			must(t, os.MkdirAll(filepath.Join(folder, strings.Repeat("d/", maxFolders)), 0o755))
		}, "d: lies more than 16 folders deep"},
		{"too large", func(t *testing.T, folder string) {
			must(t, os.WriteFile(filepath.Join(folder, "x.yaml"), nil, 0o644))
			must(t, os.Truncate(filepath.Join(folder, "x.yaml"), maxFileSize+1)) // a hole: no blocks
		}, "x.yaml: is larger than 64 MiB; split it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "east")
			write(t, folder, map[string]string{"cluster.yaml": "name: east\n"})
			c.make(t, folder)
			_, err := Load(folder)
			switch {
			case err == nil && c.want != "":
				t.Errorf("no error, want %s", c.want)
			case err != nil && (c.want == "" || !strings.HasSuffix(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// asNobody runs f without root's right to read everything.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		if err := syscall.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	folder := filepath.Join(dir, "east")
	write(t, folder, map[string]string{"cluster.yaml": "name: east\n", "x.yaml": "# x", "sub/y.yaml": "# y"})
	for _, c := range []struct{ path, want string }{
		{"x.yaml", "east/x.yaml: permission denied"},
		{"sub", "east/sub: permission denied"},
		{"cluster.yaml", "east/cluster.yaml: permission denied"},
		{".", "east: permission denied"},
	} {
		path := filepath.Join(folder, c.path)
		info, err := os.Stat(path)
		must(t, err)
		must(t, os.Chmod(path, 0))
		var got error
		asNobody(t, func() { _, got = Load(folder) })
		must(t, os.Chmod(path, info.Mode()))
		if got == nil || strings.ReplaceAll(got.Error(), dir+"/", "") != c.want {
			t.Errorf("%s: got %v, want %s", c.path, got, c.want)
		}
	}
	asNobody(t, func() {
		if _, err := Load(folder); err != nil {
			t.Error(err)
		}
	})
}

func TestAliasesAreBounded(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "east")
	var b bytes.Buffer
	b.WriteString("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: d}\naddressType: IPv4\nendpoints:\n- &e\n  addresses: &a [")
	b.WriteString(strings.Repeat("10.0.0.1, ", 1000) + "10.0.0.1]\n")
	b.WriteString(strings.Repeat("- *e\n", 1000))
	write(t, folder, map[string]string{"cluster.yaml": "name: east\n", "x.yaml": b.String(),
		"y.yaml": "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  managedFields:\n  - fieldsV1: &f {a: *f}\n"})
	_, err := Load(folder)
	if err == nil || strings.Count(err.Error(), "aliases unfold") != 2 {
		t.Errorf("got %.500v, want a bound for both files", err)
	}
}

// TestOnlyChangedFilesAreDecoded marks what the cache holds and looks for it.
func TestOnlyChangedFilesAreDecoded(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "east")
	node := func(name, label string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {a: %s}}}", name, label)
	}
	write(t, folder, map[string]string{"cluster.yaml": "name: east\n", "a.yaml": node("a", "x"), "b.yaml": node("b", "x")})
	late := time.Now().Add(time.Hour)
	r := newReader(folder, func() time.Time { return late }, func(string) {})
	key := func(name string) source.Key { return source.Key{Kind: source.KindNode, Name: name} }
	read := func() State {
		t.Helper()
		s, err := r.read(t.Context())
		must(t, err)
		return s
	}
	first := read()
	write(t, folder, map[string]string{"b.yaml": node("b", "yy")})
	second := read()
	if first.Objects[key("a")] != second.Objects[key("a")] {
		t.Error("a file that had not changed was decoded again")
	}
	if first.Objects[key("b")] == second.Objects[key("b")] {
		t.Error("a file that had changed was not decoded")
	}

	// Same size and time, another inode: written beside and renamed.
	info, err := os.Stat(filepath.Join(folder, "b.yaml"))
	must(t, err)
	write(t, folder, map[string]string{"new": node("b", "zz")})
	must(t, os.Chtimes(filepath.Join(folder, "new"), time.Time{}, info.ModTime()))
	must(t, os.Rename(filepath.Join(folder, "new"), filepath.Join(folder, "b.yaml")))
	if third := read(); third.Objects[key("b")] == second.Objects[key("b")] {
		t.Error("a file put in another's place was not decoded")
	}

	// A file as young as its time stamp is coarse may change unseen.
	r = newReader(folder, info.ModTime, func(string) {})
	young := read()
	if read().Objects[key("b")] == young.Objects[key("b")] {
		t.Error("a young file was taken from the cache")
	}
	must(t, os.Remove(filepath.Join(folder, "b.yaml")))
	if _, ok := read().Objects[key("b")]; ok {
		t.Error("a removed file is still there")
	}
}
