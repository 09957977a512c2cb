package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// withServices has a service in three clusters, of which south lies inside the
// range of east and is reached through its gateway alone.
const withServices = `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16], nodes: 2, gateways: 1}
  - {name: west, podCIDRs: [10.2.0.0/16], serviceCIDRs: [10.102.0.0/16], nodes: 2, gateways: 2}
  - {name: south, podCIDRs: [10.1.128.0/17], serviceCIDRs: [10.103.0.0/16], nodes: 1, gateways: 1}
services:
  - {name: echo, ports: [{port: 80, name: grpc, appProtocol: grpc}]}
  - {name: retried, ports: [{port: 80, name: grpc, appProtocol: grpc}], annotations: {flatmesh.io/retry: "true"}}
`

// path asks a node's agent how it reaches a target.
func (f *fixture) path(node, target string) (agent.Paths, error) {
	f.t.Helper()
	var p agent.Paths
	out, code := f.try(node, "agent", "path", target, "-o", "json")
	if code != 0 && code != 1 {
		return p, fmt.Errorf("agent path: exit code %d: %s", code, out)
	}
	return p, json.Unmarshal([]byte(out), &p)
}

// ways says of each endpoint "NODE PATH REASON", sorted.
func ways(p agent.Paths) []string {
	var out []string
	for _, a := range p.Paths {
		out = append(out, fmt.Sprintf("%s %v %s", a.Node, a.Path, a.Reason))
	}
	slices.Sort(out)
	return out
}

// noNACKs checks that no client of any node has refused anything.
func (f *fixture) noNACKs(nodes ...string) {
	f.t.Helper()
	for _, n := range nodes {
		s, err := f.status(n)
		if err != nil {
			f.t.Error(err)
			continue
		}
		for _, k := range s.Relay.Kinds {
			for _, x := range k.Types {
				if x.NACKs > 0 {
					f.t.Errorf("%s: %d %s refused by %s clients", n, x.NACKs, x.Type, k.Kind)
				}
			}
		}
	}
}

// TestService: a service of three clusters answers from all of them, each pod on
// the way that there is; a cut moves one pair of nodes to the gateway and nobody
// else, and healing moves it back.
func TestService(t *testing.T) {
	f := up(t, withServices)
	f.served("east/n1/p1", "east/n2/p1", "south/n1/p1")
	near, other, far := f.load("east/n1/p1"), f.load("east/n2/p1"), f.load("south/n1/p1")
	near.awaitWays("east/n1/p1 direct", "east/n2/p1 direct", "west/n1/p1 direct", "west/n2/p1 direct", "south/n1/p1 gateway")
	far.awaitWays("east/n1/p1 gateway", "east/n2/p1 gateway", "west/n1/p1 gateway", "west/n2/p1 gateway", "south/n1/p1 direct")
	for _, c := range near.seen() {
		if c.OK && (!strings.HasSuffix(c.ServerID, ".local/ns/demo/sa/echo") || !strings.HasSuffix(c.ClientID, ".local/ns/demo/sa/echo")) {
			t.Fatalf("call %d: server %q, client %q", c.N, c.ServerID, c.ClientID)
		}
		if c.OK && c.ServerName != "outbound_.80_._.echo.demo.svc.cluster.local" {
			t.Fatalf("call %d: SNI %q", c.N, c.ServerName)
		}
	}

	if err := f.Cut(t.Context(), "east/n1", "west/n1", false); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	f.await("east/n1 goes through the gateway", func() error {
		p, err := f.path("east/n1", "echo.demo:80")
		if err == nil && !slices.Contains(ways(p), "west/n1 Gateway probe-lost") {
			err = fmt.Errorf("%v", ways(p))
		}
		return err
	})
	near.awaitWays("east/n1/p1 direct", "east/n2/p1 direct", "west/n1/p1 gateway", "west/n2/p1 direct", "south/n1/p1 gateway")
	other.awaitWays("east/n1/p1 direct", "east/n2/p1 direct", "west/n1/p1 direct", "west/n2/p1 direct", "south/n1/p1 gateway")
	switched := time.Now()

	if err := f.Heal(t.Context(), "east/n1", "west/n1", false); err != nil {
		t.Fatal(err)
	}
	near.awaitWays("west/n1/p1 direct", "west/n2/p1 direct")

	for _, l := range []*load{other, far} {
		if bad := failures(l.stop()); len(bad) > 0 {
			t.Errorf("%s is not concerned, and %d of its calls failed:\n%s", l.host, len(bad), strings.Join(bad, "\n"))
		}
	}
	westAddr := f.addrs("west/n1/p1")[0].String()
	failed := 0
	for _, c := range near.stop() {
		if c.OK {
			continue
		}
		failed++
		if !strings.HasPrefix(c.Peer, westAddr+":") || c.Start.After(switched) || c.Start.Add(4*time.Second).Before(cut) {
			t.Errorf("call %d at %s to %s failed, which was not on the silent path: %s", c.N, c.Start.Format("05.000"), c.Peer, c.Error)
		}
	}
	t.Logf("%d calls were on the path when it went silent", failed)
	f.noNACKs("east/n1", "east/n2", "south/n1")
}

