package relay

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// reopen returns what the file holds, as "kind/name=version", sorted.
func reopen(t *testing.T, path string) ([]string, *journal) {
	t.Helper()
	j, kept, problem, err := openJournal(path, self)
	if err != nil || problem != nil {
		t.Fatalf("open: %v, %v", err, problem)
	}
	var out []string
	for _, r := range kept {
		out = append(out, fmt.Sprintf("%s/%s=%s", r.kind, r.name, r.resource.GetVersion()))
	}
	slices.Sort(out)
	return out, j
}

func thing(k setKey, name, version string, size int) *discovery.Resource {
	return &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: k.typeURL, Value: make([]byte, size)}}
}

// Random changes, saved now and then, come back from the file, which does not grow
// with them.
func TestJournalWalk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	rnd := rand.New(rand.NewPCG(3, 4))
	c := newTestCache(Options{Node: self})
	_, j := reopen(t, path)
	who := &asker{unknown: map[*entry]int{}}
	for _, k := range []setKey{grpcLDS, envoyCDS} {
		if _, err := c.subscribe(who, k, wildcard); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]bool{}
	for step := range 400 {
		k := []setKey{grpcLDS, envoyCDS}[rnd.IntN(2)]
		u := xds.Update{TypeURL: k.typeURL}
		for range rnd.IntN(4) {
			u.Resources = append(u.Resources, thing(k, fmt.Sprintf("n%d", rnd.IntN(50)), fmt.Sprint(step), rnd.IntN(2000)))
		}
		for range rnd.IntN(3) {
			u.Removed = append(u.Removed, fmt.Sprintf("n%d", rnd.IntN(50)))
		}
		if _, err := c.apply(k.kind, u); err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(3) > 0 {
			continue
		}
		if err := j.save(c); err != nil {
			t.Fatal(err)
		}
		clear(want)
		for _, r := range c.content() {
			if r.resource == nil {
				continue
			}
			want[fmt.Sprintf("%s/%s=%s", r.kind, r.name, r.resource.GetVersion())] = true
		}
		got, again := reopen(t, path)
		if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("step %d: the file holds %v, want %v", step, got, slices.Sorted(maps.Keys(want)))
		}
		if again.size != j.size || again.live != j.live {
			t.Fatalf("step %d: read as %d bytes, %d of them live; written as %d and %d", step, again.size, again.live, j.size, j.live)
		}
		if max := 2*j.live + slack + 10_000; j.size > max {
			t.Fatalf("step %d: %d bytes for %d that count", step, j.size, j.live)
		}
		if rnd.IntN(10) == 0 {
			j = again // a new process
		}
	}
	if len(want) < 20 {
		t.Fatalf("the walk ends with %d names", len(want))
	}
}

