package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// East has the agent that is measured. West is its one real peer, and its node
// is where the stand-ins run.
const idleYAML = `clusters:
  - name: east
    podCIDRs: [10.1.0.0/16]
  - name: west
    podCIDRs: [10.2.0.0/16]
`

// idle measures what an agent and its device take while nothing but probes
// happens, with many peers.
func (b *bench) idle(ctx context.Context) (t *table, err error) {
	// Longer than the agent's resync is apart, so that each window has one.
	windows, window, many := 3, 15*time.Second, 1000
	if b.quick {
		windows, window, many = 2, 3*time.Second, 200
	}
	l, down, err := b.up(ctx, "idle", idleYAML, lab.Options{Wait: time.Minute})
	if err != nil {
		return nil, err
	}
	defer down()
	m := &mass{lab: l, measured: mesh.NodeID{Cluster: "east", Name: "n1"}, windows: windows, window: window}
	stop, err := m.start(ctx, b.self)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	t = newTable("One agent with many peers, idle", "peers", "state", "agent: CPU, % of one", "agent: RSS, MiB", "device: CPU, % of one", "device: RSS, MiB", "control plane: RSS, MiB", "all so after, s")
	for _, peers := range []int{100, many} {
		progress("idle: %d peers", peers)
		began := time.Now()
		if err := m.grow(ctx, t, peers); err != nil {
			return nil, err
		}
		if err := m.row(ctx, t, peers, mesh.Up, began); err != nil {
			return nil, err
		}
		// A stopped process is a host that went away: packets to it are lost, and
		// nothing says so.
		began = time.Now()
		if err := m.signal(syscall.SIGSTOP); err != nil {
			return nil, err
		}
		err := m.row(ctx, t, peers, mesh.Down, began)
		if err := errors.Join(err, m.signal(syscall.SIGCONT)); err != nil {
			return nil, err
		}
	}
	t.note("Medians of %d windows of %v (smallest–largest); the agent and its device are the real programs, in processes of their own.", windows, window)
	t.note("One peer is another real agent. The others are stand-ins that registered as agents do and answer handshakes and echoes; Down is with the stand-ins stopped, so that every handshake with them is tried again and again.")
	t.note("\"All so after\": from the first stand-in's registration, or from the moment of stopping, until the agent judged the last tunnel.")
	return t, nil
}

// mass is a lab whose measured agent has many peers.
type mass struct {
	lab      *lab.Lab
	measured mesh.NodeID
	windows  int
	window   time.Duration

	process *os.Process
	ask     io.Writer
	answers *bufio.Scanner
}

// start starts the process of the stand-ins, with none of them yet.
func (m *mass) start(ctx context.Context, self string) (stop func() error, err error) {
	s, err := agentStatus(ctx, m.lab, m.measured)
	if err != nil {
		return nil, err
	}
	// The stand-ins' nodes share the network of the host they run on: its agent is
	// no peer of theirs.
	if err := declareStandIns(filepath.Join(m.lab.Dir(), "clusters"), 1000); err != nil {
		return nil, err
	}
	err = until(ctx, 100*time.Millisecond, time.Minute, "the control plane to read the stand-ins' nodes", func() (bool, error) {
		c, err := controlPlaneStatus(ctx, m.lab)
		return c.Nodes.Total >= 1000, err
	})
	if err != nil {
		return nil, err
	}
	token, err := m.lab.Exec(ctx, "controlplane", "controlplane", "token", "create", "--state-dir", stateDir, "--cluster", standInCluster)
	if err != nil {
		return nil, err
	}
	hosts, err := hostsOf(m.lab)
	if err != nil {
		return nil, err
	}
	own := mesh.Peer{TunnelAddrs: s.Device.TunnelAddrs, Prefixes: s.Prefixes}.AllowedIPs()
	var allowed []string
	for _, p := range own {
		allowed = append(allowed, p.String())
	}
	cmd, err := m.lab.Command(ctx, "west/n1", self, "standins", "--control-plane", s.ControlPlane.Address,
		"--token", strings.TrimSpace(string(token)), "--address", hosts["west/n1"].Addresses[0].String(),
		"--peer", hex.EncodeToString(s.Device.PublicKey[:]), "--allowed", strings.Join(allowed, ","),
		"--applied", fmt.Sprint(mesh.Digest(s.Device.PublicKey, own)))
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	m.process, m.ask, m.answers = cmd.Process, in, bufio.NewScanner(out)
	return func() error {
		killed := cmd.Process.Kill()
		_ = cmd.Wait() // that it was killed
		return killed
	}, nil
}