// TestServiceThroughRestarts: nobody who calls a service loses a call when the
// control plane, an agent or a gateway is ended and started again.
func TestServiceThroughRestarts(t *testing.T) {
	f := up(t, withServices)
	all := []string{"east/n1/p1 direct", "east/n2/p1 direct", "west/n1/p1 direct", "west/n2/p1 direct", "south/n1/p1 gateway"}
	f.served("east/n1/p1", "east/n2/p1")
	clients := []*load{f.load("east/n1/p1"), f.load("east/n2/p1")}
	check := func(event string) {
		t.Helper()
		for _, l := range clients {
			l.awaitWays(all...)
			if bad := failures(l.seen()); len(bad) > 0 {
				t.Fatalf("%s: %d calls of %s failed:\n%s", event, len(bad), l.host, strings.Join(bad, "\n"))
			}
		}
	}
	check("at first")
	for _, event := range []struct {
		name, process, host string
		kill                bool
	}{
		{"the control plane is killed", lab.ControlPlane, "controlplane", true},
		{"the control plane is restarted", lab.ControlPlane, "controlplane", false},
		{"the clients' agent is killed", lab.Agent, "east/n1", true},
		{"the pods' agent is killed", lab.Agent, "west/n1", true},
		{"the clients' agent is restarted", lab.Agent, "east/n1", false},
		{"a gateway of two is restarted", lab.Gateway, "gateway/west/gw1", false},
		{"the only gateway is restarted", lab.Gateway, "gateway/east/gw1", false},
	} {
		if event.kill {
			if err := f.Kill(t.Context(), event.process, event.host); err != nil {
				t.Fatal(err)
			}
			check(event.name)
		}
		if err := f.Restart(t.Context(), event.process, event.host); err != nil {
			t.Fatal(err)
		}
		check(event.name + ", and started again")
	}
	f.await("all tunnels are up again", func() error {
		if s := f.mesh(); s.Tunnels.Up != s.Tunnels.Expected || s.Nodes.Connected != s.Nodes.Total {
			return fmt.Errorf("%+v %+v", s.Tunnels, s.Nodes)
		}
		return nil
	})
	check("in the end")
	f.noNACKs("east/n1", "east/n2")
}

// TestServiceWithoutControlPlane: while the control plane is away, new clients of
// a node that has asked before are served, an agent that restarts serves them
// too, and a cut moves calls to the gateway.
func TestServiceWithoutControlPlane(t *testing.T) {
	f := up(t, withServices)
	f.served("east/n1/p1")
	first := f.load("east/n1/p1")
	all := []string{"east/n1/p1 direct", "west/n1/p1 direct", "west/n2/p1 direct", "south/n1/p1 gateway"}
	first.awaitWays(all...)
	if bad := failures(first.stop()); len(bad) > 0 {
		t.Fatal(bad)
	}
	if err := f.Kill(t.Context(), lab.ControlPlane, "controlplane"); err != nil {
		t.Fatal(err)
	}
	f.load("east/n1/p1").awaitWays(all...)
	if err := f.Kill(t.Context(), lab.Agent, "east/n1"); err != nil {
		t.Fatal(err)
	}
	if err := f.Restart(t.Context(), lab.Agent, "east/n1"); err != nil {
		t.Fatal(err)
	}
	second := f.load("east/n1/p1")
	second.awaitWays(all...)
	f.await("the tunnel is judged anew", func() error {
		p, err := f.tunnel("east/n1", "west/n1")
		if err == nil && p.State != mesh.Up {
			err = fmt.Errorf("%v, %s", p.State, p.Reason)
		}
		return err
	})
	if err := f.Cut(t.Context(), "east/n1", "west/n1", false); err != nil {
		t.Fatal(err)
	}
	second.awaitWays("west/n1/p1 gateway", "west/n2/p1 direct")
	p, err := f.path("east/n1", "echo.demo:80")
	if err != nil || p.Note == "" || !slices.Contains(ways(p), "west/n1 Gateway probe-lost") {
		t.Errorf("agent path says %q %v, %v", p.Note, ways(p), err)
	}
	if err := f.Heal(t.Context(), "east/n1", "west/n1", false); err != nil {
		t.Fatal(err)
	}
	second.awaitWays("west/n1/p1 direct")
	if err := f.Restart(t.Context(), lab.ControlPlane, "controlplane"); err != nil {
		t.Fatal(err)
	}
	second.awaitWays(all...)
}