// fill makes a file of a few names and returns its content.
func fillFile(t *testing.T, path string) []byte {
	t.Helper()
	c := newTestCache(Options{Node: self})
	_, j := reopen(t, path)
	who := &asker{unknown: map[*entry]int{}}
	for i, k := range []setKey{grpcLDS, envoyCDS, envoyCDS} {
		if _, err := c.subscribe(who, k, wildcard); err != nil {
			t.Fatal(err)
		}
		u := xds.Update{TypeURL: k.typeURL}
		for j := range 4 {
			u.Resources = append(u.Resources, thing(k, fmt.Sprintf("n%d-%d", i, j), "1", 30))
		}
		if _, err := c.apply(k.kind, u); err != nil {
			t.Fatal(err)
		}
		if err := j.save(c); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Wherever a crash cuts the file off, what was complete is there, the next save
// follows it, and nothing is taken for everything.
func TestJournalCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	whole := fillFile(t, path)
	all, _ := reopen(t, path)
	if len(all) != 14 { // and the two wildcards
		t.Fatalf("the file holds %v", all)
	}
	header := strings.IndexByte(string(whole), '\n') + 1
	seen := map[int]bool{}
	for cut := header; cut <= len(whole); cut = next(cut, len(whole)) {
		for _, tail := range []string{"", strings.Repeat("\x00", 40)} {
			if err := os.WriteFile(path, []byte(string(whole[:cut])+tail), 0o600); err != nil {
				t.Fatal(err)
			}
			got, j := reopen(t, path)
			seen[len(got)] = true
			for kind, names := range map[string]int{"grpc": 4, "envoy": 4} {
				mine := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.HasPrefix(s, kind) })
				if slices.Contains(mine, kind+"/*=") && len(mine) <= names {
					t.Fatalf("cut at %d: %v, as if that were all", cut, mine)
				}
			}
			c := newTestCache(Options{Node: self})
			c.unsaved[key{grpcLDS, "gone"}] = struct{}{}
			if err := j.save(c); err != nil {
				t.Fatal(err)
			}
			if after, _ := reopen(t, path); !slices.Equal(after, got) {
				t.Fatalf("cut at %d: %v before and %v after a save", cut, got, after)
			}
		}
	}
	if len(seen) != 15 {
		t.Errorf("states seen: %v", seen)
	}
}

// next goes on by a few bytes, fewer than any record has, up to the last one.
func next(cut, last int) int {
	if cut == last {
		return last + 1
	}
	return min(cut+7, last)
}

// A damaged file, and one of another node, is set aside, said so, and replaced.
func TestJournalDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cache")
	whole := fillFile(t, path)
	header := strings.IndexByte(string(whole), '\n') + 1
	flipped := slices.Clone(whole)
	flipped[header+40] ^= 1
	for name, content := range map[string][]byte{
		"empty":        {},
		"no header":    []byte("{}\n"),
		"half header":  whole[:header-1],
		"not JSON":     []byte("garbage\nand more"),
		"other node":   []byte(strings.Replace(string(whole), "east/n1", "east/n2", 1)),
		"bit flipped":  flipped,
		"huge record":  append(slices.Clone(whole), 255, 255, 255, 255, 0, 0, 0, 0, 1),
		"empty record": append(slices.Clone(whole), 0, 0, 0, 0, 0, 0, 0, 0, 1),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, kept, problem, err := openJournal(path, self)
		if err != nil || problem == nil || len(kept) > 0 {
			t.Errorf("%s: kept %d, problem %v, error %v", name, len(kept), problem, err)
			continue
		}
		if b, err := os.ReadFile(path + ".corrupt"); err != nil || string(b) != string(content) {
			t.Errorf("%s: not set aside: %v", name, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: still in its place", name)
		}
	}
}

