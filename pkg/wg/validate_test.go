package wg

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestValidate(t *testing.T) {
	private := newKey(t)
	good := func() Desired {
		return Desired{PrivateKey: private, ListenPort: 51830, Peers: []Peer{
			{Name: "east/n1", Key: key(1), Candidates: []netip.AddrPort{addrPort("192.0.2.1:51830")}, AllowedIPs: prefixes("10.1.0.0/16", "10.1.1.0/24"), Keepalive: 25 * time.Second},
			{Name: "east/n2", Key: key(2), AllowedIPs: prefixes("10.2.0.0/16", "fd00::/64")},
		}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]func(d *Desired){
		"no private key":                        func(d *Desired) { d.PrivateKey = PrivateKey{} },
		"no listen port":                        func(d *Desired) { d.ListenPort = 0 },
		"peer east/n1: no key":                  func(d *Desired) { d.Peers[0].Key = mesh.PublicKey{} },
		"own key":                               func(d *Desired) { d.Peers[1].Key = private.PublicKey() },
		"peers east/n1 and east/n2 have the":    func(d *Desired) { d.Peers[1].Key = key(1) },
		"not sorted by key":                     func(d *Desired) { slices.Reverse(d.Peers) },
		"10.1.2.0/24 of peer east/n2 overlap 1": func(d *Desired) { d.Peers[1].AllowedIPs[0] = netip.MustParsePrefix("10.1.2.0/24") },
		"10.1.1.0/24 of peer east/n2 overlap 1": func(d *Desired) { d.Peers[1].AllowedIPs[0] = netip.MustParsePrefix("10.1.1.0/24") },
		"canonical":                             func(d *Desired) { d.Peers[1].AllowedIPs[0] = netip.MustParsePrefix("10.2.0.1/16") },
		"twice the same":                        func(d *Desired) { d.Peers[1].AllowedIPs[1] = d.Peers[1].AllowedIPs[0] },
		"whole seconds":                         func(d *Desired) { d.Peers[0].Keepalive = 1500 * time.Millisecond },
		"from 0 to 65535":                       func(d *Desired) { d.Peers[0].Keepalive = 65536 * time.Second },
		"not an address with a port":            func(d *Desired) { d.Peers[0].Candidates[0] = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0) },
		"endpoint [::ffff:192.0.2.1]:1 is not":  func(d *Desired) { d.Peers[0].Candidates[0] = addrPort("[::ffff:192.0.2.1]:1") },
	} {
		d := good()
		f(&d)
		if err := d.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

// The check for overlaps sorts and looks at neighbours; the oracle looks at
// every pair.
func TestDisjointAgainstPairs(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	overlaps := 0
	for range 5000 {
		var peers []Peer
		for n := range byte(1 + r.IntN(4)) {
			p := Peer{Name: fmt.Sprint(n), Key: key(n)}
			for range r.IntN(4) {
				a := netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), byte(r.IntN(3) * 64), 0})
				q, err := a.Prefix(8 + r.IntN(17))
				if err != nil {
					t.Fatal(err)
				}
				p.AllowedIPs = append(p.AllowedIPs, q)
			}
			peers = append(peers, p)
		}
		want := false
		for i, p := range peers {
			for _, q := range peers[:i] {
				for _, x := range p.AllowedIPs {
					want = want || slices.ContainsFunc(q.AllowedIPs, x.Overlaps)
				}
			}
		}
		if got := disjoint(peers) != nil; got != want {
			t.Fatalf("seed %d: overlap found %v, every pair says %v: %v", seed, got, want, peers)
		}
		if want {
			overlaps++
		}
	}
	if overlaps == 0 || overlaps == 5000 {
		t.Fatalf("%d of 5000 overlapped: the test says nothing", overlaps)
	}
}
