package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/internal/testenv"
)

// pids returns those of a host's processes of that name.
func pids(t *testing.T, l *Lab, host, process string) []int {
	t.Helper()
	hosts, err := l.Hosts()
	must(t, err)
	var found []int
	for _, h := range hosts {
		for _, p := range h.Processes {
			if h.Name == host && p.Name == process && p.Alive {
				found = append(found, p.PID)
			}
		}
	}
	return found
}

func TestKillAndRestart(t *testing.T) {
	l := up(t, twoClusters, Options{Wait: time.Minute, AgentFlags: []string{"--flag", "value"}})
	ctx := t.Context()
	must(t, awaitProcess(ctx, Host{Name: "east/n1", Namespace: namespaces(l.Name()) + "node.east.n1"}, Device))
	flagged := func() {
		t.Helper()
		for _, pid := range pids(t, l, "east/n1", Agent) {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if must(t, err); !strings.HasSuffix(string(line), "\x00--flag\x00value\x00") {
				t.Errorf("the agent runs as %q", line)
			}
		}
	}
	flagged()
	agent, device, other := pids(t, l, "east/n1", Agent), pids(t, l, "east/n1", Device), pids(t, l, "east/n2", Agent)
	if len(agent) != 1 || len(device) != 1 || len(other) != 1 {
		t.Fatal(agent, device, other)
	}

	must(t, l.Kill(ctx, Agent, "east/n1"))
	if err := l.Kill(ctx, Agent, "east/n1"); !errors.Is(err, errNotRunning) {
		t.Errorf("killed twice: %v", err)
	}
	if st, err := l.Status(ctx); err != nil || st.OK() || !slices.Equal(st.Missing, []string{"east/n1 agent"}) {
		t.Errorf("status: %+v, %v", st, err)
	}
	must(t, l.Restart(ctx, Agent, "east/n1"))
	if now := pids(t, l, "east/n1", Agent); len(now) != 1 || now[0] == agent[0] {
		t.Errorf("agent %v after %v", now, agent)
	}
	flagged()
	if now := pids(t, l, "east/n1", Device); !slices.Equal(now, device) {
		t.Errorf("the device went with its agent: %v after %v", now, device)
	}
	if now := pids(t, l, "east/n2", Agent); !slices.Equal(now, other) {
		t.Errorf("another agent: %v after %v", now, other)
	}

	device = pids(t, l, "west/n1", Device)
	must(t, l.Restart(ctx, Device, "west/n1"))
	if now := pids(t, l, "west/n1", Device); len(now) != 1 || slices.Equal(now, device) {
		t.Errorf("device %v after %v", now, device)
	}

	cp := pids(t, l, "controlplane", ControlPlane)
	must(t, l.Kill(ctx, ControlPlane, ""))
	if st, err := l.Status(ctx); err != nil || st.MeshError == "" {
		t.Errorf("status: %+v, %v", st, err)
	}
	must(t, l.Restart(ctx, ControlPlane, ""))
	if now := pids(t, l, "controlplane", ControlPlane); len(now) != 1 || slices.Equal(now, cp) {
		t.Errorf("control plane %v after %v", now, cp)
	}
	must(t, l.AwaitUp(ctx))
	for _, bad := range [][2]string{{Agent, "east/n1/p1"}, {Agent, "core"}, {Pod, "east/n1"}, {Gateway, "east/n1"}, {"echo", "east/n1/p1"}, {Agent, "east/n9"}} {
		if err := l.Kill(ctx, bad[0], bad[1]); err == nil {
			t.Errorf("killed %v", bad)
		}
	}
}