// A relay starts with nothing where its file is damaged, and says so.
func TestOpenDamaged(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(n.opts.CacheFile, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newControlPlane(t)
	one := newBackend(t, "one")
	c.service("echo", one.local())
	r := n.start(c)
	answers(t, n.dial("echo.demo:80"), "one")
	if got := r.Status().Cache.Problems; len(got) != 1 || !strings.Contains(got[0], "set aside") {
		t.Errorf("problems %q", got)
	}
	if r = n.restart(c); len(r.Status().Cache.Problems) != 0 {
		t.Errorf("after a restart: %q", r.Status().Cache.Problems)
	}
}

// The file of a newer agent is left as it is, and the error says what to do.
func TestOpenNewer(t *testing.T) {
	n := newNode(t)
	content := []byte(`{"format":2,"node":"east/n1","more":true}` + "\n...")
	if err := os.WriteFile(n.opts.CacheFile, content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(n.opts)
	if !errors.Is(err, errNewer) || !strings.Contains(err.Error(), "newer agent") || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(n.opts.CacheFile); err != nil || string(b) != string(content) {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// A save that fails is not forgotten, and said until one succeeds.
func TestSaveFails(t *testing.T) {
	n := newNode(t)
	r, err := Open(n.opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.cache.subscribe(&asker{unknown: map[*entry]int{}}, grpcEDS, echoName); err != nil {
		t.Fatal(err)
	}
	eds, err := build.EDS(build.Assignment{Name: echoName})
	if err != nil {
		t.Fatal(err)
	}
	// A folder in its place cannot be replaced.
	if err := os.MkdirAll(filepath.Join(n.opts.CacheFile, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.apply(build.GRPC, xds.Update{TypeURL: grpcEDS.typeURL, Resources: []*discovery.Resource{eds}}); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(); err == nil {
		t.Fatal("saved where nothing can be")
	}
	if got := r.Status().Cache.Problems; len(got) != 1 || !strings.Contains(got[0], n.opts.CacheFile) {
		t.Errorf("problems %q", got)
	}
	if err := os.RemoveAll(n.opts.CacheFile); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(); err != nil || len(r.Status().Cache.Problems) != 0 {
		t.Errorf("%v, %q", err, r.Status().Cache.Problems)
	}
	if got, _ := reopen(t, n.opts.CacheFile); len(got) != 1 {
		t.Errorf("the file holds %v", got)
	}
	// Somebody removes the file: it comes back with the next change, and whole.
	if err := os.Remove(n.opts.CacheFile); err != nil {
		t.Fatal(err)
	}
	r.cache.unsaved[key{grpcLDS, "gone"}] = struct{}{}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	if got, _ := reopen(t, n.opts.CacheFile); len(got) != 1 {
		t.Errorf("the file holds %v", got)
	}
}

// 20,000 names are kept and read, and a change to one costs as much as the one.
func TestJournalLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := newTestCache(Options{Node: self})
	_, j := reopen(t, path)
	if _, err := c.subscribe(&asker{unknown: map[*entry]int{}}, envoyCDS, wildcard); err != nil {
		t.Fatal(err)
	}
	const count = 20_000
	u := xds.Update{TypeURL: envoyCDS.typeURL}
	for i := range count {
		u.Resources = append(u.Resources, thing(envoyCDS, fmt.Sprintf("outbound|80||s%d.demo.svc.cluster.local", i), "1", 1500))
	}
	if _, err := c.apply(build.Envoy, u); err != nil {
		t.Fatal(err)
	}
	if err := j.save(c); err != nil {
		t.Fatal(err)
	}
	before := j.size
	changed := thing(envoyCDS, u.Resources[7].GetName(), "2", 1500)
	if _, err := c.apply(build.Envoy, xds.Update{TypeURL: envoyCDS.typeURL, Resources: []*discovery.Resource{changed}}); err != nil {
		t.Fatal(err)
	}
	if err := j.save(c); err != nil {
		t.Fatal(err)
	}
	if grown := j.size - before; grown <= 0 || grown > 3000 {
		t.Errorf("a change of 1,500 bytes took %d", grown)
	}
	if got, _ := reopen(t, path); len(got) != count+1 {
		t.Errorf("%d names come back", len(got))
	}
}

// No content makes reading fail otherwise than by its error, and what is read can
// be written.
func FuzzReadRecord(f *testing.F) {
	good, err := appendRecord(nil, record{key{envoyEDS, "n"}, thing(envoyEDS, "n", "1", 10)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:9])
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, r, err := readRecord(b)
		if err != nil {
			return
		}
		if n <= recordHead || n > int64(len(b)) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		again, err := appendRecord(nil, r)
		if err != nil {
			return // not UTF-8
		}
		if _, _, err := readRecord(again); errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%x is read as cut off", again)
		}
		if kept, err := (&journal{node: self, sizes: map[key]int64{}}).read(append([]byte("{\"format\":1,\"node\":\"east/n1\"}\n"), b[:n]...)); err == nil && len(kept) == 0 && r.resource != nil {
			t.Fatal("a record that can be read is not in the file")
		}
	})
}
