package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := runChild(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func testPath(t testing.TB) string { return filepath.Join(t.TempDir(), "state", "state.db") }

// openTest opens a file that must be sound.
func openTest(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func closeTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func update(t testing.TB, s *Store, fn func(*Tx)) {
	t.Helper()
	if err := s.Update(func(tx *Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, s *Store) Snapshot {
	t.Helper()
	snapshot, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return snapshot
}

func wantError(t testing.TB, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", texts)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q, want it to say %q", err, text)
		}
	}
}

func node(cluster, name string) mesh.NodeID { return mesh.NodeID{Cluster: cluster, Name: name} }

func registration(id mesh.NodeID, version string) Registration {
	return Registration{
		Node:        id,
		Key:         mesh.PublicKey{1, 2, 3},
		Endpoints:   []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51830"), netip.MustParseAddrPort("[2001:db8::1]:51830")},
		ListenPort:  51830,
		TunnelAddrs: []netip.Addr{netip.MustParseAddr("198.19.0.1"), netip.MustParseAddr("fd00::1")},
		Device:      "kernel",
		Version:     version,
		Registered:  time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
	}
}

func kubeNode(id mesh.NodeID) Node {
	return Node{
		ID:        id,
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
}

func cluster(name string) Cluster {
	return Cluster{
		Cluster: mesh.Cluster{Name: name, Network: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		Source:  "/etc/flatmesh/" + name,
	}
}

func TestRoundTrip(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	if got, want := load(t, s), (Snapshot{Orders: map[string]uint64{}}); !reflect.DeepEqual(got, want) {
		t.Errorf("a new store holds %+v", got)
	}
	// Sorted by ID, which is not the order of the keys' bytes: '-' is below '/'.
	ids := []mesh.NodeID{node("a", "n1"), node("a", "n2"), node("a-b", "n1")}
	want := Snapshot{
		Mesh:     Mesh{Name: "acme", TunnelRanges: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")}},
		Clusters: []Cluster{cluster("a"), cluster("a-b")},
		Orders:   map[string]uint64{"x": 1, "y": 2},
		last:     2,
	}
	for _, id := range ids {
		want.Registrations = append(want.Registrations, registration(id, "v1"))
		want.Nodes = append(want.Nodes, kubeNode(id))
	}
	update(t, s, func(tx *Tx) {
		tx.PutMesh(want.Mesh)
		for i := range ids {
			r := want.Registrations[i]
			r.Registered = r.Registered.In(time.FixedZone("elsewhere", 3600))
			tx.PutRegistration(r)
			tx.PutNode(want.Nodes[i])
		}
		for _, c := range want.Clusters {
			tx.PutCluster(c)
		}
	})
	if _, err := s.Order([]string{"x", "y"}); err != nil {
		t.Fatal(err)
	}
	if got := load(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("loaded\n%+v, want\n%+v", got, want)
	}
	closeTest(t, s)
	s = openTest(t, path)
	if got := load(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("after reopening\n%+v, want\n%+v", got, want)
	}

	update(t, s, func(tx *Tx) {
		tx.DeleteRegistration(ids[0])
		tx.DeleteNode(ids[1])
		tx.DeleteCluster("a")
		tx.DeleteCluster("never-there")
		tx.PutNode(kubeNode(ids[0]))
		tx.DeleteNode(ids[0]) // the last change counts
		tx.ForgetOrder("x")
	})
	got := load(t, s)
	if len(got.Registrations) != 2 || len(got.Nodes) != 1 || len(got.Clusters) != 1 || got.Nodes[0].ID != ids[2] || !maps.Equal(got.Orders, map[string]uint64{"y": 2}) {
		t.Errorf("after deleting: %+v", got)
	}
}

func TestModes(t *testing.T) {
	path := testPath(t)
	openTest(t, path)
	for p, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v (%v), want %v", p, info.Mode().Perm(), err, want)
		}
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	s := openTest(t, testPath(t))
	update(t, s, func(tx *Tx) { tx.PutCluster(cluster("east")) })
	before := load(t, s)
	mine := errors.New("mine")
	if err := s.Update(func(tx *Tx) error { tx.DeleteCluster("east"); return mine }); !errors.Is(err, mine) {
		t.Errorf("error %v, want the function's own", err)
	}
	for name, bad := range map[string]func(*Tx){
		"cluster name":      func(tx *Tx) { tx.PutCluster(cluster("East")) },
		"node name":         func(tx *Tx) { tx.PutNode(Node{ID: node("east", "")}) },
		"no key":            func(tx *Tx) { tx.PutRegistration(Registration{Node: node("east", "n1")}) },
		"mesh: no name":     func(tx *Tx) { tx.PutMesh(Mesh{}) },
		`cluster name ""`:   func(tx *Tx) { tx.PutRegistration(registration(node("", "n1"), "")) },
		"node name \"n/1\"": func(tx *Tx) { tx.PutRegistration(registration(node("east", "n/1"), "")) },
	} {
		err := s.Update(func(tx *Tx) error {
			tx.DeleteCluster("east")
			bad(tx)
			tx.PutCluster(cluster("west"))
			return nil
		})
		wantError(t, err, name)
	}
	if got := load(t, s); !reflect.DeepEqual(got, before) {
		t.Errorf("changed: %+v", got)
	}
}

// What changes nothing must not touch the disk: the control plane writes what
// it sees, again and again.
func TestUnchangedIsNotWritten(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	write := func() {
		update(t, s, func(tx *Tx) {
			tx.PutCluster(cluster("east"))
			tx.PutNode(kubeNode(node("east", "n1")))
			tx.DeleteNode(node("east", "n2"))
		})
		if _, err := s.Order([]string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
	}
	write()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write()
	update(t, s, func(*Tx) {})
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) {
		t.Errorf("the file changed (%v)", err)
	}
}

func TestOrder(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	order := func(keys ...string) map[string]uint64 {
		t.Helper()
		got, err := s.Order(keys)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	check := func(got, want map[string]uint64) {
		t.Helper()
		if !maps.Equal(got, want) {
			t.Errorf("orders %v, want %v", got, want)
		}
		if all, err := s.Orders(); err != nil || !maps.Equal(all, want) {
			t.Errorf("all orders %v (%v), want %v", all, err, want)
		}
	}
	check(order(), map[string]uint64{})
	check(order("b", "a", "b"), map[string]uint64{"b": 1, "a": 2})
	check(order("c", "a"), map[string]uint64{"b": 1, "a": 2, "c": 3})
	if _, err := s.Order([]string{"d", ""}); err == nil {
		t.Error("an empty key was numbered")
	}
	check(order(), map[string]uint64{"b": 1, "a": 2, "c": 3})
	if err := s.ForgetOrder([]string{"c", "b", "never"}); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	s = openTest(t, path)
	// Not even the highest number comes back.
	check(order("c"), map[string]uint64{"a": 2, "c": 4})
	long := strings.Repeat("k", 40<<10)
	_, err := s.Order([]string{long})
	wantError(t, err, ordersBucket, "key too large")
	check(order(), map[string]uint64{"a": 2, "c": 4})
}

func TestLock(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	update(t, s, func(tx *Tx) { tx.PutCluster(cluster("east")) })
	second, err := Open(path)
	if second != nil || !errors.Is(err, ErrLocked) {
		t.Fatalf("a second opening: %v, %v", second, err)
	}
	wantError(t, err, path, "another control plane")
	if got := load(t, s); len(got.Clusters) != 1 {
		t.Errorf("the first was disturbed: %+v", got)
	}
	closeTest(t, s)
	openTest(t, path)
}

func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(file, "state.db")} {
		s, err := Open(path)
		var corrupt *CorruptError
		if s != nil || errors.As(err, &corrupt) {
			t.Errorf("%s: %v, %v", path, s, err)
		}
		wantError(t, err, path)
	}
}

func TestClosed(t *testing.T) {
	s := openTest(t, testPath(t))
	closeTest(t, s)
	if _, err := s.Load(); err == nil {
		t.Error("a closed store was read")
	}
	if err := s.Update(func(tx *Tx) error { tx.PutCluster(cluster("east")); return nil }); err == nil {
		t.Error("a closed store was written")
	}
	closeTest(t, s)
}

func TestNewerFormatIsRefused(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	if err := s.commit(func(w *writer) error { return w.put(id{metaBucket, formatKey}, FormatVersion+1) }); err != nil {
		t.Fatal(err)
	}
	// What it holds need not be understood any more.
	if err := s.commit(func(w *writer) error { return w.put(id{clustersBucket, "x"}, "of another shape") }); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err = Open(path)
	if s != nil || !errors.Is(err, ErrNewerFormat) {
		t.Fatalf("opened: %v, %v", s, err)
	}
	wantError(t, err, path, "2", "newer control plane")
	after, err := os.ReadFile(path)
	if err != nil || string(before) != string(after) {
		t.Errorf("the file changed (%v)", err)
	}
}

// Whoever waited for a lock while the file was set aside has the lock of a file
// that nobody will open again.
func TestLockOfAnotherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	f, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check := func(want bool) {
		t.Helper()
		if got, err := isAt(f, path); err != nil || got != want {
			t.Errorf("the lock is on the right file: %v (%v), want %v", got, err, want)
		}
	}
	check(true)
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	check(false)
	second, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	check(false)
}

func TestOrderAtOnce(t *testing.T) {
	s := openTest(t, testPath(t))
	const writers, each = 4, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := s.Order([]string{fmt.Sprint(w, "/", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	given := map[uint64]bool{}
	for _, n := range load(t, s).Orders {
		given[n] = true
	}
	if len(given) != writers*each {
		t.Errorf("%d numbers for %d keys", len(given), writers*each)
	}
}
