package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// sample makes a file with branch pages and free ones, and returns its bytes
// with what it holds after its last commit and after the one before.
func sample(t testing.TB, nodes int) (data []byte, last, before Snapshot) {
	t.Helper()
	path := testPath(t)
	s := openTest(t, path)
	for _, part := range []int{0, 1} {
		update(t, s, func(tx *Tx) {
			tx.PutMesh(Mesh{Name: "acme"})
			tx.PutCluster(cluster("east"))
			for i := part; i < nodes; i += 2 {
				id := node("east", fmt.Sprint("n", i))
				tx.PutNode(kubeNode(id))
				tx.PutRegistration(registration(id, "v1"))
			}
		})
	}
	keys := make([]string, nodes)
	for i := range keys {
		keys[i] = fmt.Sprintf("east|pod|10.%d.0.0/16", i)
	}
	if _, err := s.Order(keys); err != nil {
		t.Fatal(err)
	}
	update(t, s, func(tx *Tx) {
		for i := range nodes / 4 {
			tx.DeleteNode(node("east", fmt.Sprint("n", i)))
		}
	})
	before = load(t, s)
	update(t, s, func(tx *Tx) { tx.PutCluster(cluster("west")) })
	last = load(t, s)
	closeTest(t, s)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, last, before
}

// memory returns a directory where sync costs nothing, if there is one: these
// tests open thousands of files, and what they damage is not the disk.
func memory(t testing.TB) string {
	t.Helper()
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err == nil && info.IsDir() {
		return shm
	}
	return t.TempDir()
}

// tryFast leaves out the disk where the check refuses, but for some: all that is
// refused takes the same way from there.
func tryFast(t testing.TB, i int, what string, data []byte, last, before Snapshot) (refused bool) {
	t.Helper()
	if _, err := check(bytes.NewReader(data), int64(len(data))); err != nil && i%50 > 0 {
		var damaged *corruption
		if !errors.As(err, &damaged) {
			t.Fatalf("%s: %v is no corruption", what, err)
		}
		return true
	}
	return tryDamaged(t, what, data, last, before)
}

