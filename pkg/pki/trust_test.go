package pki

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestBundleTrusts(t *testing.T) {
	now := time.Now()
	pins := map[string][]byte{}
	var bundle *Bundle
	for _, name := range []string{"one", "two"} {
		a, err := OpenAuthority(t.TempDir(), name)
		if err != nil {
			t.Fatal(err)
		}
		token, err := a.CreateToken("east", "", time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		if pins[name], _, err = PinOf(token); err != nil {
			t.Fatal(err)
		}
		key, csr, err := NewCSR()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := ParseCSR(csr)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := a.Issue(AgentOf(mesh.NodeID{Cluster: "east", Name: "n1"}), pub, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if bundle, err = NewBundle(key, chain, a.Roots()); err != nil {
			t.Fatal(err)
		}
	}
	if !bundle.Trusts(pins["two"]) || bundle.Trusts(pins["one"]) || bundle.Trusts(nil) {
		t.Error("a bundle trusts its own mesh's pin and no other")
	}
}

func TestExistingMesh(t *testing.T) {
	dir := t.TempDir()
	if _, err := ExistingMesh(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a CA: %v, want fs.ErrNotExist", err)
	}
	if _, err := OpenAuthority(dir, "alpha"); err != nil {
		t.Fatal(err)
	}
	if name, err := ExistingMesh(dir); name != "alpha" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
}
