package pki

import (
	"errors"
	"net/url"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestIdentityRoundTrip(t *testing.T) {
	td, err := TrustDomain("acme")
	if err != nil {
		t.Fatal(err)
	}
	for want, id := range map[string]Identity{
		"spiffe://acme.local/flatmesh/controlplane":                      {Role: ControlPlane},
		"spiffe://acme.local/flatmesh/agent/east/n1":                     AgentOf(east1),
		"spiffe://acme.local/flatmesh/agent/east/ip-10-0-0-1.example.eu": AgentOf(mesh.NodeID{Cluster: "east", Name: "ip-10-0-0-1.example.eu"}),
	} {
		uri, err := id.URI(td)
		if err != nil {
			t.Fatal(err)
		}
		if uri.String() != want {
			t.Errorf("%v is %q, want %q", id, uri, want)
		}
		got, err := ParseIdentity(td, uri)
		if err != nil || got != id {
			t.Errorf("%q reads as %v (%v), want %v", want, got, err, id)
		}
	}
}

func TestParseIdentityRefuses(t *testing.T) {
	td, err := TrustDomain("acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		"https://acme.local/flatmesh/controlplane",
		"spiffe://acme.local",
		"spiffe://acme.local/",
		"spiffe://acme.local/flatmesh",
		"spiffe://acme.local/flatmesh/controlplane/x",
		"spiffe://acme.local/flatmesh/agent/east",
		"spiffe://acme.local/flatmesh/agent/east/n1/x",
		"spiffe://acme.local/flatmesh/agent//n1",
		"spiffe://acme.local/flatmesh/agent/EAST/n1",
		"spiffe://acme.local/ns/default/sa/agent",
		"spiffe://acme.local/flatmesh/agent/east/n1?x=1",
	} {
		uri, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := ParseIdentity(td, uri); err == nil || errors.Is(err, ErrOtherMesh) {
			t.Errorf("%q reads as %v (%v)", s, id, err)
		}
	}
	uri, err := AgentOf(east1).URI(testTrustDomain(t, "umbra"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ParseIdentity(td, uri)
	if !errors.Is(err, ErrOtherMesh) {
		t.Errorf("another mesh: %v", err)
	}
	wantError(t, err, "acme", "umbra")
}
