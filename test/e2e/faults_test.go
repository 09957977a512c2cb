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

// A cut takes down its pair and no other, and healing brings it back.
func TestCutAndHeal(t *testing.T) {
	for _, oneWay := range []bool{false, true} {
		t.Run(fmt.Sprintf("one way %v", oneWay), func(t *testing.T) {
			f := up(t, twoClusters)
			others := f.stream("east/n2/p1", "west/n2/p1")
			pairs := [][2]string{{"east/n1", "west/n2"}, {"east/n2", "west/n1"}, {"east/n2", "west/n2"}}
			downs := func() (n int) {
				for _, p := range pairs {
					n += f.logged(p[0], lab.Agent, "msg=tunnel peer="+p[1]+" state=Down")
				}
				return n
			}
			before := downs()
			if err := f.Cut(t.Context(), "east/n1", "west/n1", oneWay); err != nil {
				t.Fatal(err)
			}
			f.awaitTunnel("east/n1", "west/n1", mesh.Down)
			f.await("the control plane hears of it", func() error {
				if s := f.mesh(); s.Tunnels.Down != 2 || s.Tunnels.Up != 6 {
					return fmt.Errorf("%+v", s.Tunnels)
				}
				return nil
			})
			f.refused("east/n1/p1", "west/n1/p1")
			f.reach("east/n1/p1", "west/n2/p1")
			if err := f.Heal(t.Context(), "east/n1", "west/n1", oneWay); err != nil {
				t.Fatal(err)
			}
			f.awaitTunnel("east/n1", "west/n1", mesh.Up)
			f.reach("east/n1/p1", "west/n1/p1")
			others.lostNone()
			if n := downs() - before; n != 0 {
				t.Errorf("other tunnels went Down %d times", n)
			}
		})
	}
}

