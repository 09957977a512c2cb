package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// state returns the path, outside the host, of a file of a node's agent.
func (f *fixture) state(host, name string) string {
	return filepath.Join(f.Dir(), "hosts", host, "var/lib/flatmesh", name)
}

// cleanup removes all that the agent made and nothing else.
func TestCleanup(t *testing.T) {
	f := start(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 1}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	look := func() string {
		var b strings.Builder
		for _, argv := range [][]string{
			{"ip", "-o", "link", "show"}, {"ip", "-o", "addr", "show"}, {"ip", "rule"}, {"ip", "-6", "rule"},
			{"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
			{"find", "/run/wireguard", "/run/flatmesh"},
		} {
			b.WriteString(strings.Join(argv, " ") + "\n" + f.exec("east/n1", argv...))
		}
		return b.String()
	}
	f.connected()
	if out, code := f.try("east/n1", "agent", "cleanup"); code != 2 || !strings.Contains(out, "stop it first") {
		t.Fatalf("cleanup beside a running agent: exit code %d: %s", code, out)
	}
	f.kill(lab.Agent, "east/n1")
	f.exec("east/n1", "agent", "cleanup", "--keep-state")
	clean := look()
	for _, trace := range []string{"flatmesh0", "51830", "5183"} {
		if strings.Contains(clean, trace) {
			t.Errorf("%s is left:\n%s", trace, clean)
		}
	}
	// Somebody else's rule and route stay, also in our table.
	f.exec("east/n1", "ip", "rule", "add", "from", "192.0.2.1", "lookup", "999", "priority", "4000")
	f.exec("east/n1", "ip", "route", "add", "unreachable", "192.0.2.0/24", "table", "999")
	before := look()
	f.restart(lab.Agent, "east/n1")
	f.connected()
	f.kill(lab.Agent, "east/n1")
	f.exec("east/n1", "agent", "cleanup", "--keep-state")
	if after := look(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	f.exec("east/n1", "agent", "cleanup")
	if left, err := os.ReadDir(f.state("east/n1", "")); err != nil || len(left) != 0 {
		t.Errorf("left in the state folder: %v, %v", left, err)
	}
	if out := f.exec("east/n1", "agent", "cleanup"); !strings.Contains(out, "nothing to remove") {
		t.Errorf("a second cleanup: %s", out)
	}
}

// A second agent, a TUN that is missing, no root: each ends at once with a
// sentence that says what to do.
func TestAgentRefusesToStart(t *testing.T) {
	f := up(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 1}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	for name, tt := range map[string]struct {
		argv []string
		want string
	}{
		"a second agent":   {[]string{"agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "100.127.0.1:15012"}, "another agent already runs"},
		"a bad address":    {[]string{"agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "nowhere"}, "HOST:PORT"},
		"a bad name":       {[]string{"agent", "run", "--cluster", "East!", "--node", "n1", "--control-plane", "a:1"}, "cluster name"},
		"a missing flag":   {[]string{"agent", "run", "--cluster", "east"}, "required"},
		"no TUN":           {[]string{"unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec agent run --cluster east --node n1 --control-plane 100.127.0.1:15012 --state-dir /tmp/fm-none --run-dir /tmp/fm-none --interface other0 --http ''"}, "/dev/net/tun"},
		"no root":          {[]string{"setpriv", "--reuid", "65534", "--clear-groups", "agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "100.127.0.1:15012"}, "root"},
		"no kernel device": {[]string{"agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "100.127.0.1:15012", "--state-dir", "/var/lib/flatmesh/other", "--interface", "other0", "--device", "kernel", "--http", ""}, "kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			if name == "no kernel device" && kernelWireGuard() {
				t.Skip("this kernel has WireGuard")
			}
			out, code := f.try("east/n1", tt.argv...)
			last := lastLine(out)
			if code != 2 || !strings.Contains(last, tt.want) {
				t.Errorf("exit code %d, want 2 and %q: %s", code, tt.want, out)
			}
		})
	}
}

func kernelWireGuard() bool {
	_, err := os.Stat("/sys/module/wireguard")
	return err == nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndex(s, "\n")+1:]
}

// Tokens of another node, of another mesh, and none: each is
// refused with what to do, and a good one then works.
func TestTokens(t *testing.T) {
	f := up(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 2}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	token := func(args ...string) string {
		return f.exec("controlplane", append([]string{"controlplane", "token", "create"}, args...)...)
	}
	other := f.exec("controlplane", "sh", "-c", "timeout 2 controlplane run --mesh other --state-dir /tmp/fm-other --clusters /var/lib/flatmesh/clusters --listen 127.0.0.1:0 --http '' >/dev/null 2>&1; controlplane token create --state-dir /tmp/fm-other --cluster east; rm -r /tmp/fm-other")
	cluster := token("--cluster", "east")
	tokenFile := f.state("east/n1", "token")

	f.kill(lab.Agent, "east/n1")
	if err := os.Remove(f.state("east/n1", "identity.pem")); err != nil {
		t.Fatal(err)
	}
	// A new key under a name that another key holds.
	if err := os.Rename(f.state("east/n1", "wg.key"), f.state("east/n1", "aside.key")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, token, want string }{
		{"another node's", token("--cluster", "east", "--node", "n2"), "for east/n2, not for east/n1"},
		{"another cluster's", token("--cluster", "west"), "for west, not for east/n1"},
		{"another mesh's", other, "not the control plane that made the token"},
		{"no token at all", "hello", "not a join token"},
		{"cluster-wide over a live key", cluster, "held by the live key"},
	} {
		if err := os.WriteFile(tokenFile, []byte(tt.token), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd, err := f.Command(t.Context(), "east/n1", "agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "100.127.0.1:15012", "--token-file", "/var/lib/flatmesh/token")
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.await(tt.name+": refused", func() error {
			out, _ := f.try("east/n1", "agent", "status")
			if !strings.Contains(out, tt.want) {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		f.await("the agent has ended", func() error {
			if out, code := f.try("east/n1", "agent", "status"); code != 2 {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
	if err := os.WriteFile(tokenFile, []byte(token("--cluster", "east", "--node", "n1")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, err := f.Command(t.Context(), "east/n1", "agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "100.127.0.1:15012", "--token-file", "/var/lib/flatmesh/token")
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f.connected()
	f.reach("east/n1/p1", "west/n1/p1")
	if out, code := f.try("controlplane", "controlplane", "token", "create", "--cluster", "east", "--state-dir", "/nowhere"); code != 2 || !strings.Contains(out, "no CA") {
		t.Errorf("a token without a CA: exit code %d: %s", code, out)
	}
}

// Two hosts that take the same node's name do not take turns: the one that the
// token was made for last has it, the other is told, and the surfaces say so.
func TestNodeNameTwice(t *testing.T) {
	f := up(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 2}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	token := f.exec("controlplane", "controlplane", "token", "create", "--cluster", "east", "--node", "n1")
	f.kill(lab.Agent, "east/n2")
	f.exec("east/n2", "agent", "cleanup")
	if err := os.WriteFile(f.state("east/n2", "token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, err := f.Command(t.Context(), "east/n2", "agent", "run", "--cluster", "east", "--node", "n1", "--control-plane", "100.127.0.1:15012", "--token-file", "/var/lib/flatmesh/token")
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f.await("the replaced agent says so", func() error {
		out, _ := f.try("east/n1", "agent", "status")
		if !strings.Contains(out, "held by the live key") && !strings.Contains(out, "another agent has joined as east/n1") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if n := f.logged("controlplane", lab.ControlPlane, `msg="agent registered" node=east/n1`); n != 2 {
		t.Errorf("east/n1 was registered %d times, want once for each host", n)
	}
}

// A copied key is refused, and its owner's tunnels stay up.
func TestKeyTwice(t *testing.T) {
	f := up(t, `clusters: [{name: a, podCIDRs: [10.1.0.0/16]}, {name: b, podCIDRs: [10.2.0.0/16]}, {name: c, podCIDRs: [10.3.0.0/16]}]`)
	flow := f.stream("a/n1/p1", "b/n1/p1")
	f.kill(lab.Agent, "c/n1")
	key, err := os.ReadFile(f.state("b/n1", "wg.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.state("c/n1", "wg.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	f.restart(lab.Agent, "c/n1")
	f.await("the copy is refused", func() error {
		if out, _ := f.try("c/n1", "agent", "status"); !strings.Contains(out, "already that of b/n1") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if p, err := f.tunnel("a/n1", "b/n1"); err != nil || p.State != mesh.Up || p.Endpoint.Addr() != f.addrs("b/n1")[0] {
		t.Errorf("%v %+v", err, p)
	}
	flow.lostNone()
}

// A port that somebody else uses is named, the tunnels come when it is free.
func TestPortInUse(t *testing.T) {
	f := start(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 1}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	f.connected()
	f.kill(lab.Agent, "east/n1")
	f.exec("east/n1", "agent", "cleanup", "--keep-state")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	busy := f.begin("east/n1", "busy", "the port's holder", "env", roleVariable+"=busy", self)
	f.restart(lab.Agent, "east/n1")
	f.await("the status names the port", func() error {
		out, code := f.try("east/n1", "agent", "status")
		if code != 1 || !strings.Contains(out, "51830") || !strings.Contains(out, "in use") {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	busy.stdin.Close()
	f.connected()
	f.reach("east/n1/p1", "west/n1/p1")
}

// Corrupt state is set aside and told, and the tunnels come back.
func TestCorruptState(t *testing.T) {
	f := up(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 1}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	flow := f.stream("east/n1/p1", "west/n1/p1")
	f.kill(lab.Agent, "east/n1")
	for _, name := range []string{"peers.json", "identity.pem"} {
		if err := os.WriteFile(f.state("east/n1", name), []byte("\x00garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.restart(lab.Agent, "east/n1")
	f.connected()
	for _, name := range []string{"peers.json", "identity.pem"} {
		if aside, err := filepath.Glob(f.state("east/n1", name+".corrupt-*")); err != nil || len(aside) != 1 {
			t.Errorf("%s: set aside %v, %v", name, aside, err)
		}
	}
	if f.logged("east/n1", lab.Agent, "set aside") < 2 {
		t.Error("the log does not tell")
	}
	// The control plane's store: addresses come back from the agents.
	before := f.mesh()
	f.kill(lab.ControlPlane, "controlplane")
	db := f.state("controlplane", "controlplane/state.db")
	if err := os.WriteFile(db, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.restart(lab.ControlPlane, "controlplane")
	f.connected()
	if aside, err := filepath.Glob(db + ".corrupt-*"); err != nil || len(aside) != 1 {
		t.Errorf("state.db: set aside %v, %v", aside, err)
	}
	for i, n := range f.mesh().NodeList {
		if fmt.Sprint(n.TunnelAddrs) != fmt.Sprint(before.NodeList[i].TunnelAddrs) {
			t.Errorf("%v had %v and has %v", n.Node, before.NodeList[i].TunnelAddrs, n.TunnelAddrs)
		}
	}
	f.awaitTunnel("east/n1", "west/n1", mesh.Up)
	flow.lostNone()
}

// Key material stays in its file: in no log, no status, no socket's answer.
func TestKeysStayPrivate(t *testing.T) {
	f := up(t, `clusters: [{name: east, podCIDRs: [10.1.0.0/16], nodes: 1}, {name: west, podCIDRs: [10.2.0.0/16], nodes: 1}]`)
	for _, n := range []string{"east/n1", "west/n1"} {
		path := f.state(n, "wg.key")
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, %v", path, info.Mode(), err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		secret := strings.TrimSpace(string(b))
		err = filepath.WalkDir(f.Dir(), func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || p == path {
				return err
			}
			content, err := os.ReadFile(p)
			if strings.Contains(string(content), secret) {
				t.Errorf("%s holds the private key of %s", p, n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if out, _ := f.try(n, "agent", "status", "-o", "json"); strings.Contains(out, secret) {
			t.Errorf("the status of %s shows its private key", n)
		}
	}
}
