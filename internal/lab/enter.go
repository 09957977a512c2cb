package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostDir holds what a host has of its own, under the paths at which its
// processes see it.
func hostDir(lab, host string) string { return filepath.Join(labDir(lab), "hosts", host) }

func clustersDir(lab string) string { return filepath.Join(labDir(lab), "clusters") }

// Where the control plane finds its clusters and keeps its state, in its host.
const (
	clustersPath = "/var/lib/flatmesh/clusters"
	cpStatePath  = "/var/lib/flatmesh/controlplane"
)

// xdsPath is where a node's agent has its xDS socket, and a pod sees it.
const xdsPath = "/run/flatmesh/xds"

// bind is a folder of the lab and where a host sees it.
type bind struct {
	from, to string
	readOnly bool
}

// binds lists a host's, outer ones first. Folders are bound and not files, so that
// what comes and goes in them later is seen.
func (s *state) binds(h Host) ([]bind, error) {
	own := hostDir(s.Name, h.Name)
	var bs []bind
	for _, p := range mountPoints {
		bs = append(bs, bind{from: own + p, to: p})
	}
	switch h.Kind {
	case KindControlPlane:
		bs = append(bs, bind{from: clustersDir(s.Name), to: clustersPath})
	case KindPod:
		p, err := s.pod(h.Name)
		if err != nil {
			return nil, err
		}
		node := hostDir(s.Name, p.node.id().String())
		bs = append(bs, bind{node + xdsPath, xdsPath, true})
		if s.hasServices() {
			bs = append(bs, bind{node + p.workload(), secretsPath, true})
		}
	}
	return bs, nil
}

// workload is where the agent of the pod's node keeps the pod's certificate.
func (p pod) workload() string {
	return filepath.Join("/var/lib/flatmesh/workloads", p.state().Namespace+"_"+p.kubeName())
}

// makeFolders makes what the host's processes will have bound.
func (s *state) makeFolders(h Host) error {
	bs, err := s.binds(h)
	if err != nil {
		return err
	}
	for _, b := range bs {
		// The second is what it is bound over, inside the host's own folders.
		if err := errors.Join(os.MkdirAll(b.from, 0o700), os.MkdirAll(hostDir(s.Name, h.Name)+b.to, 0o700)); err != nil {
			return err
		}
	}
	return nil
}

// Become turns the calling process into argv, running in a host: standard
// streams, signals and exit code need no passing on. It returns only an error.
func (l *Lab) Become(host string, argv []string) error {
	s, err := loadState(l.name)
	if err != nil {
		return err
	}
	h, err := s.host(host)
	if err != nil {
		return err
	}
	// The namespaces are this thread's alone, and exec keeps those of the thread
	// that calls it.
	runtime.LockOSThread()
	ns, err := netns.GetFromName(h.Namespace)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", h.Namespace, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter %s: %w", host, err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// They may be gone since the host was made: a node's agent can be cleaned up.
	if err := s.makeFolders(h); err != nil {
		return fmt.Errorf("make the folders of %s: %w", host, err)
	}
	bs, err := s.binds(h)
	if err == nil {
		err = mounts(bs)
	}
	if err != nil {
		return fmt.Errorf("mount the folders of %s: %w", host, err)
	}
	if err := s.setEnvironment(h); err != nil {
		return fmt.Errorf("set the environment of %s: %w", host, err)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return &fs.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, argv, os.Environ())}
}

// setEnvironment gives this process that of a host's processes.
func (s *state) setEnvironment(h Host) error {
	env := map[string]string{
		"PATH":         s.Bin + ":" + os.Getenv("PATH"),
		"FLATMESH_LAB": s.Name,
		"LAB_HOST":     h.Name,
	}
	if h.Kind == KindPod {
		// As a pod's manifest would say it; the agent's own word comes first.
		env["GRPC_XDS_BOOTSTRAP"] = filepath.Join(xdsPath, "bootstrap.json")
		env["GRPC_EXPERIMENTAL_XDS_SNI"] = "true"
		b, err := os.ReadFile(filepath.Join(xdsPath, "env"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
				env[key] = value
			}
		}
	}
	for key, value := range env {
		if err := os.Setenv(key, value); err != nil {
			return err
		}
	}
	return nil
}

// mounts gives the calling thread's new mount namespace what a host sees.
func mounts(bs []bind) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := forgetNamespaces(); err != nil {
		return err
	}
	// sysfs shows the interfaces of the network namespace in which it was mounted.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	for _, b := range bs {
		err := unix.Mount(b.from, b.to, "", unix.MS_BIND, "")
		if err == nil && b.readOnly {
			err = unix.Mount("", b.to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil {
			return fmt.Errorf("bind %s over %s: %w", b.from, b.to, err)
		}
	}
	return nil
}

// forgetNamespaces drops this mount namespace's copies of the named network
// namespaces: they would keep alive what is removed while the process runs.
func forgetNamespaces() error {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var points []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// The fifth field is the mount point, see proc_pid_mountinfo(5).
		if f := strings.Fields(sc.Text()); len(f) > 4 && (f[4] == netnsDir || strings.HasPrefix(f[4], netnsDir+"/")) {
			points = append(points, f[4])
		}
	}
	for _, p := range points {
		// Detaching the folder takes all below it along, and then these fail.
		if err := unix.Unmount(p, unix.MNT_DETACH); err == nil && p == netnsDir {
			break
		}
	}
	// What remains are the files under the mounts; ip(8) complains about them.
	if err := unix.Mount("tmpfs", netnsDir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("hide %s: %w", netnsDir, err)
	}
	return nil
}
