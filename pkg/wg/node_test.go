package wg_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/rpc"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
	"github.com/flatmesh/flatmesh/internal/testenv"
	"github.com/flatmesh/flatmesh/pkg/wg"
	"github.com/flatmesh/flatmesh/pkg/wg/userspace"
)

// The tests of real devices run as in production: a process that stands for the
// agent holds the wg.Device, and starts the userspace device in a process of
// its own. Both are this test binary again, on a host of its own, and the test
// calls the first by net/rpc over its standard input and output.
const (
	roleEnv    = "FLATMESH_WG_TEST_ROLE"
	deviceName = "fmwg0"
	deviceMTU  = 1420
	patience   = 30 * time.Second
)

func TestMain(m *testing.M) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	switch os.Getenv(roleEnv) {
	case "agent":
		err = serveAgent(log)
	case "device":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = userspace.Run(ctx, userspace.Options{
			Name: os.Args[1], MTU: deviceMTU,
			Ready: func() { fmt.Fprintln(os.Stderr, "READY") },
		}, log)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return cmd
}

// Agent is the process that holds the device.
type Agent struct {
	log    *slog.Logger
	device *wg.Device
	child  *exec.Cmd
}

func serveAgent(log *slog.Logger) error {
	server := rpc.NewServer()
	if err := server.Register(&Agent{log: log}); err != nil {
		return err
	}
	server.ServeConn(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout})
	return nil
}

// Reply carries an error with what the caller would ask of it.
type Reply struct {
	Err         string
	Gone, InUse bool
	Actual      wg.Actual
	Ops         []string
	Text        string
}

func (r *Reply) fail(err error) {
	if err != nil {
		r.Err, r.Gone, r.InUse = err.Error(), errors.Is(err, wg.ErrGone), errors.Is(err, unix.EADDRINUSE)
	}
}

// OpenArgs are those of wg.Options that a test varies.
type OpenArgs struct {
	Mode    wg.Mode
	MTU     int
	NoSpawn bool
}

func (a *Agent) Open(o OpenArgs, r *Reply) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	options := wg.Options{Name: deviceName, MTU: o.MTU, Mode: o.Mode}
	if !o.NoSpawn {
		options.Spawn = func(context.Context) error { return a.spawn(cancel) }
	}
	device, err := wg.Open(ctx, options)
	r.fail(err)
	if err == nil {
		a.device, r.Text = device, device.Kind().String()
	}
	return nil
}

func (a *Agent) spawn(cancel context.CancelCauseFunc) error {
	a.child = self("device", deviceName)
	var out strings.Builder // read after Wait only
	a.child.Stderr = io.MultiWriter(os.Stderr, &out)
	a.child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // a goroutine of its own keeps Pdeathsig's thread for as long as the child lives
		runtime.LockOSThread()
		err := a.child.Start()
		started <- err
		if err == nil {
			err = a.child.Wait()
			cancel(fmt.Errorf("the device process ended: %v: %s", err, lastLine(out.String())))
		}
	}()
	return <-started
}

func (a *Agent) KillDevice(_ struct{}, r *Reply) error {
	r.fail(a.child.Process.Kill())
	return nil
}

func (a *Agent) StopDevice(s syscall.Signal, r *Reply) error {
	r.fail(a.child.Process.Signal(s))
	return nil
}

func (a *Agent) DevicePID(_ struct{}, r *Reply) error {
	r.Text = strconv.Itoa(a.child.Process.Pid)
	return nil
}

func (a *Agent) Observe(timeout time.Duration, r *Reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var err error
	r.Actual, err = a.device.Observe(ctx)
	r.fail(err)
	return nil
}

// Reconcile is one pass of the agent's loop.
func (a *Agent) Reconcile(d wg.Desired, r *Reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := d.Validate(); err != nil {
		r.fail(err)
		return nil
	}
	if err := a.device.EnsureLink(); err != nil {
		r.fail(err)
		return nil
	}
	actual, err := a.device.Observe(ctx)
	if err != nil {
		r.fail(err)
		return nil
	}
	ops := wg.Diff(actual, d)
	for _, op := range ops {
		r.Ops = append(r.Ops, op.String())
		a.log.Debug("apply", "op", op)
	}
	a.log.Debug("desired", "desired", d)
	r.fail(a.device.Apply(ctx, ops))
	return nil
}

// ApplyOps applies operations as they are.
func (a *Agent) ApplyOps(ops []wg.Op, r *Reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.fail(a.device.Apply(ctx, ops))
	return nil
}

func (a *Agent) Remove(_ struct{}, r *Reply) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.fail(wg.Remove(ctx, deviceName))
	return nil
}

// node is a host with an agent, seen from the test.
type node struct {
	*nstest.Host
	agent  *nstest.Process
	client *rpc.Client
}

func newNode(t *testing.T, name string) *node {
	t.Helper()
	testenv.NeedTUN(t)
	n := &node{Host: nstest.New(t, name)}
	n.startAgent(t)
	return n
}

func (n *node) startAgent(t *testing.T) {
	t.Helper()
	cmd := self("agent")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.agent = n.StartCmd(t, cmd)
	n.client = rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in})
	t.Cleanup(func() { _ = n.client.Close() })
}

// call calls the agent and ends the test where that itself fails.
func (n *node) call(t *testing.T, method string, arg any) Reply {
	t.Helper()
	var r Reply
	if err := n.client.Call("Agent."+method, arg, &r); err != nil {
		t.Fatalf("%s: %s: %v\n%s", n.Name, method, err, n.agent.Output())
	}
	return r
}

// must calls the agent and ends the test on any error.
func (n *node) must(t *testing.T, method string, arg any) Reply {
	t.Helper()
	r := n.call(t, method, arg)
	if r.Err != "" {
		t.Fatalf("%s: %s: %s\n%s", n.Name, method, r.Err, n.agent.Output())
	}
	return r
}

func (n *node) open(t *testing.T) {
	t.Helper()
	n.must(t, "Open", OpenArgs{Mode: wg.ModeUserspace, MTU: deviceMTU})
}

// settle reconciles once and checks that nothing is left to do.
func (n *node) settle(t *testing.T, d wg.Desired) []string {
	t.Helper()
	ops := n.must(t, "Reconcile", d).Ops
	if rest := n.must(t, "Reconcile", d).Ops; len(rest) > 0 {
		t.Fatalf("%s: not settled after\n %v\nleft\n %v", n.Name, ops, rest)
	}
	return ops
}

func lastLine(s string) string {
	lines := slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return l == "" })
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}
