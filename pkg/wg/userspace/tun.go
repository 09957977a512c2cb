package userspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const clonePath = "/dev/net/tun"

// tunFlags must be the same for every process that attaches to a persistent
// interface. IFF_VNET_HDR carries the segmentation offloads, without which
// throughput falls to a third.
const tunFlags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// attach makes the TUN interface, or takes up the one of that name that an
// earlier process left.
func attach(name string, mtu int) (tun.Device, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: open %s: %w%s", name, clonePath, err, openAdvice(err))
	}
	if err := setInterface(fd, name); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// The engine owns the file from here, also when this fails.
	device, err := tun.CreateTUNFromFile(os.NewFile(uintptr(fd), clonePath), mtu)
	if err != nil {
		return nil, fmt.Errorf("%s: set up TUN with MTU %d: %w", name, mtu, err)
	}
	return device, nil
}

func setInterface(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: want at most 15 characters", name)
	}
	req.SetUint16(tunFlags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("%s: attach to TUN: %w%s", name, err, attachAdvice(name, err))
	}
	// Before the file is made, so that the runtime's poller takes it.
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("%s: set up TUN: %w", name, err)
	}
	return nil
}

func openAdvice(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return " (there is no TUN device: run modprobe tun on the host; in a container, mount /dev/net/tun as well)"
	case errors.Is(err, fs.ErrPermission):
		return " (run as root; in a container, allow the device /dev/net/tun)"
	default:
		return ""
	}
}

func attachAdvice(name string, err error) string {
	switch {
	case errors.Is(err, unix.EBUSY):
		return " (another process holds this interface: stop it, or choose another name)"
	case errors.Is(err, unix.EINVAL):
		return fmt.Sprintf(" (an interface of this name exists and is not such a TUN: delete it, ip link del %s, or choose another name)", name)
	case errors.Is(err, fs.ErrPermission):
		return " (run as root, or with the capability NET_ADMIN)"
	default:
		return ""
	}
}

// persist keeps the interface when the last file on it is closed.
func persist(d tun.Device) error {
	raw, err := d.File().SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1)
	}); err != nil {
		return err
	}
	return ioctlErr
}

// upDevice is a TUN that never tells the engine of its link going up or down.
//
// The engine would close its UDP sockets with the link, and while they are
// closed it takes any port with no word; where the port is taken, it only logs
// so when the link comes up. With the sockets open from the start, whoever sets
// a port gets the error, and a link that was up before this process attached
// needs nothing special.
type upDevice struct {
	tun.Device
	events chan tun.Event
}

func alwaysUp(d tun.Device) tun.Device {
	u := &upDevice{Device: d, events: make(chan tun.Event)}
	go func() {
		defer close(u.events)
		for e := range d.Events() {
			if e &= tun.EventMTUUpdate; e != 0 {
				u.events <- e
			}
		}
	}()
	return u
}

// Events tells of changes of the MTU only.
func (u *upDevice) Events() <-chan tun.Event { return u.events }
