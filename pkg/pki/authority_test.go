package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var east1 = mesh.NodeID{Cluster: "east", Name: "n1"}

// testAuthority opens a CA in a new directory.
func testAuthority(t *testing.T, meshName string) *Authority {
	t.Helper()
	a, err := OpenAuthority(filepath.Join(t.TempDir(), "pki"), meshName)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// wantError fails unless err says every text.
func wantError(t *testing.T, err error, texts ...string) {
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

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenAuthorityMakesThenReads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "pki")
	first, err := OpenAuthority(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{caKeyFile, tokenKeyFile, caCertFile}; !slices.Equal(first.Created(), want) {
		t.Errorf("created %v, want %v", first.Created(), want)
	}
	for path, want := range map[string]fs.FileMode{"": 0o700, caCertFile: 0o600, caKeyFile: 0o600, tokenKeyFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%q has mode %v, want %v", path, info.Mode().Perm(), want)
		}
	}
	second, err := OpenAuthority(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	if len(second.Created()) != 0 {
		t.Errorf("reading created %v", second.Created())
	}
	if !bytes.Equal(first.Roots()[0], second.Roots()[0]) || !first.tokenKey.Equal(second.tokenKey) || !samePublic(first.ca.key.Public(), second.ca.key.Public()) {
		t.Error("the second opening has other keys")
	}
	if second.Mesh() != "acme" || second.TrustDomain().Name() != "acme.local" {
		t.Errorf("mesh %q, trust domain %q", second.Mesh(), second.TrustDomain())
	}
}

func TestOpenAuthorityAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	const n = 8
	roots, errs := make([][]byte, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			a, err := OpenAuthority(dir, "acme")
			if errs[i] = err; err == nil {
				roots[i] = a.Roots()[0]
			}
		})
	}
	wg.Wait()
	for i := range n {
		if errs[i] != nil || !bytes.Equal(roots[i], roots[0]) {
			t.Fatalf("opening %d: error %v, same root %v", i, errs[i], bytes.Equal(roots[i], roots[0]))
		}
	}
}

// A crash between any two steps of the making leaves a set of files, of which
// the last may still be under its temporary name and cut short.
func TestOpenAuthorityCompletesWhatACrashLeft(t *testing.T) {
	full := filepath.Join(t.TempDir(), "pki")
	if _, err := OpenAuthority(full, "acme"); err != nil {
		t.Fatal(err)
	}
	order := []string{caKeyFile, tokenKeyFile, caCertFile}
	for done := range order {
		for _, cut := range []int{-1, 0, 20, 1 << 20} { // of the temporary file; -1: none
			t.Run(fmt.Sprintf("%d done, cut %d", done, cut), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "pki")
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				for _, name := range order[:done] {
					write(t, filepath.Join(dir, name), read(t, filepath.Join(full, name)))
				}
				if cut >= 0 {
					data := read(t, filepath.Join(full, order[done]))
					write(t, filepath.Join(dir, order[done]+".tmp"), data[:min(cut, len(data))])
				}
				a, err := OpenAuthority(dir, "acme")
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(a.Created(), order[done:]) {
					t.Errorf("created %v, want %v", a.Created(), order[done:])
				}
				for _, name := range order[:done] {
					if !bytes.Equal(read(t, filepath.Join(dir, name)), read(t, filepath.Join(full, name))) {
						t.Errorf("%s was replaced", name)
					}
				}
				b, err := OpenAuthority(dir, "acme")
				if err != nil || len(b.Created()) != 0 {
					t.Fatalf("second opening: created %v, error %v", b.Created(), err)
				}
				entries, err := os.ReadDir(dir)
				if err != nil || len(entries) != len(order) {
					t.Errorf("left behind: %v (%v)", entries, err)
				}
			})
		}
	}
}

