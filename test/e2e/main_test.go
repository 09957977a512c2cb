package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/internal/testenv"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/controlplane"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// patience is how long a condition may take to hold; it is no claim about how
// long it should.
const patience = 30 * time.Second

// bin is where TestMain built the commands.
var bin string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			return m.Run() // every test says that it needs root
		}
		dir, err := os.MkdirTemp("", "fm-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		build := exec.Command("go", "build", "-o", dir, "../../cmd/...", "../../hack/lab", "../../hack/meshecho")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the commands: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// fixture is a lab and what tests ask of it.
type fixture struct {
	*lab.Lab
	t *testing.T
}

var labs int

// up makes a lab of the topology and waits until all tunnels are up. It is
// removed with the test, and its logs are shown if the test failed.
func up(t *testing.T, topology string) *fixture {
	t.Helper()
	f := start(t, topology)
	f.await("all tunnels up", func() error {
		s := f.mesh()
		if s.Nodes.Registered != s.Nodes.Total || s.Nodes.Connected != s.Nodes.Total || s.Tunnels.Up != s.Tunnels.Expected {
			return fmt.Errorf("%+v %+v", s.Nodes, s.Tunnels)
		}
		return nil
	})
	return f
}

// start makes a lab and returns when its processes run.
func start(t *testing.T, topology string) *fixture {
	t.Helper()
	testenv.NeedTUN(t)
	spec, err := lab.ParseTopology("topology.yaml", []byte(topology))
	if err != nil {
		t.Fatal(err)
	}
	labs++
	l, err := lab.Up(t.Context(), spec, lab.Options{Name: fmt.Sprintf("e%d-%d", os.Getpid()%100000, labs), Bin: bin, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Lab: l, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			f.showLogs()
		}
		if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("lab down: %v", err)
		}
	})
	return f
}

func (f *fixture) showLogs() {
	hosts, err := f.Hosts()
	if err != nil {
		f.t.Log(err)
		return
	}
	for _, h := range hosts {
		if h.Kind == lab.KindGateway {
			if cmd, err := f.Command(context.WithoutCancel(f.t.Context()), h.Name, "gateway", "status", "-o", "json"); err == nil {
				out, _ := cmd.CombinedOutput() // it may well say that something is wrong
				f.t.Logf("--- %s status\n%s", h.Name, out)
			}
		}
		for _, p := range h.Processes {
			if b, err := os.ReadFile(filepath.Join(f.Dir(), "log", h.Name, p.Name+".log")); err == nil {
				lines := strings.Split(strings.TrimSpace(string(b)), "\n")
				f.t.Logf("--- %s %s\n%s", h.Name, p.Name, strings.Join(lines[max(0, len(lines)-25):], "\n"))
			}
		}
	}
}

// await waits until check returns nil.
func (f *fixture) await(what string, check func() error) {
	f.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			f.t.Fatalf("%s: still not after %v: %v", what, patience, err)
		case <-f.t.Context().Done():
			f.t.Fatalf("%s: interrupted: %v", what, err)
		case <-tick.C:
		}
	}
}

// exec runs a command in a host and returns its output, or fails the test.
func (f *fixture) exec(host string, argv ...string) string {
	f.t.Helper()
	out, err := f.Exec(f.t.Context(), host, argv...)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(out)
}

// try runs a command in a host and returns its output, stderr and all, and its
// exit code.
func (f *fixture) try(host string, argv ...string) (string, int) {
	f.t.Helper()
	cmd, err := f.Command(f.t.Context(), host, argv...)
	if err != nil {
		f.t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		f.t.Fatalf("%v in %s: %v", argv, host, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// status asks a node's agent. Exit code 1, a tunnel that is not up, is fine.
func (f *fixture) status(node string) (agent.Status, error) {
	f.t.Helper()
	var s agent.Status
	out, code := f.try(node, "agent", "status", "-o", "json")
	if code != 0 && code != 1 {
		return s, fmt.Errorf("agent status on %s: exit code %d: %s", node, code, out)
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// mesh asks the control plane.
func (f *fixture) mesh() controlplane.Status {
	f.t.Helper()
	var s controlplane.Status
	out, code := f.try("controlplane", "controlplane", "status", "-o", "json")
	if code != 0 && code != 1 {
		return controlplane.Status{Nodes: controlplane.NodeCounts{Total: -1}}
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		f.t.Fatalf("%v in %s", err, out)
	}
	return s
}

// tunnel returns what a node's agent says of one peer.
func (f *fixture) tunnel(node, peer string) (agent.PeerStatus, error) {
	s, err := f.status(node)
	if err != nil {
		return agent.PeerStatus{}, err
	}
	i := slices.IndexFunc(s.Peers, func(p agent.PeerStatus) bool { return p.Node.String() == peer })
	if i < 0 {
		return agent.PeerStatus{}, fmt.Errorf("%s has no peer %s", node, peer)
	}
	return s.Peers[i], nil
}

// awaitTunnel waits for a tunnel's state, in both agents' eyes.
func (f *fixture) awaitTunnel(a, b string, want mesh.TunnelState) {
	f.t.Helper()
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		f.await(fmt.Sprintf("tunnel %s to %s %v", pair[0], pair[1], want), func() error {
			p, err := f.tunnel(pair[0], pair[1])
			if err == nil && p.State != want {
				err = fmt.Errorf("it is %v, %s", p.State, p.Reason)
			}
			return err
		})
	}
}

// addrs returns a host's addresses.
func (f *fixture) addrs(host string) []netip.Addr {
	f.t.Helper()
	hosts, err := f.Hosts()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range hosts {
		if h.Name == host {
			return h.Addresses
		}
	}
	f.t.Fatalf("there is no host %s", host)
	return nil
}

// pods returns the names of all pods.
func (f *fixture) pods() []string {
	f.t.Helper()
	hosts, err := f.Hosts()
	if err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for _, h := range hosts {
		if h.Kind == lab.KindPod {
			out = append(out, h.Name)
		}
	}
	return out
}

// reach checks that from reaches every address of the pod to, and that the pod
// sees from's own address.
func (f *fixture) reach(from, to string) {
	f.t.Helper()
	own := f.addrs(from)
	for _, a := range f.addrs(to) {
		answer, err := f.Call(f.t.Context(), from, a, 10*time.Second)
		if err != nil {
			f.t.Errorf("%s does not reach %s at %v: %v", from, to, a, err)
			continue
		}
		if answer.Pod != to || !slices.Contains(own, answer.Caller) {
			f.t.Errorf("%s calls %v: %s answers and saw %v, want %s and one of %v", from, a, answer.Pod, answer.Caller, to, own)
		}
	}
}

// refused checks that from does not reach the pod to.
func (f *fixture) refused(from, to string) {
	f.t.Helper()
	for _, a := range f.addrs(to) {
		if answer, err := f.Call(f.t.Context(), from, a, time.Second); err == nil && answer.Pod == to {
			f.t.Errorf("%s reaches %s at %v and should not", from, to, a)
		}
	}
}
