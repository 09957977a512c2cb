package wg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Mode says which kind of device is wanted.
type Mode string

// The modes.
const (
	// ModeAuto takes the kernel's WireGuard where there is one. A device that
	// exists stays what it is.
	ModeAuto      Mode = "auto"
	ModeKernel    Mode = "kernel"
	ModeUserspace Mode = "userspace"
)

// ParseMode reads "auto", "kernel" or "userspace".
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeAuto, ModeKernel, ModeUserspace:
		return m, nil
	default:
		return "", fmt.Errorf("device mode %q: want auto, kernel or userspace", s)
	}
}

// Options says which device to open.
type Options struct {
	// Name is the interface's.
	Name string
	// MTU is in bytes, of the packets inside the tunnel.
	MTU int
	// Mode is ModeAuto where it is empty.
	Mode Mode
	// Spawn starts a userspace device of that name in a process of its own. It need
	// not wait until the device answers. It is nil where only the kernel will do.
	Spawn func(ctx context.Context) error
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// spawnTimeout bounds the wait for a userspace device to answer.
const spawnTimeout = 10 * time.Second

// Open opens the device, makes it where there is none, and brings its link up.
// A link of that name that is no WireGuard device, or one that somebody else
// configured, is an error and is not touched. To stop waiting for a process
// that will never answer, cancel ctx with the cause.
func Open(ctx context.Context, o Options) (*Device, error) {
	if err := validateName(o.Name); err != nil {
		return nil, err
	}
	if o.Mode == "" {
		o.Mode = ModeAuto
	}
	if _, err := ParseMode(string(o.Mode)); err != nil {
		return nil, err
	}
	kind, err := ensureKind(o)
	if err != nil {
		return nil, err
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("%s: open WireGuard control: %w", o.Name, err)
	}
	d := &Device{
		name: o.Name, kind: kind, mtu: o.MTU, now: o.Now, client: client,
		busy: make(chan struct{}, 1), set: map[mesh.PublicKey]endpointSet{},
	}
	if d.now == nil {
		d.now = time.Now
	}
	if err := d.start(ctx, o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// ensureKind decides what the device is, and makes it where the kernel can.
func ensureKind(o Options) (Kind, error) {
	link, err := findLink(o.Name)
	if err != nil {
		return 0, err
	}
	if link != nil {
		kind, err := kindOf(link)
		if err != nil {
			return 0, err
		}
		if o.Mode == ModeKernel && kind != Kernel || o.Mode == ModeUserspace && kind != Userspace {
			return 0, fmt.Errorf("%s exists as a %v device, and a %s one is wanted: delete it (ip link del %s), or allow mode auto", o.Name, kind, o.Mode, o.Name)
		}
		return kind, nil
	}
	if o.Mode == ModeUserspace {
		return Userspace, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Alias = o.Name, o.MTU, alias
	err = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	switch {
	case err == nil:
		return Kernel, nil
	case errors.Is(err, unix.EOPNOTSUPP) && o.Mode == ModeAuto:
		return Userspace, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, fmt.Errorf("make %s: this kernel has no WireGuard: load its module (modprobe wireguard), or allow mode auto or userspace: %w", o.Name, err)
	case errors.Is(err, unix.EPERM):
		return 0, fmt.Errorf("make %s: run as root, or with the capability NET_ADMIN: %w", o.Name, err)
	default:
		return 0, fmt.Errorf("make %s: %w", o.Name, err)
	}
}

// start brings the device to where it answers and its link is up.
func (d *Device) start(ctx context.Context, o Options) error {
	device, err := d.read(ctx)
	if err != nil {
		if d.kind == Kernel || !errors.Is(err, ErrGone) {
			return fmt.Errorf("read device %s: %w", d.name, err)
		}
		if device, err = d.spawn(ctx, o.Spawn); err != nil {
			return err
		}
	}
	link, err := findLink(d.name)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("%s answers on its UAPI socket, but this network namespace has no such interface: give each agent its own /run/wireguard", d.name)
	}
	if err := foreign(link, device.PrivateKey != wgtypes.Key{}, len(device.Peers)); err != nil {
		return err
	}
	return d.EnsureLink()
}

// spawn starts the userspace device and waits until it answers.
func (d *Device) spawn(ctx context.Context, start func(context.Context) error) (*wgtypes.Device, error) {
	if start == nil {
		return nil, fmt.Errorf("%s needs a userspace device, which nothing here can start", d.name)
	}
	if err := start(ctx); err != nil {
		return nil, fmt.Errorf("start the userspace device %s: %w", d.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, spawnTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		device, err := d.read(ctx)
		if err == nil {
			return device, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("the userspace device %s does not answer on %s (its log says why): %w: last try: %w", d.name, socketPath(d.name), context.Cause(ctx), err)
		}
	}
}

// read asks for the device by name. Never for all devices: one dead socket in
// the folder makes wgctrl fail for every one.
func (d *Device) read(ctx context.Context) (*wgtypes.Device, error) {
	var out *wgtypes.Device
	err := d.call(ctx, func(c *wgctrl.Client) (err error) {
		out, err = c.Device(d.name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
