package userspace

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

type fakeTUN struct {
	tun.Device
	events chan tun.Event
}

func (f fakeTUN) Events() <-chan tun.Event { return f.events }

func TestEngineHearsOfTheMTUOnly(t *testing.T) {
	f := fakeTUN{events: make(chan tun.Event, 5)}
	for _, e := range []tun.Event{tun.EventUp, tun.EventMTUUpdate, tun.EventDown, tun.EventUp | tun.EventMTUUpdate, tun.EventDown} {
		f.events <- e
	}
	close(f.events)
	var got []tun.Event
	for e := range alwaysUp(f).Events() { // ends, as the engine counts on
		got = append(got, e)
	}
	if want := []tun.Event{tun.EventMTUUpdate, tun.EventMTUUpdate}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAdvice(t *testing.T) {
	for err, want := range map[syscall.Errno]string{
		unix.ENOENT: "modprobe tun", unix.ENODEV: "modprobe tun", unix.ENXIO: "modprobe tun",
		unix.EPERM: "allow the device", unix.EACCES: "allow the device",
	} {
		if got := openAdvice(err); !strings.Contains(got, want) {
			t.Errorf("open: %v: %q", err, got)
		}
	}
	for err, want := range map[syscall.Errno]string{
		unix.EBUSY: "another process", unix.EINVAL: "ip link del fm0", unix.EPERM: "NET_ADMIN",
	} {
		if got := attachAdvice("fm0", err); !strings.Contains(got, want) {
			t.Errorf("attach: %v: %q", err, got)
		}
	}
}