func TestUpFails(t *testing.T) {
	testenv.NeedTUN(t)
	t.Run("an agent ends", func(t *testing.T) {
		t.Setenv("FAKE_AGENT_FAILS", "1")
		name := testName("")
		_, err := Up(t.Context(), parse(t, twoClusters), Options{Name: name, Bin: bin, Log: t.Logf, Wait: time.Minute})
		if err == nil || !strings.Contains(err.Error(), "no luck today") {
			t.Errorf("got %v", err)
		}
		nothingLeft(t, name)
	})
	t.Run("not in time", func(t *testing.T) {
		t.Setenv("FAKE_NEVER_UP", "1")
		name := testName("")
		_, err := Up(t.Context(), parse(t, twoClusters), Options{Name: name, Bin: bin, Log: t.Logf, Wait: time.Second})
		if err == nil || !strings.Contains(err.Error(), "3 of 4 agents") || !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "after 1s") {
			t.Errorf("got %v", err)
		}
		nothingLeft(t, name)
	})
	t.Run("kept", func(t *testing.T) {
		t.Setenv("FAKE_NEVER_UP", "1")
		name := testName("")
		l, err := Up(t.Context(), parse(t, twoClusters), Options{Name: name, Bin: bin, Log: t.Logf, Wait: time.Second, Keep: true})
		if err == nil || l == nil {
			t.Fatal(l, err)
		}
		answers(t, l, "east/n1", "10.1.0.2")
		must(t, l.Down(t.Context()))
		nothingLeft(t, name)
	})
	t.Run("no programs", func(t *testing.T) {
		_, err := Up(t.Context(), parse(t, twoClusters), Options{Name: testName(""), Bin: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), "controlplane") {
			t.Errorf("got %v", err)
		}
		nothingLeft(t, testName(""))
	})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			name := testName("")
			file := filepath.Join(t.TempDir(), "lab.yaml")
			must(t, os.WriteFile(file, []byte(twoClusters), 0o600))
			cmd := exec.Command(filepath.Join(bin, "lab"), "up", "-f", file, "--name", name, "--wait", "10m")
			cmd.Env = append(os.Environ(), "FAKE_NEVER_UP=1")
			stderr, err := cmd.StderrPipe()
			must(t, err)
			must(t, cmd.Start())
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.Contains(lines.Text(), "agents registered") {
			}
			must(t, cmd.Process.Signal(sig))
			for lines.Scan() {
				t.Log(lines.Text())
			}
			err = cmd.Wait()
			if sig != syscall.SIGKILL {
				if cmd.ProcessState.ExitCode() != 2 {
					t.Errorf("exit: %v", err)
				}
			} else if out, err := exec.Command(filepath.Join(bin, "lab"), "down", "--name", name).CombinedOutput(); err != nil {
				t.Errorf("down: %v: %s", err, out)
			}
			nothingLeft(t, name)
		})
	}
}

// What a killed command has left goes, whatever state the records are in.
func TestDownWithoutRecords(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"no state":     func(dir string) error { return os.Remove(filepath.Join(dir, "state.json")) },
		"half a state": func(dir string) error { return os.WriteFile(filepath.Join(dir, "state.json"), []byte(`{"na`), 0o600) },
		"no folder":    os.RemoveAll,
		"half a host": func(string) error {
			return os.WriteFile(filepath.Join(netnsDir, namespaces(testName(""))+"node.x.n1"), nil, 0o400)
		},
		"nothing amiss":  func(string) error { return nil },
		"a stopped down": func(string) error { return deleteNamespace(namespaces(testName("")) + "core") },
	} {
		t.Run(name, func(t *testing.T) {
			l := up(t, twoClusters, Options{})
			// A process that left its session and its parent.
			_, err := l.Exec(t.Context(), "east/n1", "sh", "-c", "setsid --fork sh -c \"trap '' TERM; sleep 1000 & wait\" >/dev/null 2>&1")
			must(t, err)
			must(t, spoil(l.Dir()))
			r, err := Down(t.Context(), l.Name())
			if err != nil || r.Processes < 11 {
				t.Errorf("%+v, %v", r, err)
			}
			nothingLeft(t, l.Name())
			if r, err := Down(t.Context(), l.Name()); err != nil || r != (Removed{}) {
				t.Errorf("down twice: %+v, %v", r, err)
			}
		})
	}
}

// Commands at the same time do their work one after the other.
func TestAtOnce(t *testing.T) {
	l := up(t, twoClusters, Options{NoAgents: true})
	errs := make(chan error)
	const n = 4
	for range n {
		go func() {
			_, err := l.AddNode(t.Context(), "east")
			errs <- err
		}()
		go func() { errs <- l.Cut(t.Context(), "east/n1", "west/n1", false) }()
	}
	for range 2 * n {
		must(t, <-errs)
	}
	hosts, err := l.Hosts()
	must(t, err)
	if got := len(hosts); got != 12+2*n {
		t.Errorf("%d hosts", got)
	}
	if cuts, err := l.Cuts(); err != nil || len(cuts) != 2 {
		t.Errorf("cuts: %v, %v", cuts, err)
	}
}