func TestOpenAuthorityRefuses(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	if _, err := OpenAuthority(other, "acme"); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, tt := range []struct {
		name   string
		mesh   string
		now    time.Time
		damage func(t *testing.T, dir string)
		want   []string
	}{
		{name: "another mesh", mesh: "umbra", want: []string{"ca.crt", `"acme"`, `"umbra"`}},
		{name: "a bad name", mesh: "Acme!", want: []string{"Acme!"}},
		{name: "ended", now: now.Add(rootLife + time.Hour), want: []string{"ca.crt ended", "move"}},
		{name: "not begun", now: now.Add(-time.Hour), want: []string{"ca.crt is valid from", "clock"}},
		{name: "no ca.key", damage: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, caKeyFile)); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"ca.key is missing", "backup"}},
		{name: "the key of another CA", damage: func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, caKeyFile), read(t, filepath.Join(other, caKeyFile)))
		}, want: []string{"ca.key does not belong to ca.crt", "backup"}},
		{name: "token.key of another kind", damage: func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, tokenKeyFile), read(t, filepath.Join(dir, caKeyFile)))
		}, want: []string{"token.key", "Ed25519"}},
		{name: "two certificates", damage: func(t *testing.T, dir string) {
			path := filepath.Join(dir, caCertFile)
			write(t, path, append(read(t, path), read(t, filepath.Join(other, caCertFile))...))
		}, want: []string{"ca.crt", "2 certificates"}},
		{name: "more after the key", damage: func(t *testing.T, dir string) {
			path := filepath.Join(dir, caKeyFile)
			write(t, path, append(read(t, path), "x"...))
		}, want: []string{"ca.key", "more follows"}},
		{name: "key readable by others", damage: chmod(caKeyFile, 0o640), want: []string{"chmod 600", "ca.key"}},
		{name: "token key readable by others", damage: chmod(tokenKeyFile, 0o604), want: []string{"chmod 600", "token.key"}},
		{name: "certificate writable by others", damage: chmod(caCertFile, 0o666), want: []string{"chmod 644", "ca.crt"}},
		{name: "directory writable by others", damage: chmod("", 0o770), want: []string{"chmod 750"}},
		{name: "a directory in place of a file", damage: func(t *testing.T, dir string) {
			path := filepath.Join(dir, tokenKeyFile)
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, want: []string{"token.key", "is a directory"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			if _, err := openAuthority(dir, "acme", now); err != nil {
				t.Fatal(err)
			}
			if tt.damage != nil {
				tt.damage(t, dir)
			}
			before := contents(t, dir)
			if tt.mesh == "" {
				tt.mesh = "acme"
			}
			if tt.now.IsZero() {
				tt.now = now
			}
			_, err := openAuthority(dir, tt.mesh, tt.now)
			wantError(t, err, tt.want...)
			if after := contents(t, dir); after != before {
				t.Errorf("the refusal changed the directory:\n%s\n%s", before, after)
			}
		})
	}
}

func chmod(name string, mode fs.FileMode) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func contents(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		fmt.Fprintf(&b, "%s %x\n", e.Name(), data)
	}
	return b.String()
}

// Every byte of every file matters: cut anywhere or with a bit turned anywhere,
// it is refused by name and left as it is, or (line ends) means the same.
func TestOpenAuthorityNeverTakesADamagedFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	a, err := OpenAuthority(dir, "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{caCertFile, caKeyFile, tokenKeyFile} {
		path := filepath.Join(dir, name)
		whole := read(t, path)
		try := func(what string, data []byte) {
			write(t, path, data)
			b, err := OpenAuthority(dir, "acme")
			switch {
			case err != nil:
				wantError(t, err, path)
			case !bytes.Equal(b.Roots()[0], a.Roots()[0]), !samePublic(b.ca.key.Public(), a.ca.key.Public()), !b.tokenKey.Equal(a.tokenKey), len(b.Created()) > 0:
				t.Errorf("%s: %s: opened as another CA", name, what)
			}
			if !bytes.Equal(read(t, path), data) {
				t.Errorf("%s: %s: the file was changed", name, what)
			}
		}
		for i := range whole {
			try(fmt.Sprintf("cut at %d", i), whole[:i])
			flipped := bytes.Clone(whole)
			flipped[i] ^= 1 << (i % 8)
			try(fmt.Sprintf("bit turned at %d", i), flipped)
		}
		write(t, path, whole)
	}
}
