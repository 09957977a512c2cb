// Package testenv says what a test may count on: root, devices, tools. Where
// something is missing a test skips with the reason, except in CI, where nothing
// that matters may be skipped and it fails.
package testenv

import (
	"os"
	"testing"
)

// NeedRoot ends the test where it does not run as root: network namespaces, TUN
// devices and routes need it.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root, for network namespaces and devices")
	}
}

// NeedTUN ends the test where there is no TUN device.
func NeedTUN(t testing.TB) {
	t.Helper()
	NeedRoot(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		missing(t, "needs /dev/net/tun (try: modprobe tun)")
	}
}

// CI reports whether the tests run under CI, where nothing may be skipped.
func CI() bool { return os.Getenv("CI") != "" }

func missing(t testing.TB, reason string) {
	t.Helper()
	if CI() {
		t.Fatal("cannot be skipped in CI: " + reason)
	}
	t.Skip(reason)
}
