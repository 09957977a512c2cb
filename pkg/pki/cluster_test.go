package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// clusterCert issues for an agent and returns the CA in its chain.
func clusterCert(t *testing.T, a *Authority, cluster string, now time.Time) *x509.Certificate {
	t.Helper()
	cert := certificate(t, a, AgentOf(mesh.NodeID{Cluster: cluster, Name: "n1"}), now, time.Hour)
	if len(cert.Certificate) < 2 {
		t.Fatal("a leaf without its CA")
	}
	ca, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func reopen(t *testing.T, a *Authority, now time.Time) *Authority {
	t.Helper()
	b, err := openAuthority(a.dir, a.mesh, now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestClusterCA(t *testing.T) {
	a := testAuthority(t, "acme")
	var told []string
	a.OnClusterCA(func(cluster string, until time.Time, problem error) {
		told = append(told, fmt.Sprint(cluster, " ", until.After(time.Now()), " ", problem))
	})
	now := time.Now()
	east := clusterCert(t, a, "east", now)
	if !east.IsCA || !east.MaxPathLenZero || east.MaxPathLen != 0 || east.CheckSignatureFrom(a.root) != nil {
		t.Errorf("CA %+v", east)
	}
	if again := clusterCert(t, a, "east", now.Add(time.Hour)); !again.Equal(east) {
		t.Error("a second certificate has another CA")
	}
	if west := clusterCert(t, a, "west", now); samePublic(west.PublicKey, east.PublicKey) || west.Subject.String() == east.Subject.String() {
		t.Errorf("two clusters share a CA: %v", west.Subject)
	}
	if again := clusterCert(t, reopen(t, a, now), "east", now); !again.Equal(east) {
		t.Error("the next process has another CA")
	}
	if want := "[east true <nil> west true <nil>]"; fmt.Sprint(told) != want {
		t.Errorf("told %v, want %v", told, want)
	}
	for path, want := range map[string]fs.FileMode{"": 0o700, "east.crt": 0o600, "east.key": 0o600} {
		info, err := os.Stat(filepath.Join(a.dir, clustersDir, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q has mode %v (%v), want %v", path, info.Mode(), err, want)
		}
	}

	// What knows nothing of flatmesh takes it for a good SVID.
	bundle := x509bundle.FromX509Authorities(a.td, []*x509.Certificate{a.root})
	id, _, err := x509svid.ParseAndVerify(certificate(t, a, AgentOf(east1), now, time.Hour).Certificate, bundle)
	if err != nil || id.String() != "spiffe://acme.local/flatmesh/agent/east/n1" {
		t.Errorf("go-spiffe reads %v (%v)", id, err)
	}
}

func TestClusterCARenewal(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	for _, tt := range []struct {
		name  string
		after time.Duration
		same  bool
	}{
		{"at once", 0, true},
		{"before half of its life", clusterLife/2 - time.Hour, true},
		{"after half of its life", clusterLife/2 + time.Hour, false},
		{"after its end", clusterLife + time.Hour, false},
		{"with a clock set back a little", -time.Minute, true},
		{"as the root ends", rootLife - time.Hour, false},
	} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, another process %v", tt.name, again), func(t *testing.T) {
				a, err := openAuthority(filepath.Join(t.TempDir(), "pki"), "acme", now)
				if err != nil {
					t.Fatal(err)
				}
				first := clusterCert(t, a, "east", now)
				if again {
					a = reopen(t, a, now.Add(max(tt.after, 0)))
				}
				second := clusterCert(t, a, "east", now.Add(tt.after))
				if second.Equal(first) != tt.same {
					t.Errorf("the same CA: %v, want %v", !tt.same, tt.same)
				}
				if !tt.same && samePublic(first.PublicKey, second.PublicKey) {
					t.Error("the new CA has the old key")
				}
				if third := clusterCert(t, a, "east", now.Add(tt.after+time.Minute)); !third.Equal(second) {
					t.Error("and another a minute later")
				}
				// What the earlier one issued stays good while it lasts.
				if tt.after < clusterLife && first.CheckSignatureFrom(a.root) != nil {
					t.Error("the earlier CA is no longer the root's")
				}
			})
		}
	}
}

