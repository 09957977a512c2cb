package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// controlPlanePort is that of the control plane's gRPC.
const controlPlanePort = 15012

// MeshStatus is what the lab reads of `controlplane status -o json`.
type MeshStatus struct {
	Nodes struct {
		Total      int `json:"total"`
		Registered int `json:"registered"`
	} `json:"nodes"`
	// Tunnels are directed pairs; Expected leaves out what a conflict bars.
	Tunnels struct {
		Expected int `json:"expected"`
		Up       int `json:"up"`
		Down     int `json:"down"`
		Unknown  int `json:"unknown"`
	} `json:"tunnels"`
	Conflicts []mesh.Conflict `json:"conflicts"`
	Clusters  []MeshCluster   `json:"clusters"`
	// Refused are the folders whose content the control plane does not accept.
	Refused []struct {
		Source string `json:"source"`
		Error  string `json:"error"`
	} `json:"sourceErrors"`
}

// MeshCluster is a cluster that the control plane knows.
type MeshCluster struct {
	Name string `json:"name"`
	// Objects counts the Kubernetes objects in force by kind, nodes aside; Withheld
	// are those whose removal is not in force yet.
	Objects  map[string]int `json:"objects"`
	Withheld int            `json:"withheld"`
}

// AllUp reports whether every node is registered and every tunnel up that
// should be.
func (m MeshStatus) AllUp() bool {
	return len(m.Refused) == 0 && m.Nodes.Registered == m.Nodes.Total && m.Tunnels.Up == m.Tunnels.Expected
}

// String is one line for people.
func (m MeshStatus) String() string {
	s := fmt.Sprintf("%d of %d agents registered, %d of %d tunnels up", m.Nodes.Registered, m.Nodes.Total, m.Tunnels.Up, m.Tunnels.Expected)
	for _, r := range m.Refused {
		s += fmt.Sprintf("; %s is refused: %s", r.Source, r.Error)
	}
	return s
}

// Mesh asks the control plane how the mesh is.
func (l *Lab) Mesh(ctx context.Context) (MeshStatus, error) {
	var m MeshStatus
	out, err := l.Exec(ctx, string(KindControlPlane), "controlplane", "status", "--state-dir", cpStatePath, "-o", "json")
	// Exit code 1 only says that something is not as it should be.
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 && len(out) > 0 {
		err = nil
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return m, fmt.Errorf("read the control plane's status: %w", err)
	}
	return m, nil
}

