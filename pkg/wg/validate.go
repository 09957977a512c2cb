package wg

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// maxKeepalive is what WireGuard's 16-bit field of seconds can hold.
const maxKeepalive = 65535 * time.Second

// Validate reports everything that is wrong with what is desired, joined. Diff
// counts on it: a prefix that two peers claim would go back and forth for ever.
func (d Desired) Validate() error {
	var errs []error
	if d.PrivateKey.IsZero() {
		errs = append(errs, errors.New("no private key"))
	}
	if d.ListenPort == 0 {
		errs = append(errs, errors.New("no listen port: peers could not find the device after a restart"))
	}
	own := d.PrivateKey.PublicKey()
	for i, p := range d.Peers {
		if p.Key.IsZero() {
			errs = append(errs, fmt.Errorf("peer %s: no key", p.Name))
		}
		if p.Key == own {
			errs = append(errs, fmt.Errorf("peer %s has this device's own key %v", p.Name, p.Key))
		}
		if i > 0 {
			switch c := compareKey(d.Peers[i-1].Key, p.Key); {
			case c == 0:
				errs = append(errs, fmt.Errorf("peers %s and %s have the same key %v", d.Peers[i-1].Name, p.Name, p.Key))
			case c > 0:
				errs = append(errs, fmt.Errorf("peers are not sorted by key: %s comes before %s", d.Peers[i-1].Name, p.Name))
			}
		}
		if err := p.validate(); err != nil {
			errs = append(errs, fmt.Errorf("peer %s: %w", p.Name, err))
		}
	}
	if err := disjoint(d.Peers); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p Peer) validate() error {
	var errs []error
	for _, c := range p.Candidates {
		if !c.IsValid() || c.Port() == 0 || c.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("endpoint %v is not an address with a port", c))
		}
	}
	for i, q := range p.AllowedIPs {
		if !q.IsValid() || q != q.Masked() || q.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("allowed IPs %v is not a canonical range", q))
		}
		if i > 0 && mesh.ComparePrefix(p.AllowedIPs[i-1], q) >= 0 {
			errs = append(errs, fmt.Errorf("allowed IPs are not sorted, or twice the same: %v before %v", p.AllowedIPs[i-1], q))
		}
	}
	if p.Keepalive < 0 || p.Keepalive > maxKeepalive || p.Keepalive%time.Second != 0 {
		errs = append(errs, fmt.Errorf("keepalive %v: want whole seconds from 0 to 65535", p.Keepalive))
	}
	return errors.Join(errs...)
}

// disjoint checks that no two peers' AllowedIPs overlap. Sorted prefixes nest
// like brackets, so those that are open at one point contain each other, and
// the innermost stands for all of them.
func disjoint(peers []Peer) error {
	type owned struct {
		prefix netip.Prefix
		peer   string
		key    mesh.PublicKey
	}
	var all []owned
	for _, p := range peers {
		for _, q := range p.AllowedIPs {
			if q.IsValid() {
				all = append(all, owned{q, p.Name, p.Key})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b owned) int { return mesh.ComparePrefix(a.prefix, b.prefix) })
	var errs []error
	var open []owned
	for _, o := range all {
		for len(open) > 0 && !open[len(open)-1].prefix.Overlaps(o.prefix) {
			open = open[:len(open)-1]
		}
		if n := len(open); n > 0 && open[n-1].key != o.key {
			errs = append(errs, fmt.Errorf("allowed IPs %v of peer %s overlap %v of peer %s", o.prefix, o.peer, open[n-1].prefix, open[n-1].peer))
		}
		open = append(open, o)
	}
	return errors.Join(errs...)
}
