package wg

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
)

func TestLoadOrCreateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flatmesh", "key")
	k, created, err := LoadOrCreateKey(path)
	if err != nil || !created || k.IsZero() {
		t.Fatalf("first: created %v, %v", created, err)
	}
	again, created, err := LoadOrCreateKey(path)
	if err != nil || created || again != k {
		t.Fatalf("second: created %v, same %v, %v", created, again == k, err)
	}
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v (%v)", p, info.Mode(), want, err)
		}
	}
	onlyFile(t, path)
}

func TestKeyOfOthersIsRefused(t *testing.T) {
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o644, 0o777} {
		path := filepath.Join(t.TempDir(), "key")
		k := newKey(t)
		writeFile(t, path, k.encode(), mode)
		got, created, err := LoadOrCreateKey(path)
		if err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) || created || !got.IsZero() {
			t.Errorf("mode %o: created %v, error %v", mode, created, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != string(k.encode()) {
			t.Errorf("mode %o: the file was touched: %v", mode, err)
		}
	}
}

func TestCorruptKeyIsSetAside(t *testing.T) {
	good := newKey(t)
	encoded := string(good.encode())
	for name, content := range map[string]string{
		"empty":     "",
		"short":     encoded[:20],
		"long":      encoded + encoded,
		"no base64": strings.Repeat("*", 44),
		"zeros":     base64.StdEncoding.EncodeToString(make([]byte, 32)),
		"31 bytes":  base64.StdEncoding.EncodeToString(good[:31]),
		"huge":      strings.Repeat("A", 1<<20),
		"binary":    strings.Repeat("\x00", 45),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			asides := map[string]bool{}
			for range 3 { // in the same second, and none may replace another
				writeFile(t, path, []byte(content), 0o600)
				k, created, err := LoadOrCreateKey(path)
				var corrupt *CorruptError
				if !errors.As(err, &corrupt) || !created || k.IsZero() {
					t.Fatalf("created %v, error %v", created, err)
				}
				if len(content) > 0 && strings.Contains(err.Error(), content) {
					t.Errorf("the error quotes the file: %v", err)
				}
				if b, err := os.ReadFile(corrupt.SetAside); err != nil || string(b) != content {
					t.Errorf("set aside as %q: %v", b, err)
				}
				if !strings.HasPrefix(corrupt.SetAside, path+".corrupt-") || asides[corrupt.SetAside] {
					t.Errorf("set aside as %s", corrupt.SetAside)
				}
				asides[corrupt.SetAside] = true
				if again, created, err := LoadOrCreateKey(path); again != k || created || err != nil {
					t.Errorf("the new key does not stay: %v", err)
				}
			}
		})
	}
}

func TestKeyThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "file"), nil, 0o600)
	if _, created, err := LoadOrCreateKey(filepath.Join(dir, "file", "key")); err == nil || created {
		t.Errorf("below a file: created %v, %v", created, err)
	}
	if _, created, err := LoadOrCreateKey(dir); err == nil || created {
		t.Errorf("a folder: created %v, %v", created, err)
	}
}

func TestKeyTempOfKilledProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	writeFile(t, path+".tmp", []byte("half"), 0o644)
	k, created, err := LoadOrCreateKey(path)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	if again, _, err := LoadOrCreateKey(path); again != k || err != nil {
		t.Error(err)
	}
	onlyFile(t, path)
}

func TestKeyOnFullDisk(t *testing.T) {
	h := nstest.New(t, "full")
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	err := h.Do(func() error { // a file system of its own, in the host's mounts
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4096,mode=0700"); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4096), 0o600); err != nil {
			return err
		}
		_, created, err := LoadOrCreateKey(path)
		if !errors.Is(err, unix.ENOSPC) || created || !strings.Contains(err.Error(), dir) {
			t.Errorf("full disk: created %v, %v", created, err)
		}
		if left, err := filepath.Glob(path + "*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			return err
		}
		_, created, err = LoadOrCreateKey(path)
		if err != nil || !created {
			t.Errorf("with space again: created %v, %v", created, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("files left: %v, %v", files, err)
	}
}