// AwaitUp waits until the control plane knows all nodes of the lab, all their
// agents have registered, all tunnels are up that should be, and all pods serve:
// those that speak mTLS wait for their certificates. It gives up with ctx, or when
// a process that should run has ended.
func (l *Lab) AwaitUp(ctx context.Context) error {
	// Each look costs two processes, on a machine that has much else to do.
	const turn = 200 * time.Millisecond
	var last string
	for tick := time.NewTicker(turn); ; {
		s, err := loadState(l.name)
		if err != nil {
			return err
		}
		if s.NoAgents {
			return nil
		}
		if err := s.checkRunning(s.hosts()); err != nil {
			return err
		}
		m, err := l.Mesh(ctx)
		now := m.String()
		if err != nil {
			now = err.Error()
		}
		if now != last && ctx.Err() == nil {
			l.log("%s", now)
			last = now
		}
		if err == nil && m.Nodes.Total == s.nodeCount() && m.AllUp() {
			if pod, err := l.notServing(); err != nil || pod == "" {
				return err
			} else if now = pod + " does not serve yet"; now != last {
				l.log("%s", now)
				last = now
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not everything came up: %s: %w", last, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// notServing returns a pod whose process runs and does not listen yet.
func (l *Lab) notServing() (string, error) {
	hosts, err := l.Hosts()
	if err != nil {
		return "", err
	}
	for _, h := range hosts {
		for _, p := range h.Processes {
			if h.Kind == KindPod && p.Name == Pod && p.Alive && !listens(p.PID, GRPCPort) {
				return h.Name, nil
			}
		}
	}
	return "", nil
}

// listens reports whether something in the process's network namespace listens on
// a TCP port (proc_net_tcp.txt of the kernel: the local address, and the state 0A).
func listens(pid int, port uint16) bool {
	want := fmt.Sprintf(":%04X ", port)
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // it has ended, or the kernel has no IPv6
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 3 && strings.HasSuffix(f[1]+" ", want) && f[3] == "0A" {
				return true
			}
		}
	}
	return false
}

func (s *state) nodeCount() int {
	n := 0
	for i := range s.Clusters {
		n += len(s.Clusters[i].Numbers)
	}
	return n
}

// checkRunning reports which processes of the hosts should run and do not, with
// their last words.
func (s *state) checkRunning(hs []Host) error {
	hs, err := s.withProcesses(hs)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hs {
		for _, p := range h.Processes {
			if !p.Alive {
				errs = append(errs, fmt.Errorf("%s in %s has ended%s", p.Name, h.Name, s.lastWords(h.Name, p.Name)))
			}
		}
	}
	return errors.Join(errs...)
}

// expected lists the processes that a host should have. A device is not among
// them: with WireGuard in the kernel there is none.
func (s *state) expected(h Host) []string {
	switch {
	case h.Kind == KindPod:
		return []string{Pod}
	case s.NoAgents:
	case h.Kind == KindNode:
		return []string{Agent}
	case h.Kind == KindControlPlane:
		return []string{ControlPlane}
	case h.Kind == KindGateway:
		return []string{Gateway}
	}
	return nil
}

// withProcesses fills in what runs in the hosts, and what should.
func (s *state) withProcesses(hs []Host) ([]Host, error) {
	names := make([]string, len(hs))
	for i, h := range hs {
		names[i] = h.Namespace
	}
	found, err := processes(names)
	if err != nil {
		return nil, err
	}
	for i := range hs {
		h := &hs[i]
		h.Processes = append(h.Processes, found[h.Namespace]...)
		for _, name := range s.expected(*h) {
			if !slices.ContainsFunc(h.Processes, func(p Process) bool { return p.Name == name }) {
				h.Processes = append(h.Processes, Process{Name: name})
			}
		}
		slices.SortFunc(h.Processes, func(a, b Process) int { return a.PID - b.PID })
	}
	return hs, nil
}

// controlPlaneFor returns the control plane's address in a family that the host
// of those addresses has.
func controlPlaneFor(host []netip.Addr) string {
	a := controlPlaneAddrs[0]
	if host[0].Is6() {
		a = controlPlaneAddrs[1]
	}
	return netip.AddrPortFrom(a, controlPlanePort).String()
}

func tokenPath(lab, cluster string) string { return filepath.Join(labDir(lab), "token", cluster) }

// makeToken has the control plane make a join token for whoever args say, and
// writes it to a file. A control plane that has just been started may need a
// moment before it can.
func (l *Lab) makeToken(ctx context.Context, s *state, path string, args ...string) error {
	args = append([]string{"controlplane", "token", "create", "--state-dir", cpStatePath}, args...)
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		out, err := l.Exec(ctx, string(KindControlPlane), args...)
		if token := bytes.TrimSpace(out); err == nil && len(token) > 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return err
			}
			return writeFile(path, append(token, '\n'))
		}
		if err := s.checkRunning([]Host{s.controlPlane()}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("make token %s: %w", path, context.Cause(ctx)), err)
		case <-tick.C:
		}
	}
}

// settle has the control plane take what was removed from a cluster's folder for
// gone. By itself it would hold back what looks like a source that lost its data.
func (l *Lab) settle(ctx context.Context, s *state, cluster string) error {
	if s.NoAgents {
		return nil
	}
	cp := s.controlPlane().Namespace
	found, err := processes([]string{cp})
	if err != nil {
		return err
	}
	if len(found[cp]) == 0 {
		l.log("the control plane does not run; when it does, run there: controlplane confirm %s", cluster)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		m, err := l.Mesh(ctx)
		i := slices.IndexFunc(m.Clusters, func(c MeshCluster) bool { return c.Name == cluster })
		if err == nil && m.Nodes.Total == s.nodeCount() && (i < 0 || s.settled(m.Clusters[i])) {
			return nil
		}
		if err == nil && i >= 0 {
			_, err = l.Exec(ctx, string(KindControlPlane), "controlplane", "confirm", cluster, "--state-dir", cpStatePath)
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the control plane still counts what was removed from %s: %s: %w", cluster, m, context.Cause(ctx)), err)
		case <-tick.C:
		}
	}
}

// settled reports whether the control plane has a cluster's services as they are
// in its folder.
func (s *state) settled(m MeshCluster) bool {
	c, err := s.cluster(m.Name)
	if err != nil {
		return false
	}
	services := 0
	for _, sv := range s.Services {
		if sv.in(c.Name) {
			services++
		}
	}
	if len(c.GatewayNumbers) > 0 {
		services++
	}
	return m.Withheld == 0 && m.Objects["Service"] == services
}
