package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process in a host.
type Process struct {
	// Name is agent, device, controlplane, gateway or pod; else the name of the
	// program.
	Name string `json:"name"`
	// PID is 0 for a process that should run and does not.
	PID   int  `json:"pid"`
	Alive bool `json:"alive"`
}

// nsID identifies a network namespace, see namespaces(7).
type nsID struct{ dev, ino uint64 }

func idOf(path string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, err
	}
	return nsID{st.Dev, st.Ino}, nil
}

// processes finds the processes in the named network namespaces. It looks at
// the machine, not at what was noted: the device outlives its agent, and agents
// may outlive a lab command that was killed.
func processes(namespaces []string) (map[string][]Process, error) {
	names := map[nsID]string{}
	for _, n := range namespaces {
		id, err := idOf(filepath.Join(netnsDir, n))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stat namespace %s: %w", n, err)
		}
		names[id] = n
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	entries, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	found := map[string][]Process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e)
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that is gone, or has ended and was not waited for, is in no
		// namespace.
		id, err := idOf("/proc/" + e + "/ns/net")
		if err != nil {
			continue
		}
		if n, ok := names[id]; ok {
			found[n] = append(found[n], Process{Name: processName(pid), PID: pid, Alive: true})
		}
	}
	return found, nil
}

// processName tells the lab's own processes by program and subcommand.
func processName(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return "?"
	}
	// The kernel marks a program that was rebuilt since.
	base := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	cmdline, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return base
	}
	args := bytes.Split(cmdline, []byte{0})
	if len(args) < 2 {
		return base
	}
	switch base + " " + string(args[1]) {
	case "agent run":
		return Agent
	case "agent device":
		return Device
	case "controlplane run":
		return ControlPlane
	case "gateway run":
		return Gateway
	case "meshecho serve":
		return Pod
	}
	return base
}

// target is a process held by a descriptor, which never comes to mean another.
type target struct {
	pid, fd int
}

// hold opens a process if it is still in the namespace that id names.
func hold(pid int, id nsID) (target, bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return target{}, false
	}
	now, err := idOf("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil || now != id {
		unix.Close(fd)
		return target{}, false
	}
	return target{pid, fd}, true
}

// signal sends sig to the processes of a namespace that match, and returns them
// still held, to be waited for.
func signal(namespace string, sig unix.Signal, match func(Process) bool) ([]target, error) {
	id, err := idOf(filepath.Join(netnsDir, namespace))
	if err != nil {
		return nil, fmt.Errorf("stat namespace %s: %w", namespace, err)
	}
	found, err := processes([]string{namespace})
	if err != nil {
		return nil, err
	}
	return signalAll(found[namespace], id, sig, match), nil
}

func signalAll(ps []Process, id nsID, sig unix.Signal, match func(Process) bool) []target {
	var ts []target
	for _, p := range ps {
		if !match(p) {
			continue
		}
		t, ok := hold(p.PID, id)
		if !ok {
			continue
		}
		// ESRCH: it has ended by itself, which waiting will find out.
		if err := unix.PidfdSendSignal(t.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			unix.Close(t.fd)
			continue
		}
		ts = append(ts, t)
	}
	return ts
}

// await waits until all have ended, and lets go of them.
func await(ctx context.Context, ts []target) error {
	var errs []error
	for _, t := range ts {
		errs = append(errs, t.await(ctx))
		unix.Close(t.fd)
	}
	return errors.Join(errs...)
}

func (t target) await(ctx context.Context) error {
	const turn = 50 * time.Millisecond
	for {
		// A process descriptor is readable once the process has ended, see pidfd_open(2).
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}, int(turn.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", t.pid, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("process %d does not end: %w", t.pid, context.Cause(ctx))
		}
	}
}

// endAll kills every process in the namespaces, until none is found.
func endAll(ctx context.Context, namespaces []string) (ended int, err error) {
	for {
		found, err := processes(namespaces)
		if err != nil {
			return ended, err
		}
		var ts []target
		for n, ps := range found {
			id, err := idOf(filepath.Join(netnsDir, n))
			if err != nil {
				continue
			}
			ts = append(ts, signalAll(ps, id, unix.SIGKILL, func(Process) bool { return true })...)
		}
		if len(found) == 0 {
			return ended, nil
		}
		if err := await(ctx, ts); err != nil {
			return ended, err
		}
		ended += len(ts)
		// A process that is found but cannot be held is about to be gone.
		if err := ctx.Err(); err != nil {
			return ended, fmt.Errorf("processes remain in %d namespaces: %w", len(found), err)
		}
	}
}
