package nstest

import (
	"bytes"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a child process on a Host.
type Process struct {
	Cmd *exec.Cmd

	out  syncBuffer
	done chan struct{}
	err  error // written before done is closed
}

// Start runs a command on the host: in its network and among its mounts. It is
// killed when the test ends, or when the test process does.
func (h *Host) Start(t testing.TB, argv ...string) *Process {
	t.Helper()
	return h.StartCmd(t, exec.Command(argv[0], argv[1:]...))
}

// StartCmd is Start for a command that needs an environment or files of its
// own. Where Stdout and Stderr are nil, Output has both.
func (h *Host) StartCmd(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.out
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// Sent when the thread that forked ends; the host's thread ends with it.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := h.Do(cmd.Start); err != nil {
		t.Fatalf("%s: start %q: %v", h.Name, cmd.Args, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s: output of %q:\n%s", h.Name, cmd.Args, p.Output())
		}
	})
	return p
}

// Run runs a command on the host to its end and returns what it printed.
func (h *Host) Run(t testing.TB, argv ...string) (string, error) {
	t.Helper()
	p := h.Start(t, argv...)
	err := p.Wait()
	return p.Output(), err
}

// Kill kills the process as kill -9 does and waits for its end. It may have
// ended before.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // fails only where it has ended
	<-p.done
}

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) error { return p.Cmd.Process.Signal(s) }

// Wait waits for the end of the process and returns how it ended, as
// exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output returns what the process has printed so far.
func (p *Process) Output() string { return p.out.String() }

// Eventually waits until cond returns nil, and ends the test with its last
// error when that takes absurdly long.
func Eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(60 * time.Second)
	defer limit.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, err)
		case <-limit.C:
			t.Fatalf("%s: waited for a minute: %v", what, err)
		}
	}
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
