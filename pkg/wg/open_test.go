package wg_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/nstest"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

func TestAgentRestartHarmsNothing(t *testing.T) {
	n := newNode(t, "a")
	device := n.StartCmd(t, self("device", deviceName)) // not a child of the agent
	nstest.Eventually(t, "device ready", func() error {
		if !strings.Contains(device.Output(), "READY") {
			return errors.New("not yet")
		}
		return nil
	})
	open := OpenArgs{Mode: wg.ModeAuto, MTU: 1380, NoSpawn: true}
	n.must(t, "Open", open)
	d := wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830, Peers: []wg.Peer{{Name: "east/n1", Key: mesh.PublicKey{1}}}}
	n.settle(t, d)
	n.agent.Kill()
	n.startAgent(t)
	n.must(t, "Open", open)
	if ops := n.must(t, "Reconcile", d).Ops; len(ops) > 0 {
		t.Errorf("a new agent changes %v", ops)
	}
	if a := n.must(t, "Observe", patience).Actual; a.MTU != 1380 {
		t.Errorf("MTU %d", a.MTU)
	}

	// A device that hangs must not hang the agent.
	if err := device.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hung := func() error {
		if r := n.call(t, "Observe", 50*time.Millisecond); !strings.Contains(r.Err, "deadline") {
			return fmt.Errorf("observe a hung device: %q", r.Err)
		}
		return nil
	}
	nstest.Eventually(t, "the device hangs", hung) // the signal takes a moment
	for range 3 {
		if err := hung(); err != nil {
			t.Fatal(err)
		}
	}
	if err := device.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if ops := n.must(t, "Reconcile", d).Ops; len(ops) > 0 {
		t.Errorf("after it hung: %v", ops)
	}
}

func TestDeviceEndsByItself(t *testing.T) {
	for name, x := range map[string]struct {
		do   func(t *testing.T, n *node)
		want string
	}{
		"link deleted": {func(t *testing.T, n *node) {
			if err := n.NL.LinkDel(n.Link(t, deviceName)); err != nil {
				t.Fatal(err)
			}
		}, "the interface was deleted"},
		"socket removed": {func(t *testing.T, n *node) {
			if err := n.Do(func() error { return os.Remove("/run/wireguard/" + deviceName + ".sock") }); err != nil {
				t.Fatal(err)
			}
		}, "was removed"},
		"told to stop": {func(t *testing.T, n *node) {
			n.must(t, "StopDevice", syscall.SIGTERM)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "a")
			n.open(t)
			pid := n.must(t, "DevicePID", struct{}{}).Text
			x.do(t, n)
			nstest.Eventually(t, "the device process ends", func() error {
				if _, err := os.Stat("/proc/" + pid); err == nil {
					return errors.New("it lives")
				}
				return nil
			})
			if !strings.Contains(n.agent.Output(), x.want) {
				t.Errorf("it does not say %q", x.want)
			}
			// Whatever happened, opening again is the cure.
			n.open(t)
			n.settle(t, wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830})
		})
	}
}

func TestNoTUN(t *testing.T) {
	for name, x := range map[string]struct {
		hide func() error
		want []string
	}{
		"missing": {func() error { return unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "") }, []string{"/dev/net/tun", "modprobe tun"}},
		"no module": {func() error {
			return errors.Join(unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""),
				unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(240, 77))))
		}, []string{"/dev/net/tun", "modprobe tun"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "a")
			n.agent.Kill()
			if err := n.Do(x.hide); err != nil {
				t.Fatal(err)
			}
			n.startAgent(t)
			r := n.call(t, "Open", OpenArgs{Mode: wg.ModeUserspace, MTU: deviceMTU})
			for _, want := range x.want {
				if !strings.Contains(r.Err, want) {
					t.Errorf("error does not say %q: %q", want, r.Err)
				}
			}
		})
	}
}