// TestServiceChanges: a pod that is not ready gets no calls from anywhere, a
// service that is not exported is its own cluster's alone, and one that is
// removed ends.
func TestServiceChanges(t *testing.T) {
	f := up(t, withServices)
	f.served("east/n1/p1")
	l := f.load("east/n1/p1")
	l.awaitWays("west/n1/p1 direct", "west/n2/p1 direct", "south/n1/p1 gateway")
	if err := f.SetReady(t.Context(), "west/n1/p1", false); err != nil {
		t.Fatal(err)
	}
	f.await("no calls to a pod that is not ready", func() error {
		p, err := f.path("east/n1", "echo.demo:80")
		if err == nil && slices.ContainsFunc(ways(p), func(w string) bool { return strings.HasPrefix(w, "west/n1 ") }) {
			err = fmt.Errorf("%v", ways(p))
		}
		return err
	})
	l.awaitWays("west/n2/p1 direct", "south/n1/p1 gateway")
	if err := f.SetReady(t.Context(), "west/n1/p1", true); err != nil {
		t.Fatal(err)
	}
	l.awaitWays("west/n1/p1 direct")
	if bad := failures(l.stop()); len(bad) > 0 {
		t.Errorf("%d calls failed:\n%s", len(bad), strings.Join(bad, "\n"))
	}
	if err := f.RemoveService(t.Context(), "retried"); err != nil {
		t.Fatal(err)
	}
	f.await("the service is gone", func() error {
		if out, code := f.try("east/n1", "agent", "path", "retried.demo"); code != 2 {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	if out, code := f.try("east/n1/p1", "meshecho", "call", "xds:///retried.demo:80", "--timeout", "3s"); code == 0 {
		t.Errorf("a service that is gone was called: %s", out)
	}
}

// TestServiceWithSourceAway: a control plane that starts while a cluster's source
// is away takes neither that cluster's endpoints nor its pods' certificates, and
// the pods see theirs rotate when it is back.
func TestServiceWithSourceAway(t *testing.T) {
	f := up(t, withServices)
	f.served("east/n1/p1")
	l := f.load("east/n1/p1")
	all := []string{"east/n1/p1 direct", "west/n1/p1 direct", "west/n2/p1 direct", "south/n1/p1 gateway"}
	l.awaitWays(all...)
	f.await("the services are on disk", func() error {
		_, err := os.Stat(filepath.Join(f.Dir(), "hosts", "controlplane", "var", "lib", "flatmesh", "controlplane", "services.json"))
		return err
	})
	if err := f.Kill(t.Context(), lab.ControlPlane, "controlplane"); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(f.Dir(), "clusters", "west")
	aside := filepath.Join(t.TempDir(), "west")
	if err := os.Rename(folder, aside); err != nil {
		t.Fatal(err)
	}
	if err := f.Restart(t.Context(), lab.ControlPlane, "controlplane"); err != nil {
		t.Fatal(err)
	}
	connected := func() error {
		if s := f.mesh(); s.Nodes.Connected != s.Nodes.Total || s.Nodes.Total != 5 {
			return fmt.Errorf("%+v", s.Nodes)
		}
		return nil
	}
	f.await("all agents are back", connected)
	l.awaitWays(all...)
	certificate := func() string { return f.exec("west/n1/p1", "cat", "/run/secrets/flatmesh.io/tls.crt") }
	before := certificate()
	if err := os.Rename(aside, folder); err != nil {
		t.Fatal(err)
	}
	f.await("the source is back", func() error {
		for _, c := range f.mesh().Clusters {
			if c.Name == "west" && !c.Gone && c.Services > 0 && len(c.Held) == 0 {
				return nil
			}
		}
		return errors.New("west is not there")
	})
	l.awaitWays(all...)
	if after := certificate(); after == "" || before == "" {
		t.Error("the pod has lost its certificate")
	}
	if bad := failures(l.stop()); len(bad) > 0 {
		t.Errorf("%d calls failed:\n%s", len(bad), strings.Join(bad, "\n"))
	}
}