// logged counts the lines of a process's log that hold a text.
func (f *fixture) logged(host, process, text string) int {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.Dir(), "log", host, process+".log"))
	if err != nil {
		f.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (f *fixture) kill(process, host string) {
	f.t.Helper()
	if err := f.Kill(f.t.Context(), process, host); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) restart(process, host string) {
	f.t.Helper()
	if err := f.Restart(f.t.Context(), process, host); err != nil {
		f.t.Fatal(err)
	}
}

// connected waits until all agents report to the control plane again.
func (f *fixture) connected() {
	f.t.Helper()
	f.await("all agents connected", func() error {
		if s := f.mesh(); s.Nodes.Connected != s.Nodes.Total || s.Tunnels.Up != s.Tunnels.Expected {
			return fmt.Errorf("%+v %+v", s.Nodes, s.Tunnels)
		}
		return nil
	})
}

// The control plane may die, come back and be restarted: no packet is lost, no
// tunnel changes, and nothing is applied anew.
func TestControlPlaneRestarts(t *testing.T) {
	f := up(t, twoClusters)
	flow := f.stream("east/n1/p1", "west/n2/p1")
	applied := f.logged("east/n1", lab.Agent, "msg=apply")
	before := f.mesh()
	for range 3 {
		f.kill(lab.ControlPlane, "controlplane")
		f.await("the agent notices", func() error {
			if s, err := f.status("east/n1"); err != nil || s.ControlPlane.Connected {
				return fmt.Errorf("connected: %v, %v", s.ControlPlane, err)
			}
			return nil
		})
		f.reach("east/n1/p1", "west/n1/p1")
		f.restart(lab.ControlPlane, "controlplane")
		f.connected()
	}
	flow.lostNone()
	if n := f.logged("east/n1", lab.Agent, "msg=apply"); n != applied {
		t.Errorf("%d operations were applied anew", n-applied)
	}
	after := f.mesh()
	for i, n := range after.NodeList {
		if b := before.NodeList[i]; n.Key != b.Key || fmt.Sprint(n.TunnelAddrs) != fmt.Sprint(b.TunnelAddrs) {
			t.Errorf("%v was %v %v and is %v %v", n.Node, b.Key, b.TunnelAddrs, n.Key, n.TunnelAddrs)
		}
	}
}

// An agent that is killed or restarted costs no packet, and its tunnel stays Up
// in its peers' eyes: its node's kernel still answers.
func TestAgentRestarts(t *testing.T) {
	f := up(t, twoClusters)
	flow := f.stream("east/n1/p1", "west/n1/p1")
	down := f.logged("west/n1", lab.Agent, "msg=tunnel peer=east/n1 state=Down")
	for range 3 {
		f.kill(lab.Agent, "east/n1")
		f.await("the peer says agent-away", func() error {
			p, err := f.tunnel("west/n1", "east/n1")
			if err == nil && (p.State != mesh.Up || p.Reason != mesh.ReasonAgentAway) {
				err = fmt.Errorf("%v %s", p.State, p.Reason)
			}
			return err
		})
		f.restart(lab.Agent, "east/n1")
		f.connected()
		f.awaitTunnel("east/n1", "west/n1", mesh.Up)
	}
	f.restart(lab.Agent, "east/n1")
	f.connected()
	flow.lostNone()
	if n := f.logged("west/n1", lab.Agent, "msg=tunnel peer=east/n1 state=Down"); n != down {
		t.Errorf("the tunnel went Down %d times", n-down)
	}
}

// An agent that starts while the control plane is away comes up with the peers
// that it kept, and one that has none waits for it.
func TestAgentStartsAlone(t *testing.T) {
	f := up(t, twoClusters)
	f.await("the peers are on disk", func() error {
		for _, n := range []string{"east/n1", "east/n2"} {
			b, err := os.ReadFile(f.state(n, "peers.json"))
			if err != nil || !strings.Contains(string(b), "west/n1") || !strings.Contains(string(b), "west/n2") {
				return fmt.Errorf("%s, %v", b, err)
			}
		}
		return nil
	})
	f.kill(lab.ControlPlane, "controlplane")
	f.kill(lab.Agent, "east/n1")
	f.kill(lab.Device, "east/n1")
	f.exec("east/n1", "agent", "cleanup", "--keep-state")
	f.restart(lab.Agent, "east/n1")
	f.awaitTunnel("east/n1", "west/n1", mesh.Up)
	f.reach("east/n1/p1", "west/n1/p1")

	// Without what it kept it changes nothing and says so.
	f.kill(lab.Agent, "east/n2")
	if err := os.Remove(filepath.Join(f.Dir(), "hosts", "east/n2", "var/lib/flatmesh/peers.json")); err != nil {
		t.Fatal(err)
	}
	f.restart(lab.Agent, "east/n2")
	f.await("the agent says that it knows no peers", func() error {
		out, code := f.try("east/n2", "agent", "status")
		if code != 1 || !strings.Contains(out, "not known yet") {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	f.reach("east/n2/p1", "west/n1/p1")
	f.restart(lab.ControlPlane, "controlplane")
	f.connected()
}

// The device's process may be killed: the agent brings it back, and the peers
// find each other again.
func TestDeviceKilled(t *testing.T) {
	f := up(t, twoClusters)
	f.kill(lab.Device, "east/n1")
	f.await("the device is back", func() error {
		answer, err := f.Call(t.Context(), "east/n1/p1", f.addrs("west/n1/p1")[0], patience)
		_ = answer
		return err
	})
	f.connected()
}

// What somebody deletes by hand comes back; traffic that had no way meanwhile
// never left in plaintext.
func TestDeletedByHand(t *testing.T) {
	f := up(t, twoClusters)
	for name, argv := range map[string][]string{
		"interface": {"ip", "link", "del", "flatmesh0"},
		"rule":      {"ip", "rule", "del", "priority", "5183"},
		"route":     {"ip", "route", "flush", "table", "51830"},
		"address":   {"sh", "-c", "ip -o addr show dev flatmesh0 scope global | while read -r _ _ _ a _; do ip addr del $a dev flatmesh0; done"},
		"link down": {"ip", "link", "set", "flatmesh0", "down"},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.exec("east/n1", argv...)
			f.await("pods reach each other again", func() error {
				_, err := f.Call(t.Context(), "east/n1/p1", f.addrs("west/n1/p1")[0], patience)
				return err
			})
			f.connected()
		})
	}
}
