package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The processes that Kill and Restart know.
const (
	Agent        = "agent"
	Device       = "device"
	ControlPlane = "controlplane"
	// Pod is the echo server of a pod.
	Pod = "pod"
)

// grace is how long a process has for ending by itself, and for its successor.
const grace = 10 * time.Second

// Command returns a command that will run in a host, to be started with streams
// of the caller's choice. It is killed when ctx ends.
func (l *Lab) Command(ctx context.Context, host string, argv ...string) (*exec.Cmd, error) {
	s, err := loadState(l.name)
	if err != nil {
		return nil, err
	}
	if _, err := s.host(host); err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, filepath.Join(s.Bin, "lab"), s.execArgs(host, argv)...), nil
}

func (s *state) execArgs(host string, argv []string) []string {
	return append([]string{"exec", "--name", s.Name, host, "--"}, argv...)
}

// Exec runs a command in a host and returns what it wrote to standard output.
// The error wraps *exec.ExitError where the command failed, and holds the end of
// what it wrote to standard error.
func (l *Lab) Exec(ctx context.Context, host string, argv ...string) ([]byte, error) {
	cmd, err := l.Command(ctx, host, argv...)
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// What the command leaves running may hold its streams open.
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return out, fmt.Errorf("%s in %s: %w: %s", strings.Join(argv, " "), host, err, tail(stderr.Bytes()))
	}
	return out, nil
}

// tail returns the last lines of an output, for an error message.
func tail(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}

func logPath(lab, host, process string) string {
	return filepath.Join(labDir(lab), "log", host, process+".log")
}

// start starts a process that outlives the lab command, in a session of its own,
// so that the terminal's interrupt does not reach it. It returns once the
// program runs; a pod, once it listens.
func (s *state) start(host, process string, argv ...string) error {
	path := logPath(s.Name, host, process)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.Command(filepath.Join(s.Bin, "lab"), s.execArgs(host, argv)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if process != Pod {
		cmd.Args = slices.Insert(cmd.Args, 2, "--started-fd=3")
	}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("start %s in %s: %w", process, host, err)
	}
	go func() {
		// It is reaped should it end before this process does.
		_ = cmd.Wait()
	}()
	said, err := io.ReadAll(read)
	if process == Pod && string(said) != podReady {
		err = errors.Join(errors.New("it ended before it listened"), err)
	} else if process != Pod && len(said) > 0 {
		err = errors.New(string(said))
	}
	if err != nil {
		return fmt.Errorf("start %s in %s: %w%s", process, host, err, s.lastWords(host, process))
	}
	return nil
}

// lastWords quotes the end of a process's log.
func (s *state) lastWords(host, process string) string {
	b, err := os.ReadFile(logPath(s.Name, host, process))
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return ""
	}
	return "; its last words: " + tail(b)
}

// Started takes the descriptor at whose other end start waits. Closed by exec it
// says that the program runs; failed says why it does not.
func Started(fd int) (failed func(error)) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "started")
	return func(err error) {
		fmt.Fprint(f, err)
		f.Close()
	}
}

func (s *state) startAgent(n node) error {
	argv := []string{"agent", "run", "--cluster", n.cluster.Name, "--node", n.id().Name,
		"--control-plane", controlPlaneFor(n.addrs()), "--token-file", tokenPath(s.Name, n.cluster.Name)}
	return s.start(n.id().String(), Agent, append(argv, s.AgentFlags...)...)
}

func (s *state) startControlPlane() error {
	return s.start(string(KindControlPlane), ControlPlane, "controlplane", "run",
		"--state-dir", cpStatePath, "--clusters", clustersPath, "--mesh", s.Name)
}

func (s *state) startPod(p pod) error {
	argv := []string{"meshecho", "serve", "--ready-fd=3",
		"--pod", p.name(), "--node", p.node.id().String(), "--cluster", p.node.cluster.Name,
		"--http", fmt.Sprintf(":%d", PodPort), "--grpc", fmt.Sprintf(":%d", GRPCPort)}
	if p.state().MTLS {
		argv = append(argv, "--mtls")
	}
	return s.start(p.name(), Pod, argv...)
}

