package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/flatmesh/flatmesh/internal/testenv"
)

// bin holds lab and meshecho, and the fakes of agent, controlplane and gateway.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() == 0 {
			var err error
			if bin, err = os.MkdirTemp("", "fm-lab-bin-"); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(bin)
			sweep()
			for _, b := range [][]string{
				{"lab", "../../hack/lab"}, {"meshecho", "../../hack/meshecho"},
				{"agent", "./testdata/fake"}, {"controlplane", "./testdata/fake"}, {"gateway", "./testdata/fake"},
			} {
				if out, err := exec.Command("go", "build", "-o", filepath.Join(bin, b[0]), b[1]).CombinedOutput(); err != nil {
					fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b[0], err, out)
					return 1
				}
			}
		}
		return m.Run()
	}())
}

// sweep ends the labs of earlier runs that were killed.
func sweep() {
	names, _ := Names()
	for _, n := range names {
		var pid int
		if _, err := fmt.Sscanf(n, "t%d", &pid); err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		if _, err := Down(context.Background(), n); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func parse(t *testing.T, yaml string) Topology {
	t.Helper()
	topology, err := ParseTopology("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

func testName(suffix string) string { return fmt.Sprintf("t%d%s", os.Getpid(), suffix) }

// up makes a lab that goes with the test.
func up(t *testing.T, yaml string, o Options) *Lab {
	t.Helper()
	testenv.NeedTUN(t)
	if o.Name == "" {
		o.Name = testName("")
	}
	o.Bin, o.Log = bin, t.Logf
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		nothingLeft(t, o.Name)
	})
	t.Cleanup(func() {
		if _, err := Down(context.WithoutCancel(t.Context()), o.Name); err != nil {
			t.Error(err)
		}
	})
	l, err := Up(t.Context(), parse(t, yaml), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// nothingLeft checks the machine itself for what belongs to the lab.
func nothingLeft(t *testing.T, name string) {
	t.Helper()
	if ns, err := namespacesOf(name); err != nil || len(ns) > 0 {
		t.Errorf("namespaces remain: %v, %v", ns, err)
	}
	if _, err := os.Stat(labDir(name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s remains: %v", labDir(name), err)
	}
	// A process of the lab would have its name in its environment.
	envs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range envs {
		b, err := os.ReadFile(f)
		if err == nil && slices.ContainsFunc(bytes.Split(b, []byte{0}), func(e []byte) bool { return string(e) == "FLATMESH_LAB="+name }) {
			t.Errorf("process %s remains", filepath.Dir(f))
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answers has a host call a pod, and returns the answer.
func answers(t *testing.T, l *Lab, from, to string) Answer {
	t.Helper()
	a, err := l.Call(t.Context(), from, netip.MustParseAddr(to), 5*time.Second)
	must(t, err)
	return a
}

// silent checks that a pod is out of reach.
func silent(t *testing.T, l *Lab, from, to string) {
	t.Helper()
	if a, err := l.Call(t.Context(), from, netip.MustParseAddr(to), 200*time.Millisecond); err == nil {
		t.Errorf("%s got an answer from %v: %+v", from, to, a)
	}
}

// udp opens a UDP socket in a host.
func udp(t *testing.T, l *Lab, host string, at string) net.PacketConn {
	t.Helper()
	s, err := loadState(l.Name())
	must(t, err)
	h, err := s.host(host)
	must(t, err)
	ns, err := netns.GetFromName(h.Namespace)
	must(t, err)
	defer ns.Close()
	var c net.PacketConn
	must(t, onThread(func() (err error) {
		if err := netns.Set(ns); err != nil {
			return err
		}
		c, err = net.ListenPacket("udp", at)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c
}

func send(t *testing.T, c net.PacketConn, to net.Addr, text string) {
	t.Helper()
	_, err := c.WriteTo([]byte(text), to)
	must(t, err)
}

// receive returns the sender of the next packet, which must be the text. What
// was sent before it and dropped would have arrived before it.
func receive(t *testing.T, c net.PacketConn, want string) net.Addr {
	t.Helper()
	b := make([]byte, 2000)
	n, from, err := c.ReadFrom(b)
	must(t, err)
	if string(b[:n]) != want {
		t.Fatalf("received %q, want %q", b[:n], want)
	}
	return from
}

const twoClusters = `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16, "fd00:1::/48"], nodes: 2}
  - {name: west, podCIDRs: [10.2.0.0/16, "fd00:2::/48"], nodes: 2}
`

func TestReach(t *testing.T) {
	l := up(t, `
clusters:
  - {name: east, network: coast, podCIDRs: [10.1.0.0/16, "fd00:1::/48"], nodes: 2, podsPerNode: 2}
  - {name: north, network: coast, podCIDRs: [10.3.0.0/16]}
  - {name: west, podCIDRs: [10.2.0.0/16, "fd00:2::/48"]}
  - {name: twin, podCIDRs: [10.2.0.0/16]}
`, Options{NoAgents: true})
	for _, c := range []struct{ from, to, caller, pod string }{
		{"east/n1/p1", "10.1.0.3", "10.1.0.2", "east/n1/p2"},
		{"east/n1/p2", "10.1.1.2", "10.1.0.3", "east/n2/p1"},
		{"east/n1/p1", "fd00:1:0:1::3", "fd00:1::2", "east/n2/p2"},
		{"east/n1/p1", "10.3.0.2", "10.1.0.2", "north/n1/p1"}, // the same network
		{"east/n1", "10.1.1.2", "100.65.0.1", "east/n2/p1"},
		{"west/n1", "10.2.0.2", "100.67.0.1", "west/n1/p1"},
		{"twin/n1", "10.2.0.2", "100.68.0.1", "twin/n1/p1"}, // the same address
	} {
		want := Answer{Pod: c.pod, Node: filepath.Dir(c.pod), Cluster: filepath.Dir(filepath.Dir(c.pod)), Caller: netip.MustParseAddr(c.caller)}
		if got := answers(t, l, c.from, c.to); got != want {
			t.Errorf("%s calls %s: %+v, want %+v", c.from, c.to, got, want)
		}
	}
	silent(t, l, "east/n1/p1", "10.2.0.2")
	silent(t, l, "east/n1/p1", "fd00:2::2")
	silent(t, l, "east/n1", "10.2.0.2")

	for _, at := range []string{"100.67.0.1", "fd00:100:3::1"} {
		to := udp(t, l, "west/n1", net.JoinHostPort(at, "0"))
		from := udp(t, l, "east/n2", ":0")
		send(t, from, to.LocalAddr(), "hello")
		send(t, to, receive(t, to, "hello"), "hello back")
		receive(t, from, "hello back")
	}
}

func TestCut(t *testing.T) {
	l := up(t, twoClusters, Options{NoAgents: true})
	for _, addrs := range [][2]string{{"100.65.0.1:7000", "100.66.0.2:7000"}, {"[fd00:100:1::1]:7000", "[fd00:100:2::2]:7000"}} {
		a, b := udp(t, l, "east/n1", addrs[0]), udp(t, l, "west/n2", addrs[1])
		other := udp(t, l, "east/n2", ":0")

		must(t, l.Cut(t.Context(), "east/n1", "west/n2", false))
		must(t, l.Cut(t.Context(), "west/n2", "east/n1", false))
		send(t, a, b.LocalAddr(), "cut")
		send(t, b, a.LocalAddr(), "cut")
		send(t, other, b.LocalAddr(), "other")
		receive(t, b, "other")
		must(t, l.Heal(t.Context(), "east/n1", "west/n2", true))
		send(t, b, a.LocalAddr(), "still cut")
		send(t, a, b.LocalAddr(), "healed")
		receive(t, b, "healed")
		must(t, l.Heal(t.Context(), "east/n1", "west/n2", false))
		send(t, b, a.LocalAddr(), "healed too")
		receive(t, a, "healed too")

		must(t, l.Cut(t.Context(), "west/n2", "east/n1", true))
		if cuts, err := l.Cuts(); err != nil || !slices.Equal(cuts, []Direction{{"west/n2", "east/n1"}}) {
			t.Errorf("cuts: %v, %v", cuts, err)
		}
		send(t, b, a.LocalAddr(), "cut")
		send(t, a, b.LocalAddr(), "one way")
		receive(t, b, "one way")
		must(t, l.Heal(t.Context(), "west/n2", "east/n1", false))
		send(t, b, a.LocalAddr(), "healed")
		receive(t, a, "healed")
		a.Close()
		b.Close()
	}
	// Two nodes of one router, and TCP between nodes that are cut.
	must(t, l.Cut(t.Context(), "east/n1", "east/n2", false))
	answers(t, l, "east/n1", "10.1.1.2")
	a, b := udp(t, l, "east/n1", "100.65.0.1:7000"), udp(t, l, "east/n2", "100.65.0.2:7000")
	send(t, a, b.LocalAddr(), "cut")

	// A node that goes takes its cuts along.
	must(t, l.Cut(t.Context(), "west/n1", "east/n2", false))
	must(t, l.RemoveNode(t.Context(), "west/n1"))
	if cuts, err := l.Cuts(); err != nil || len(cuts) != 2 {
		t.Errorf("cuts: %v, %v", cuts, err)
	}
	must(t, l.Heal(t.Context(), "east/n1", "east/n2", false))
	send(t, a, b.LocalAddr(), "healed")
	receive(t, b, "healed")
	if err := l.Cut(t.Context(), "east/n1", "east/n9", false); err == nil {
		t.Error("cut from a node that is not there")
	}
}

func TestNAT(t *testing.T) {
	l := up(t, `
clusters:
  - {name: home, podCIDRs: [10.1.0.0/16], nat: true, mtu: 1400}
  - {name: west, podCIDRs: [10.2.0.0/16]}
  - {name: office, podCIDRs: [10.3.0.0/16], nat: true}
`, Options{NoAgents: true})
	inside, outside := udp(t, l, "home/n1", "100.65.0.1:7000"), udp(t, l, "west/n1", "100.66.0.1:7000")

	send(t, outside, inside.LocalAddr(), "unasked") // has no route, or is dropped
	send(t, inside, outside.LocalAddr(), "hello")
	seen := receive(t, outside, "hello")
	if got := seen.(*net.UDPAddr).AddrPort().Addr().Unmap(); got != routerAddrs(1)[0] {
		t.Errorf("west sees %v, want the router's %v", got, routerAddrs(1)[0])
	}
	send(t, outside, seen, "hello back")
	receive(t, inside, "hello back")

	for _, pair := range [][2]string{{"home/n1", "west/n1"}, {"west/n1", "home/n1"}} {
		must(t, l.Cut(t.Context(), pair[0], pair[1], false))
		send(t, inside, outside.LocalAddr(), "cut")
		send(t, outside, seen, "cut")
		must(t, l.Heal(t.Context(), pair[1], pair[0], false))
		send(t, inside, outside.LocalAddr(), "healed")
		send(t, outside, receive(t, outside, "healed"), "healed back")
		receive(t, inside, "healed back")
	}
	if err := l.Cut(t.Context(), "home/n1", "office/n1", false); err == nil || !strings.Contains(err.Error(), "behind a NAT") {
		t.Errorf("cut between two NATs: %v", err)
	}

	for host, want := range map[string]int{"home/n1": 1400, "home/n1/p1": 1400, "west/n1": 1500} {
		out, err := l.Exec(t.Context(), host, "cat", "/sys/class/net/eth0/mtu")
		if got := strings.TrimSpace(string(out)); err != nil || got != fmt.Sprint(want) {
			t.Errorf("MTU of %s: %s, %v; want %d", host, got, err, want)
		}
	}
}

func TestExec(t *testing.T) {
	l := up(t, twoClusters, Options{NoAgents: true})
	ctx := t.Context()

	cmd, err := l.Command(ctx, "east/n1", "sh", "-c", "cat; echo $LAB_HOST >&2; exit 7")
	must(t, err)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("in"), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 7 || stdout.String() != "in" || stderr.String() != "east/n1\n" {
		t.Errorf("%v, stdout %q, stderr %q", err, &stdout, &stderr)
	}

	cmd, err = l.Command(ctx, "east/n1", "sh", "-c", "echo ready; exec sleep 1000")
	must(t, err)
	ready, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := ready.Read(make([]byte, 8)); err != nil {
		t.Error(err)
	}
	must(t, cmd.Process.Signal(syscall.SIGUSR1))
	if err := cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGUSR1 {
		t.Errorf("a signal did not reach the command: %v", err)
	}

	// A host's processes share its folders; hosts do not.
	for _, dir := range mountPoints {
		_, err = l.Exec(ctx, "east/n1", "sh", "-c", "echo mine > "+dir+"/file")
		must(t, err)
		if out, err := l.Exec(ctx, "east/n1", "cat", dir+"/file"); err != nil || string(out) != "mine\n" {
			t.Errorf("%s: %q, %v", dir, out, err)
		}
		if out, err := l.Exec(ctx, "east/n2", "cat", dir+"/file"); err == nil {
			t.Errorf("%s of another host: %q", dir, out)
		}
		if _, err := os.Stat(dir + "/file"); err == nil {
			t.Errorf("%s of the machine has it too", dir)
		}
	}
	if out, err := l.Exec(ctx, "east/n1", "ls", "/sys/class/net"); err != nil || string(out) != "eth0\nlo\np1\n" {
		t.Errorf("links: %q, %v", out, err)
	}
	if _, err := l.Exec(ctx, "east/n7", "true"); err == nil || !strings.Contains(err.Error(), "no host") {
		t.Errorf("a host that is not there: %v", err)
	}
	if _, err := l.Exec(ctx, "east/n1", "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestSideBySide(t *testing.T) {
	a := up(t, twoClusters, Options{NoAgents: true, Name: testName("")})
	b := up(t, twoClusters, Options{NoAgents: true, Name: testName("-b")})
	must(t, a.Cut(t.Context(), "east/n1", "east/n2", false))
	if cuts, err := b.Cuts(); err != nil || len(cuts) > 0 {
		t.Errorf("a cut in the other lab: %v, %v", cuts, err)
	}
	if _, err := Up(t.Context(), parse(t, twoClusters), Options{Name: a.Name(), Bin: bin, NoAgents: true}); err == nil || !strings.Contains(err.Error(), "lab down") {
		t.Errorf("a second lab of the same name: %v", err)
	}
	must(t, a.Down(t.Context()))
	nothingLeft(t, a.Name())
	answers(t, b, "east/n1/p1", "10.1.1.2")
	if names, err := Names(); err != nil || !slices.Contains(names, b.Name()) || slices.Contains(names, a.Name()) {
		t.Errorf("labs: %v, %v", names, err)
	}
}
