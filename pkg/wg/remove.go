package wg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// socketPath is where wgctrl and every userspace device expect the UAPI socket.
func socketPath(name string) string { return "/var/run/wireguard/" + name + ".sock" }

// Remove deletes the device: its link, which ends a userspace process too, and
// the socket that a killed process left. A device that is not there is no
// error; one that somebody else configured is, and is not touched.
func Remove(ctx context.Context, name string) error {
	if err := validateName(name); err != nil {
		return err
	}
	link, err := findLink(name)
	if err != nil {
		return err
	}
	if link != nil {
		if err := removeLink(ctx, link); err != nil {
			return err
		}
	}
	return removeSocket(ctx, name)
}

func removeLink(ctx context.Context, link netlink.Link) error {
	name := link.Attrs().Name
	kind, err := kindOf(link)
	if err != nil {
		return err
	}
	client, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("%s: open WireGuard control: %w", name, err)
	}
	d := &Device{name: name, kind: kind, client: client, busy: make(chan struct{}, 1)}
	defer d.Close()
	device, err := d.read(ctx)
	switch {
	case err == nil:
		err = foreign(link, device.PrivateKey != wgtypes.Key{}, len(device.Peers))
	case errors.Is(err, ErrGone):
		// A TUN with no process behind it: only the mark says whose it was.
		err = foreign(link, true, 0)
	case link.Attrs().Alias == alias:
		err = nil // ours and it hangs: the more reason to remove it
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// removeSocket waits until nobody answers on the socket and removes the file.
func removeSocket(ctx context.Context, name string) error {
	path := socketPath(name)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			break
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		_ = conn.Close()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("remove %s: a process still answers there, although its interface is gone: %w", path, context.Cause(ctx))
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