// Kill ends a process at once (SIGKILL): Agent or Device of a node, Pod of a pod,
// Gateway of a gateway, or ControlPlane, whose host need not be given.
func (l *Lab) Kill(ctx context.Context, process, host string) error {
	return l.change(ctx, func(s *state) error {
		h, err := s.hostOf(process, host)
		if err != nil {
			return err
		}
		return end(ctx, h, process, unix.SIGKILL)
	})
}

// Restart ends a process (SIGTERM, then SIGKILL) and has it started again: a
// device by its agent, all others by the lab. One that does not run is started.
func (l *Lab) Restart(ctx context.Context, process, host string) error {
	return l.change(ctx, func(s *state) error {
		h, err := s.hostOf(process, host)
		if err != nil {
			return err
		}
		if err := end(ctx, h, process, unix.SIGTERM); err != nil && !errors.Is(err, errNotRunning) {
			return err
		}
		switch process {
		case ControlPlane:
			return s.startControlPlane()
		case Agent:
			n, err := s.node(h.Name)
			if err != nil {
				return err
			}
			return s.startAgent(n)
		case Pod:
			p, err := s.pod(h.Name)
			if err != nil {
				return err
			}
			return s.startPod(p)
		case Gateway:
			g, err := s.gateway(h.Name)
			if err != nil {
				return err
			}
			return s.startGateway(g)
		}
		return awaitProcess(ctx, h, process)
	})
}

// hostOf finds where a process belongs.
func (s *state) hostOf(process, host string) (Host, error) {
	var want Kind
	switch process {
	case Agent, Device:
		want = KindNode
	case Pod:
		want = KindPod
	case Gateway:
		want = KindGateway
	case ControlPlane:
		want, host = KindControlPlane, string(KindControlPlane)
	default:
		return Host{}, fmt.Errorf("process %q: want %s, %s, %s, %s or %s", process, Agent, Device, Pod, Gateway, ControlPlane)
	}
	h, err := s.host(host)
	if err != nil {
		return Host{}, err
	}
	if h.Kind != want {
		return Host{}, fmt.Errorf("%s is a %s; %s runs in a %s (see `lab ls`)", h.Name, h.Kind, process, want)
	}
	return h, nil
}

var errNotRunning = errors.New("it does not run")

// end signals a process and waits until it is gone.
func end(ctx context.Context, h Host, process string, sig unix.Signal) error {
	ts, err := signal(h.Namespace, sig, func(p Process) bool { return p.Name == process })
	if err != nil {
		return err
	}
	if len(ts) == 0 {
		return fmt.Errorf("end %s in %s: %w", process, h.Name, errNotRunning)
	}
	patience, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err = await(patience, ts); err == nil || ctx.Err() != nil || sig == unix.SIGKILL {
		return err
	}
	if err := end(ctx, h, process, unix.SIGKILL); !errors.Is(err, errNotRunning) {
		return err
	}
	return nil
}

func awaitProcess(ctx context.Context, h Host, process string) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		found, err := processes([]string{h.Namespace})
		if err != nil {
			return err
		}
		if slices.ContainsFunc(found[h.Namespace], func(p Process) bool { return p.Name == process }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no new %s appeared in %s: does its agent run?", process, h.Name)
		case <-tick.C:
		}
	}
}

// Log opens what a host's process has written since the lab began, standard
// output and error together.
func (l *Lab) Log(host, process string) (io.ReadCloser, error) {
	f, err := os.Open(logPath(l.name, host, process))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s has no process %q with a log", host, process)
	}
	return f, err
}

// Logs lists the processes of a host that have a log.
func (l *Lab) Logs(host string) ([]string, error) {
	s, err := loadState(l.name)
	if err != nil {
		return nil, err
	}
	if _, err := s.host(host); err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(logPath(l.name, host, "*"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range paths {
		names = append(names, strings.TrimSuffix(filepath.Base(p), ".log"))
	}
	return names, nil
}