// A CA that cannot be made to last longer is not made again and again.
func TestClusterCANearTheEndOfTheRoot(t *testing.T) {
	now := time.Now()
	a, err := openAuthority(filepath.Join(t.TempDir(), "pki"), "acme", now)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	a.OnClusterCA(func(string, time.Time, error) { made++ })
	for left := 64 * time.Hour; left > time.Second; left /= 2 {
		ca := clusterCert(t, a, "east", a.root.NotAfter.Add(-left))
		if !ca.NotAfter.Equal(a.root.NotAfter) {
			t.Fatalf("%v before the root's end the CA ends %v", left, ca.NotAfter)
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
}

func TestClusterCADamaged(t *testing.T) {
	now := time.Now()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"certificate cut": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "east.crt")
			write(t, path, read(t, path)[:100])
		},
		"certificate empty": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "east.crt"), nil) },
		"key cut": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "east.key")
			write(t, path, read(t, path)[:100])
		},
		"a key renewed and a certificate not": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "east.key"), read(t, filepath.Join(dir, "west.key")))
		},
		"another cluster's": func(t *testing.T, dir string) {
			for _, ending := range []string{".crt", ".key"} {
				write(t, filepath.Join(dir, "east"+ending), read(t, filepath.Join(dir, "west"+ending)))
			}
		},
		"a signature that is not the root's": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "east.crt")
			certs, err := decodeCertificates(read(t, path))
			if err != nil {
				t.Fatal(err)
			}
			der := bytes.Clone(certs[0].Raw)
			der[len(der)-1] ^= 1
			write(t, path, encodeCertificate(der))
		},
		"key open to others":       chmod("east.key", 0o644),
		"two certificates":         func(t *testing.T, dir string) { double(t, filepath.Join(dir, "east.crt")) },
		"a folder in its place":    func(t *testing.T, dir string) { replaceByFolder(t, filepath.Join(dir, "east.crt")) },
		"the root's in its place":  func(t *testing.T, dir string) { copyFiles(t, filepath.Dir(dir), dir) },
		"damaged and once already": func(t *testing.T, dir string) { damageTwice(t, dir, now) },
	} {
		t.Run(name, func(t *testing.T) {
			a := testAuthority(t, "acme")
			dir := filepath.Join(a.dir, clustersDir)
			first := clusterCert(t, a, "east", now)
			west := clusterCert(t, a, "west", now)
			damage(t, dir)
			b := reopen(t, a, now)
			var problem error
			b.OnClusterCA(func(_ string, _ time.Time, err error) { problem = err })
			second := clusterCert(t, b, "east", now)
			if samePublic(second.PublicKey, first.PublicKey) || samePublic(second.PublicKey, west.PublicKey) {
				t.Error("what was damaged is in use")
			}
			var corrupt *CorruptError
			if !errors.As(problem, &corrupt) {
				t.Fatalf("told %v", problem)
			}
			if _, err := os.Stat(corrupt.SetAside); err != nil || corrupt.Path != filepath.Join(dir, "east.crt") {
				t.Errorf("%s is set aside as %s: %v", corrupt.Path, corrupt.SetAside, err)
			}
			wantError(t, problem, "east.key")
			if third := clusterCert(t, reopen(t, a, now), "east", now); !third.Equal(second) {
				t.Error("the new one was not stored")
			}
			if again := clusterCert(t, b, "west", now); !again.Equal(west) {
				t.Error("another cluster's CA was replaced too")
			}
		})
	}
}

func double(t *testing.T, path string) { write(t, path, bytes.Repeat(read(t, path), 2)) }

func replaceByFolder(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
}

func copyFiles(t *testing.T, from, to string) {
	write(t, filepath.Join(to, "east.crt"), read(t, filepath.Join(from, caCertFile)))
	write(t, filepath.Join(to, "east.key"), read(t, filepath.Join(from, caKeyFile)))
}