func TestLinksOfOthers(t *testing.T) {
	t.Run("another type", func(t *testing.T) {
		n := newNode(t, "a")
		nstest.Veth(t, n.Host, deviceName, n.Host, "fmother", 1500)
		for _, mode := range []wg.Mode{wg.ModeAuto, wg.ModeKernel, wg.ModeUserspace} {
			if r := n.call(t, "Open", OpenArgs{Mode: mode, MTU: deviceMTU}); !strings.Contains(r.Err, "veth") || !strings.Contains(r.Err, "choose another name") {
				t.Errorf("open %s: %q", mode, r.Err)
			}
		}
		if r := n.call(t, "Remove", struct{}{}); !strings.Contains(r.Err, "veth") {
			t.Errorf("remove: %q", r.Err)
		}
		if l := n.Link(t, deviceName); l.Attrs().MTU != 1500 || l.Attrs().Alias != "" {
			t.Errorf("it was touched: %+v", l.Attrs())
		}
	})
	t.Run("somebody else's WireGuard", func(t *testing.T) {
		n := newNode(t, "a")
		n.open(t)
		n.settle(t, wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830})
		link := n.Link(t, deviceName)
		if err := n.NL.LinkSetAlias(link, "vpn of mine"); err != nil {
			t.Fatal(err)
		}
		for _, method := range []string{"Open", "Remove"} {
			var arg any = struct{}{}
			if method == "Open" {
				arg = OpenArgs{Mode: wg.ModeUserspace, MTU: 1300}
			}
			if r := n.call(t, method, arg); !strings.Contains(r.Err, "somebody else") {
				t.Errorf("%s: %q", method, r.Err)
			}
		}
		if l := n.Link(t, deviceName); l.Attrs().MTU != deviceMTU {
			t.Errorf("it was touched: %+v", l.Attrs())
		}
	})
	t.Run("kernel wanted, TUN there", func(t *testing.T) {
		n := newNode(t, "a")
		n.open(t)
		if r := n.call(t, "Open", OpenArgs{Mode: wg.ModeKernel, MTU: deviceMTU}); !strings.Contains(r.Err, "userspace") {
			t.Errorf("%q", r.Err)
		}
	})
	t.Run("two device processes", func(t *testing.T) {
		n := newNode(t, "a")
		n.open(t)
		second := n.StartCmd(t, self("device", deviceName))
		if err := second.Wait(); err == nil || !strings.Contains(second.Output(), "another process holds") {
			t.Errorf("%v: %s", err, second.Output())
		}
		n.must(t, "Observe", patience)
	})
}

// What mode auto and mode kernel do depends on the machine's kernel; each
// outcome is checked where it is had.
func TestKernelMode(t *testing.T) {
	n := newNode(t, "a")
	r := n.call(t, "Open", OpenArgs{Mode: wg.ModeKernel, MTU: deviceMTU})
	if r.Err != "" {
		if !strings.Contains(r.Err, "modprobe wireguard") {
			t.Fatalf("%q", r.Err)
		}
		if auto := n.must(t, "Open", OpenArgs{Mode: wg.ModeAuto, MTU: deviceMTU}); auto.Text != "userspace" {
			t.Fatalf("auto on a kernel without WireGuard gives %q", auto.Text)
		}
	}
	n.settle(t, wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830, Peers: []wg.Peer{{Name: "east/n1", Key: mesh.PublicKey{1}}}})
	n.must(t, "Remove", struct{}{})
}

func TestRemove(t *testing.T) {
	n := newNode(t, "a")
	n.must(t, "Remove", struct{}{}) // nothing is there
	gone := func() {
		t.Helper()
		if _, err := n.NL.LinkByName(deviceName); err == nil {
			t.Error("the link is still there")
		}
		if out, err := n.Run(t, "ls", "/run/wireguard"); err != nil || out != "" {
			t.Errorf("left in /run/wireguard: %q, %v", out, err)
		}
	}
	d := wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830}

	n.open(t)
	n.settle(t, d)
	n.must(t, "Remove", struct{}{}) // with its process
	gone()
	n.must(t, "Remove", struct{}{})

	n.open(t)
	n.settle(t, d)
	n.must(t, "KillDevice", struct{}{})
	nstest.Eventually(t, "dead", func() error {
		if r := n.call(t, "Observe", patience); !r.Gone {
			return errors.New(r.Err)
		}
		return nil
	})
	n.must(t, "Remove", struct{}{}) // what a killed process left
	gone()
}