// tryDamaged opens a damaged file. It must hold what was stored, by the last
// commit or the one before it; or be set aside, byte for byte, with a usable
// store in its place. It returns whether it was set aside.
func tryDamaged(t testing.TB, what string, data []byte, last, before Snapshot) bool {
	t.Helper()
	dir, err := os.MkdirTemp(memory(t), fmt.Sprintf("fm%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "state.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	var corrupt *CorruptError
	if s == nil || (err != nil && !errors.As(err, &corrupt)) {
		t.Fatalf("%s: %v, %v", what, s, err)
	}
	want := load(t, s)
	switch {
	case corrupt == nil:
		if !reflect.DeepEqual(want, last) && !reflect.DeepEqual(want, before) {
			t.Fatalf("%s: opened with other content", what)
		}
	case len(want.Nodes)+len(want.Registrations)+len(want.Clusters)+len(want.Orders) > 0:
		t.Fatalf("%s: set aside, but the new one holds something", what)
	default:
		if kept, err := os.ReadFile(corrupt.SetAside); err != nil || !bytes.Equal(kept, data) || corrupt.Path != path {
			t.Fatalf("%s: %v set aside with other content (%v)", what, corrupt, err)
		}
	}
	// It can be written, and bbolt finds its free pages where nothing lies.
	update(t, s, func(tx *Tx) {
		tx.PutMesh(Mesh{Name: "after"})
		for i := range 50 {
			tx.PutNode(kubeNode(node("north", fmt.Sprint("n", i))))
		}
	})
	want = load(t, s)
	closeTest(t, s)
	s, err = Open(path)
	if err != nil {
		t.Fatalf("%s: after writing: %v", what, err)
	}
	if got := load(t, s); !reflect.DeepEqual(got, want) || len(got.Nodes) < 50 {
		t.Fatalf("%s: what was written is not there", what)
	}
	closeTest(t, s)
	return corrupt != nil
}

func TestDamageAnywhere(t *testing.T) {
	data, last, before := sample(t, 150)
	random := rand.New(rand.NewPCG(1, 2))
	pageSize := os.Getpagesize()
	setAside := 0
	const rounds = 120
	for i := range rounds {
		damaged := bytes.Clone(data)
		// Half of it where bbolt's own numbers lie, at the beginning of a page.
		at := random.IntN(len(data))
		if i%2 == 0 {
			at = at/pageSize*pageSize + random.IntN(200)
		}
		var what string
		switch i % 5 {
		case 0, 1:
			damaged[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf("a bit turned at %d", at)
		case 2:
			n := min(len(data)-at, 1+random.IntN(64))
			for j := range n {
				damaged[at+j] = byte(random.Uint32())
			}
			what = fmt.Sprintf("%d random bytes at %d", n, at)
		case 3:
			page := at / pageSize * pageSize
			clear(damaged[page : page+pageSize])
			what = fmt.Sprintf("page at %d lost", page)
		case 4:
			from := random.IntN(len(data)/pageSize) * pageSize
			copy(damaged[at/pageSize*pageSize:], data[from:from+pageSize])
			what = fmt.Sprintf("page at %d over page at %d", from, at/pageSize*pageSize)
		}
		if tryFast(t, i, what, damaged, last, before) {
			setAside++
		}
	}
	if setAside < rounds/10 {
		t.Errorf("only %d of %d were noticed", setAside, rounds)
	}
}

// Every byte in which bbolt keeps its numbers, in a small file.
func TestDamageInEveryHeader(t *testing.T) {
	data, last, before := sample(t, 3)
	for page := 0; page < len(data); page += os.Getpagesize() {
		for at := page; at < page+56; at++ {
			damaged := bytes.Clone(data)
			damaged[at] ^= 1 << (at % 8)
			tryFast(t, at, fmt.Sprintf("a bit turned at %d", at), damaged, last, before)
		}
	}
}

// Damage that leaves everything well-formed, so that chance seldom makes it.
func TestWellFormedDamage(t *testing.T) {
	data, last, before := sample(t, 150)
	pageSize := os.Getpagesize()
	refused := func(what string, damage func(damaged []byte) (done bool)) {
		t.Helper()
		damaged := bytes.Clone(data)
		if !damage(damaged) {
			t.Fatalf("%s: nothing in the file to do it to", what)
		}
		if !tryDamaged(t, what, damaged, last, before) {
			t.Errorf("%s: it opened", what)
		}
	}
	// Pages that are free are leaves and branches too, so all of a kind are changed.
	each := func(damaged []byte, kind uint16, change func(p []byte)) (done bool) {
		for at := 2 * pageSize; at < inUse(t, data); at += pageSize {
			if p := damaged[at : at+pageSize]; u16(p[8:]) == kind && u16(p[10:]) > 1 {
				change(p)
				done = true
			}
		}
		return done
	}
	refused("leaves without their last records", func(damaged []byte) bool {
		return each(damaged, leafPage, func(p []byte) { p[10]-- })
	})
	refused("branches without their last pages", func(damaged []byte) bool {
		return each(damaged, branchPage, func(p []byte) { p[10]-- })
	})
	refused("branches that lead to themselves alone", func(damaged []byte) bool {
		return each(damaged, branchPage, func(p []byte) {
			p[10], p[11] = 1, 0
			copy(p[pageHeader+8:], p[:8])
		})
	})
	refused("a number under another key", func(damaged []byte) (done bool) {
		from, to := []byte("east|pod|10.7.0.0/16"), []byte("east|pod|10.7.0.0/17")
		for i := bytes.Index(damaged, from); i >= 0; i = bytes.Index(damaged, from) {
			copy(damaged[i:], to)
			done = true
		}
		return done
	})
}

func TestTruncated(t *testing.T) {
	data, last, before := sample(t, 40)
	if !tryDamaged(t, "without its last page in use", data[:inUse(t, data)-1], last, before) {
		t.Error("it opened")
	}
	for _, n := range []int{1, 16, 79, 80, 1000, 4095, 4096, 4097, 8191, 8192, 12288, 16383, 16384, len(data) / 2} {
		if !tryDamaged(t, fmt.Sprintf("cut to %d", n), data[:n], last, before) {
			t.Errorf("cut to %d, it opened", n)
		}
	}
}

// inUse returns the bytes of a file up to the end of the pages in use.
func inUse(t *testing.T, data []byte) int {
	t.Helper()
	c := &checker{file: bytes.NewReader(data), size: int64(len(data))}
	m, _, err := c.metas()
	if err != nil {
		t.Fatal(err)
	}
	return int(m.pages) * int(c.pageSize)
}

func TestNotOurs(t *testing.T) {
	_, last, before := sample(t, 1)
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		outer, err := tx.CreateBucket([]byte("outer"))
		if err == nil {
			_, err = outer.CreateBucket([]byte("inner"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for what, data := range map[string][]byte{
		"a foreign bbolt file": data,
		"text":                 []byte(strings.Repeat("clusters: []\n", 10000)),
		"zeros":                make([]byte, 1<<16),
	} {
		if !tryDamaged(t, what, data, last, before) {
			t.Errorf("%s: it opened", what)
		}
	}
}

func FuzzOpen(f *testing.F) {
	data, last, before := sample(f, 12)
	f.Add(uint32(4096+16), []byte{1}, uint32(0))
	f.Add(uint32(0), []byte{0, 0, 0}, uint32(5000))
	f.Add(uint32(8192+10), []byte{0xff, 0xff}, uint32(1))
	f.Fuzz(func(t *testing.T, at uint32, mask []byte, cut uint32) {
		damaged := bytes.Clone(data)
		for i, m := range mask {
			damaged[(int(at)+i)%len(damaged)] ^= m
		}
		tryFast(t, 1, "fuzzed", damaged[:max(1, len(damaged)-int(cut)%len(damaged))], last, before)
	})
}
