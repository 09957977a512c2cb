package wg

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// ErrGone says that the device is no longer there: its link was deleted, or its
// userspace process has ended. Opening it again is what helps.
var ErrGone = errors.New("device is gone")

// Device is one WireGuard device on this host. It is for one goroutine at a
// time. Closing it leaves the device itself as it is.
type Device struct {
	name   string
	kind   Kind
	mtu    int
	now    func() time.Time
	client *wgctrl.Client
	// busy holds a token while a call is under way: wgctrl knows no context, and a
	// userspace process that hangs must hang one goroutine at most.
	busy chan struct{}
	// set remembers the endpoints that Apply set, for EndpointSince.
	set map[mesh.PublicKey]endpointSet
}

type endpointSet struct {
	endpoint netip.AddrPort
	at       time.Time
}

// Name returns the interface's name.
func (d *Device) Name() string { return d.name }

// Kind says whether the kernel or a process carries the packets.
func (d *Device) Kind() Kind { return d.kind }

// Close releases what the Device holds open. The device keeps working.
func (d *Device) Close() error {
	select {
	case d.busy <- struct{}{}:
		return d.client.Close()
	default:
		return fmt.Errorf("%s: an earlier call still waits for an answer", d.name)
	}
}

// call runs f with the client, for as long as ctx allows.
func (d *Device) call(ctx context.Context, f func(*wgctrl.Client) error) error {
	select {
	case d.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("an earlier call still waits for an answer: %w", context.Cause(ctx))
	}
	done := make(chan error, 1)
	go func() {
		err := f(d.client)
		<-d.busy
		done <- err
	}()
	select {
	case err := <-done:
		return d.explain(err)
	case <-ctx.Done():
		return fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
}

// explain turns what wgctrl says of a missing device into ErrGone.
func (d *Device) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED),
		errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (run as root, or with the capability NET_ADMIN)", err)
	default:
		return err
	}
}

// EnsureLink makes the link usable: its MTU as given, up, and marked as
// flatmesh's own. It changes only what differs.
func (d *Device) EnsureLink() error {
	link, err := findLink(d.name)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("%s: %w: no such interface", d.name, ErrGone)
	}
	attrs := link.Attrs()
	if attrs.Alias != alias {
		if err := netlink.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("%s: set the alias that marks it as flatmesh's: %w", d.name, err)
		}
	}
	if attrs.MTU != d.mtu {
		if err := netlink.LinkSetMTU(link, d.mtu); err != nil {
			return fmt.Errorf("%s: set MTU %d: %w", d.name, d.mtu, err)
		}
	}
	if attrs.RawFlags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s: bring up: %w", d.name, err)
		}
	}
	return nil
}