func (m *mass) signal(s syscall.Signal) error { return m.process.Signal(s) }

// grow has stand-ins registered until the agent has a number of peers, of which
// one is real.
func (m *mass) grow(ctx context.Context, t *table, peers int) error {
	pids, err := m.processes()
	if err != nil {
		return err
	}
	before, err := usage(pids)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := fmt.Fprintln(m.ask, peers-1); err != nil {
		return err
	}
	if !m.answers.Scan() {
		return errors.Join(ctx.Err(), errors.New("the stand-ins ended; see above why"))
	}
	took := time.Since(began)
	after, err := usage(pids)
	if err != nil {
		return err
	}
	used := func(name string) float64 { return (after[name] - before[name]).Seconds() }
	t.note("While stand-ins registered one after another, in %.0f s, until there were %d peers, the agent used %.1f s of CPU, its device %.1f s, the control plane %.1f s.",
		took.Seconds(), peers, used(lab.Agent), used(lab.Device), used(lab.ControlPlane))
	return nil
}

// processes are those that are watched, by name.
func (m *mass) processes() (map[string][]int, error) {
	hosts, err := hostsOf(m.lab)
	if err != nil {
		return nil, err
	}
	pids := map[string][]int{}
	for _, host := range []string{m.measured.String(), "controlplane"} {
		for _, p := range hosts[host].Processes {
			if p.Alive {
				pids[p.Name] = append(pids[p.Name], p.PID)
			}
		}
	}
	return pids, nil
}

// row waits until all stand-ins are in a state, and measures.
func (m *mass) row(ctx context.Context, t *table, peers int, state mesh.TunnelState, began time.Time) error {
	var last time.Time
	err := until(ctx, 500*time.Millisecond, 2*time.Minute, fmt.Sprintf("%d tunnels to be %v", peers-1, state), func() (bool, error) {
		s, err := agentStatus(ctx, m.lab, m.measured)
		if err != nil {
			return false, err
		}
		var n int
		n, last = inState(s, state)
		if n < peers-1 {
			return false, fmt.Errorf("%d are so, of %d", n, len(s.Peers))
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	// What changed has been reported and applied by then.
	if err := pause(ctx, settledFor); err != nil {
		return err
	}
	pids, err := m.processes()
	if err != nil {
		return err
	}
	used := map[string]series{}
	for range m.windows {
		if err := window(ctx, pids, m.window, func(name string, percent float64) { used[name] = append(used[name], percent) }); err != nil {
			return err
		}
	}
	cells := []string{fmt.Sprint(peers), state.String()}
	for _, name := range []string{lab.Agent, lab.Device, lab.ControlPlane} {
		rss, err := rssOf(pids[name])
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%d peers %v; %s", peers, state, name)
		if name != lab.ControlPlane {
			cells = append(cells, t.sample(what+" cpu %", used[name]).spread("%.1f"))
		}
		cells = append(cells, t.sample(what+" rss", rss).spread("%.0f"))
	}
	t.row(append(cells, fmt.Sprintf("%.1f", last.Sub(began).Seconds()))...)
	return nil
}

// inState counts the stand-ins in a state, and says when the last one got there.
func inState(s agent.Status, state mesh.TunnelState) (n int, last time.Time) {
	for _, p := range s.Peers {
		if p.Node.Cluster == standInCluster && p.State == state {
			n++
			if p.Since.After(last) {
				last = p.Since
			}
		}
	}
	return n, last
}

// declareStandIns writes the folder of the stand-ins' cluster.
func declareStandIns(clusters string, count int) error {
	dir := filepath.Join(clusters, standInCluster)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var b bytes.Buffer
	for i := range count {
		// With no address of its own: where a stand-in is, it says when it registers.
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: %s\nspec:\n  podCIDRs: [10.%d.%d.0/24]\n", standInNode(i).Name, 32+i>>8, i&255)
	}
	// The nodes first: a cluster that shows itself with none would be held to have
	// lost them all.
	if err := os.WriteFile(filepath.Join(dir, "nodes.yaml"), b.Bytes(), 0o600); err != nil {
		return err
	}
	const declaration = "name: " + standInCluster + "\nnetwork: west\npodCIDRs: [10.32.0.0/13]\nnodeCIDRs: [100.80.0.0/16]\n"
	return os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(declaration), 0o600)
}
