package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// A file whose making was killed holds nothing and is made anew, without ado.
func TestInterruptedWhileMade(t *testing.T) {
	fresh := filepath.Join(t.TempDir(), "fresh.db")
	db, err := bbolt.Open(fresh, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(fresh)
	if err != nil {
		t.Fatal(err)
	}
	for size := 0; size <= len(image); size += os.Getpagesize() {
		path := testPath(t)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, image[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		s := openTest(t, path)
		update(t, s, func(tx *Tx) { tx.PutCluster(cluster("east")) })
		closeTest(t, s)
		if got := load(t, openTest(t, path)); len(got.Clusters) != 1 {
			t.Errorf("of %d bytes: %+v", size, got)
		}
	}
}

// The first meta page is all that knows of the first commit: without it the
// file looks new, and must not pass for it.
func TestLostFirstCommit(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	closeTest(t, s)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(data[:os.Getpagesize()])
	if !tryDamaged(t, "first meta lost", data, Snapshot{}, Snapshot{}) {
		t.Error("it opened")
	}
}

func TestRecordsNameTheirPlace(t *testing.T) {
	at := id{nodesBucket, "east/n1"}
	sealed := func(text string) []byte { return append([]byte(at.sum([]byte(text))), text...) }
	for name, tt := range map[string]struct {
		value []byte
		want  string
	}{
		"wrong checksum": {append(sealed(`{"id":"east/n1"}`), ' '), "checksum"},
		"too short":      {[]byte("0"), "checksum"},
		"no JSON":        {sealed(`{"id":`), "unexpected end"},
		"bad name":       {sealed(`{"id":"EAST/n1"}`), "cluster name"},
		"bad prefix":     {sealed(`{"id":"east/n1","podCIDRs":["10.0.0.0/99"]}`), "10.0.0.0/99"},
		"another's":      {sealed(`{"id":"east/n2"}`), "east/n2"},
	} {
		t.Run(name, func(t *testing.T) {
			path := testPath(t)
			s := openTest(t, path)
			if err := s.commit(func(w *writer) error { return w.set(at, tt.value) }); err != nil {
				t.Fatal(err)
			}
			_, err := s.Load()
			wantError(t, err, path, `bucket "nodes", key "east/n1"`, tt.want)
			closeTest(t, s)

			s, err = Open(path)
			var corrupt *CorruptError
			if s == nil || !errors.As(err, &corrupt) {
				t.Fatalf("%v, %v", s, err)
			}
			closeTest(t, s)
			wantError(t, err, path, corrupt.SetAside, `bucket "nodes", key "east/n1"`, tt.want)
			if !strings.HasPrefix(corrupt.SetAside, path+".corrupt-") {
				t.Errorf("set aside as %s", corrupt.SetAside)
			}
		})
	}
}

func TestSetAsideTwiceKeepsBoth(t *testing.T) {
	path := testPath(t)
	closeTest(t, openTest(t, path))
	seen := map[string]bool{}
	for i := range 3 {
		if err := os.WriteFile(path, []byte(fmt.Sprint("damage ", i)), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Fatal(err)
		}
		closeTest(t, s)
		seen[corrupt.SetAside] = true
	}
	if len(seen) != 3 {
		t.Errorf("set aside as %v", seen)
	}
}

// A file that is cut while it is mapped ends the process where nobody looks.
func TestCutWhileOpen(t *testing.T) {
	path := testPath(t)
	s := openTest(t, path)
	update(t, s, func(tx *Tx) {
		for i := range 200 {
			tx.PutNode(kubeNode(node("east", fmt.Sprint("n", i))))
		}
	})
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	_, err := s.Load()
	wantError(t, err, path, "damaged while it was open", "restart")
	err = s.Update(func(tx *Tx) error { tx.PutCluster(cluster("east")); return nil })
	wantError(t, err, path, "damaged while it was open")
	closeTest(t, s)
}
