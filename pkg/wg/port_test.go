package wg_test

import (
	"net"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/wg"
)

func TestPortInUse(t *testing.T) {
	p := newPair(t)
	c := p.dial(t, p.echo(t, p.tunnelB))
	reach(t, c)
	hold := func(network string) *net.UDPConn {
		var taken *net.UDPConn
		if err := p.a.Do(func() (err error) {
			taken, err = net.ListenUDP(network, &net.UDPAddr{Port: 51999})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = taken.Close() })
		return taken
	}
	d := p.wantA
	d.ListenPort = 51999
	for _, network := range []string{"udp4", "udp6"} {
		taken := hold(network)
		for range 2 {
			r := p.a.call(t, "Reconcile", d)
			if !r.InUse || !strings.Contains(r.Err, "51999") || !strings.Contains(r.Err, "choose another port") {
				t.Fatalf("%s port taken: %q", network, r.Err)
			}
			if a := p.a.must(t, "Observe", patience).Actual; a.ListenPort != 51830 {
				t.Fatalf("%s port taken: the device went to port %d", network, a.ListenPort)
			}
			reach(t, c) // the old port still works
		}
		if err := taken.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p.a.settle(t, d)
	reach(t, c)
}

func TestPortInUseFromTheStart(t *testing.T) {
	n := newNode(t, "a")
	var taken *net.UDPConn
	if err := n.Do(func() (err error) {
		taken, err = net.ListenUDP("udp", &net.UDPAddr{Port: 51830})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	d := wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830}
	for range 3 {
		if r := n.call(t, "Reconcile", d); !r.InUse {
			t.Fatalf("%q", r.Err)
		}
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	n.settle(t, d)
}

// The engine would close its sockets with the link, and then take any port with
// no word: the port must be refused whatever the link's state is.
func TestPortInUseWhileLinkIsDown(t *testing.T) {
	n := newNode(t, "a")
	n.open(t)
	var taken *net.UDPConn
	if err := n.Do(func() (err error) {
		taken, err = net.ListenUDP("udp", &net.UDPAddr{Port: 51999})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	if err := n.NL.LinkSetDown(n.Link(t, deviceName)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if r := n.call(t, "ApplyOps", []wg.Op{{Kind: wg.SetListenPort, ListenPort: 51999}}); !r.InUse {
			t.Fatalf("%q", r.Err)
		}
	}
	n.settle(t, wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830})
	if a := n.must(t, "Observe", patience).Actual; !a.Up {
		t.Error("the link is still down")
	}
}
