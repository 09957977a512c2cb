package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// sniffed is what a sniffer saw pass.
type sniffed struct {
	// All counts IP packets, Leaked those with an address in one of the ranges.
	All    int    `json:"all"`
	Leaked int    `json:"leaked"`
	First  string `json:"first"`
}

// sniff looks at every packet in its network namespace until its stdin closes,
// for addresses in the ranges.
func sniff(args []string) error {
	var ranges []netip.Prefix
	for _, a := range args {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		ranges = append(ranges, p)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return err
	}
	// A read that wakes up now and then sees that it is time to end.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return err
	}
	stopped := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stopped)
	}()
	fmt.Println("ready")
	var r sniffed
	buf := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		default:
			if src, dst, ok := addresses(buf[:n]); ok {
				r.All++
				if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(src) || p.Contains(dst) }) {
					r.Leaked++
					if r.First == "" {
						r.First = fmt.Sprintf("%v to %v", src, dst)
					}
				}
			}
		}
		select {
		case <-stopped:
			return json.NewEncoder(os.Stdout).Encode(r)
		default:
		}
	}
}

// addresses reads source and destination of an IP packet.
func addresses(b []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), true
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), true
	}
	return src, dst, false
}

// Whatever breaks, no packet between pods of different networks crosses the
// underlay in plaintext.
func TestNothingLeaks(t *testing.T) {
	f := up(t, twoClusters)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	watch := f.begin("core", "sniff", "core", "env", roleVariable+"=sniff", self, "10.1.0.0/16", "10.2.0.0/16")
	f.reach("east/n1/p1", "west/n1/p1")
	try := func() {
		for _, to := range []string{"west/n1/p1", "west/n2/p1"} {
			f.try("east/n1/p1", "lab", "call", "--timeout", "300ms", fmt.Sprintf("http://%v:%d", f.addrs(to)[0], lab.PodPort))
			f.try("east/n1", "lab", "call", "--timeout", "300ms", fmt.Sprintf("http://%v:%d", f.addrs(to)[0], lab.PodPort))
		}
	}
	if err := f.Cut(t.Context(), "east/n1", "west/n1", false); err != nil {
		t.Fatal(err)
	}
	f.awaitTunnel("east/n1", "west/n1", mesh.Down)
	try()
	f.kill(lab.Agent, "east/n1")
	try()
	f.kill(lab.Device, "east/n1")
	try()
	f.exec("east/n1", "ip", "link", "del", "flatmesh0")
	try()
	f.restart(lab.Agent, "east/n1")
	try()
	if err := f.Heal(t.Context(), "east/n1", "west/n1", false); err != nil {
		t.Fatal(err)
	}
	f.connected()
	if err := f.RemoveNode(t.Context(), "west/n1"); err != nil {
		t.Fatal(err)
	}
	f.await("the node is gone", func() error { return f.wantTunnels(4) })
	f.try("east/n1/p1", "lab", "call", "--timeout", "300ms", "http://10.2.0.2:8080")
	var r sniffed
	watch.finish(&r)
	if r.Leaked != 0 || r.All == 0 {
		t.Errorf("%d of %d packets leaked, the first %s", r.Leaked, r.All, r.First)
	}
}