func damageTwice(t *testing.T, dir string, now time.Time) {
	path := filepath.Join(dir, "east.crt")
	write(t, fmt.Sprintf("%s.corrupt-%d", path, now.Unix()), nil)
	write(t, path, []byte("x"))
}

// A crash between the two files leaves one of them, which is nothing.
func TestClusterCAHalfMade(t *testing.T) {
	for _, lost := range []string{"east.crt", "east.key"} {
		a := testAuthority(t, "acme")
		first := clusterCert(t, a, "east", time.Now())
		if err := os.Remove(filepath.Join(a.dir, clustersDir, lost)); err != nil {
			t.Fatal(err)
		}
		b := reopen(t, a, time.Now())
		b.OnClusterCA(func(_ string, _ time.Time, problem error) {
			if problem != nil {
				t.Error(problem)
			}
		})
		if clusterCert(t, b, "east", time.Now()).Equal(first) {
			t.Errorf("without %s the CA is in use", lost)
		}
	}
}

// Where it cannot be stored it serves all the same, and that is said.
func TestClusterCANotStored(t *testing.T) {
	a := testAuthority(t, "acme")
	write(t, filepath.Join(a.dir, clustersDir), []byte("a file"))
	var problems []error
	a.OnClusterCA(func(_ string, _ time.Time, problem error) { problems = append(problems, problem) })
	first := clusterCert(t, a, "east", time.Now())
	if len(problems) != 1 {
		t.Fatalf("told %v", problems)
	}
	wantError(t, problems[0], "not a directory")
	if !clusterCert(t, a, "east", time.Now()).Equal(first) || len(problems) != 1 {
		t.Errorf("it is made again: %v", problems)
	}
	if err := os.RemoveAll(a.dir); err != nil {
		t.Fatal(err)
	}
	clusterCert(t, a, "west", time.Now())
	if len(problems) != 2 {
		t.Fatalf("told %v", problems)
	}
	wantError(t, problems[1], "no such file")
}

// With another CA of the mesh the clusters' are over, and not damaged.
func TestClusterCAOfAnEarlierRoot(t *testing.T) {
	a, other := testAuthority(t, "acme"), testAuthority(t, "acme")
	first := clusterCert(t, a, "east", time.Now())
	for _, name := range []string{caCertFile, caKeyFile} {
		write(t, filepath.Join(a.dir, name), read(t, filepath.Join(other.dir, name)))
	}
	b := reopen(t, a, time.Now())
	b.OnClusterCA(func(_ string, _ time.Time, problem error) {
		if problem != nil {
			t.Error(problem)
		}
	})
	second := clusterCert(t, b, "east", time.Now())
	if second.Equal(first) || second.CheckSignatureFrom(other.root) != nil {
		t.Error("the CA is not of the mesh's new root")
	}
}

func TestClusterCAAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	const processes, calls = 6, 5
	clusters := []string{"east", "west", "north"}
	var mu sync.Mutex
	seen := map[string]map[string]bool{}
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			a, err := OpenAuthority(dir, "acme")
			if err != nil {
				t.Error(err)
				return
			}
			a.OnClusterCA(func(_ string, _ time.Time, problem error) {
				if problem != nil {
					t.Error(problem)
				}
			})
			key, _, err := NewCSR()
			if err != nil {
				t.Error(err)
				return
			}
			var calling sync.WaitGroup
			for i := range calls * len(clusters) {
				calling.Go(func() {
					cluster := clusters[i%len(clusters)]
					chain, err := a.IssueWorkload(cluster, "demo", "echo", key.Public(), time.Now(), time.Hour)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if seen[cluster] == nil {
						seen[cluster] = map[string]bool{}
					}
					seen[cluster][string(chain[1])] = true
				})
			}
			calling.Wait()
		})
	}
	wg.Wait()
	for _, cluster := range clusters {
		if len(seen[cluster]) != 1 {
			t.Errorf("%s has %d CAs", cluster, len(seen[cluster]))
		}
	}
}
