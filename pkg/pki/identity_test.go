package pki

import (
	"errors"
	"net/url"
	"strings"
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
		"spiffe://acme.local/flatmesh/gateway/east/gw-0.edge":            GatewayOf("east", "gw-0.edge"),
		"spiffe://acme.local/ns/demo/sa/echo":                            WorkloadOf("demo", "echo"),
		"spiffe://acme.local/ns/sa/sa/sa":                                WorkloadOf("sa", "sa"),
		"spiffe://acme.local/ns/flatmesh/sa/agent.east":                  WorkloadOf("flatmesh", "agent.east"),
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
		"spiffe://acme.local/flatmesh/agent/east/n1?x=1",
		"spiffe://acme.local/flatmesh/gateway/east",
		"spiffe://acme.local/flatmesh/gateway/east/",
		"spiffe://acme.local/flatmesh/gateway/east/gw/x",
		"spiffe://acme.local/flatmesh/gateway/east.x/gw",
		"spiffe://acme.local/flatmesh/gateway/east/GW",
		"spiffe://acme.local/flatmesh/router/east/gw",
		"spiffe://acme.local/ns/default",
		"spiffe://acme.local/ns/default/sa",
		"spiffe://acme.local/ns/default/sa/agent/x",
		"spiffe://acme.local/ns/default/xx/agent",
		"spiffe://acme.local/ns/a.b/sa/agent",
		"spiffe://acme.local/ns/default/sa/Agent",
		"spiffe://acme.local/ns/default/sa/a_b",
		"spiffe://acme.local/ns/" + strings.Repeat("a", 64) + "/sa/agent",
		"spiffe://acme.local/ns/default/sa/" + strings.Repeat("a", 254),
		"spiffe://acme.local/sa/agent/ns/default",
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

func TestIdentityValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		id   Identity
		want string
	}{
		"nobody":                     {Identity{}, "unknown role"},
		"a role of the future":       {Identity{Role: Workload + 1}, "unknown role"},
		"an agent with a gateway":    {Identity{Role: Agent, Node: east1, Name: "gw"}, "names that its role has not"},
		"a gateway with a namespace": {Identity{Role: Gateway, Cluster: "east", Name: "gw", Namespace: "demo"}, "names that its role has not"},
		"a workload with a cluster":  {Identity{Role: Workload, Cluster: "east", Namespace: "demo", ServiceAccount: "echo"}, "names that its role has not"},
		"a gateway with no name":     {GatewayOf("east", ""), `gateway name ""`},
		"a gateway with no cluster":  {GatewayOf("", "gw"), `cluster name ""`},
		"no namespace":               {WorkloadOf("", "echo"), `namespace ""`},
		"a bad namespace":            {WorkloadOf("demo.x", "echo"), `namespace "demo.x"`},
		"no service account":         {WorkloadOf("demo", ""), `service account name ""`},
		"a way out":                  {WorkloadOf("demo", ".."), `service account name ".."`},
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, tt.id.Validate(), tt.want)
			if uri, err := tt.id.URI(testTrustDomain(t, "acme")); err == nil {
				t.Errorf("yet it is %q", uri)
			}
		})
	}
}

// What is read as an identity is written as the same text, and no two texts are
// the same identity.
func FuzzParseIdentity(f *testing.F) {
	f.Add("/flatmesh/controlplane")
	f.Add("/flatmesh/agent/east/n1")
	f.Add("/flatmesh/gateway/east/gw")
	f.Add("/ns/demo/sa/echo")
	f.Add("/ns/demo/sa/echo/sa/x")
	f.Add("/ns//sa/")
	f.Fuzz(func(t *testing.T, path string) {
		td := testTrustDomain(t, "acme")
		uri := &url.URL{Scheme: "spiffe", Host: td.Name(), Path: path}
		id, err := ParseIdentity(td, uri)
		if err != nil {
			return
		}
		again, err := id.URI(td)
		if err != nil || again.String() != uri.String() {
			t.Errorf("%q reads as %+v, which writes as %q (%v)", uri, id, again, err)
		}
	})
}
