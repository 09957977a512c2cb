package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"github.com/flatmesh/flatmesh/internal/testenv"
)

// smallDisk mounts a tmpfs of 512 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves so many bytes free.
func fill(t *testing.T, dir string, free int64) (remove func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(info.Size()/4096*4096-free), f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	dir := smallDisk(t)
	path := filepath.Join(dir, "state.db")
	s := openTest(t, path)
	big := func(tx *Tx, round int) {
		for i := range 300 {
			tx.PutRegistration(registration(node("east", fmt.Sprint("n", i)), fmt.Sprint("round ", round)))
		}
	}
	update(t, s, func(tx *Tx) { tx.PutCluster(cluster("east")) })
	for round := range 5 {
		before := load(t, s)
		remove := fill(t, dir, int64(round)*8192) // what is left makes it fail at another place
		for range 3 {
			err := s.Update(func(tx *Tx) error { big(tx, round); return nil })
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("round %d: error %v, want ENOSPC", round, err)
			}
			wantError(t, err, path)
			if _, err := s.Order(manyKeys(round)); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("round %d: order: %v, want ENOSPC", round, err)
			}
			if got := load(t, s); !reflect.DeepEqual(got, before) {
				t.Fatalf("round %d: a write that failed changed what is stored", round)
			}
		}
		// A full disk stops no restart either.
		closeTest(t, s)
		s = openTest(t, path)
		if got := load(t, s); !reflect.DeepEqual(got, before) {
			t.Fatalf("round %d: lost by reopening", round)
		}
		remove()
		update(t, s, func(tx *Tx) { tx.PutCluster(cluster(fmt.Sprint("c", round))) })
		orders, err := s.Order([]string{fmt.Sprint("key", round)})
		if err != nil || orders[fmt.Sprint("key", round)] != uint64(round+1) {
			t.Fatalf("round %d: with space again: %v (%v)", round, orders, err)
		}
		closeTest(t, s)
		s = openTest(t, path)
		if got := load(t, s); len(got.Clusters) != len(before.Clusters)+1 || len(got.Orders) != round+1 {
			t.Fatalf("round %d: %+v", round, got)
		}
	}
	update(t, s, func(tx *Tx) { big(tx, 0) })
}

// manyKeys are more than fits into what the test leaves free.
func manyKeys(round int) []string {
	keys := make([]string, 3000)
	for i := range keys {
		keys[i] = fmt.Sprintf("a rather long key that takes room %d %d", round, i)
	}
	return keys
}

func TestFullDiskAtTheFirstStart(t *testing.T) {
	dir := smallDisk(t)
	path := filepath.Join(dir, "state.db")
	for _, free := range []int64{0, 4096, 8192, 12288, 16384, 20480} {
		remove := fill(t, dir, free)
		s, err := Open(path)
		if s != nil || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("with %d bytes free: %v, %v", free, s, err)
		}
		remove()
		s = openTest(t, path) // and no word of corruption
		closeTest(t, s)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
