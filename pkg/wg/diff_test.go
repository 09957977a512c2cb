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

var at = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func key(n byte) mesh.PublicKey { return mesh.PublicKey{n} }

func TestDiff(t *testing.T) {
	private := newKey(t)
	base := Desired{PrivateKey: private, ListenPort: 51830, FirewallMark: 0x5746}
	want := func(peers ...Peer) Desired { d := base; d.Peers = peers; return d }
	have := func(peers ...ActualPeer) Actual {
		return Actual{PublicKey: private.PublicKey(), HasKey: true, ListenPort: 51830, FirewallMark: 0x5746, Peers: peers, At: at}
	}
	one := addrPort("192.0.2.1:51830")
	two := addrPort("192.0.2.2:51830")
	p := func(n byte, allowed ...string) Peer {
		return Peer{Name: fmt.Sprintf("east/n%d", n), Key: key(n), Candidates: []netip.AddrPort{one}, AllowedIPs: prefixes(allowed...), Keepalive: 25 * time.Second}
	}
	a := func(n byte, allowed ...string) ActualPeer {
		return ActualPeer{Key: key(n), Endpoint: one, LastHandshake: at.Add(-time.Minute), AllowedIPs: prefixes(allowed...), Keepalive: 25 * time.Second}
	}
	with := func(p Peer, f func(*Peer)) Peer { f(&p); return p }

	for name, x := range map[string]struct {
		actual  Actual
		desired Desired
		want    []string
	}{
		"new device": {Actual{At: at}, want(p(1, "10.1.0.0/24")), []string{
			"set private key (public key " + private.PublicKey().String() + ")",
			"set firewall mark 0x5746",
			"set listen port 51830 (was 0)",
			"add peer east/n1 (K1) endpoint 192.0.2.1:51830 allowed IPs [10.1.0.0/24] keepalive 25s",
		}},
		"equal": {have(a(1, "10.1.0.0/24"), a(2, "10.2.0.0/24")), want(p(1, "10.1.0.0/24"), p(2, "10.2.0.0/24")), nil},
		"key":   {Actual{PublicKey: key(9), HasKey: true, ListenPort: 51830, FirewallMark: 0x5746, At: at}, base, []string{"set private key (public key " + private.PublicKey().String() + ")"}},
		"port":  {Actual{PublicKey: private.PublicKey(), HasKey: true, ListenPort: 4711, FirewallMark: 0x5746, At: at}, base, []string{"set listen port 51830 (was 4711)"}},
		"mark":  {Actual{PublicKey: private.PublicKey(), HasKey: true, ListenPort: 51830, FirewallMark: 1, At: at}, base, []string{"set firewall mark 0x5746"}},
		"add before remove": {have(a(9, "10.9.0.0/24")), want(p(1, "10.1.0.0/24")), []string{
			"add peer east/n1 (K1) endpoint 192.0.2.1:51830 allowed IPs [10.1.0.0/24] keepalive 25s",
			"remove peer K9",
		}},
		"update before remove": {have(a(1, "10.1.0.0/24"), a(2)), want(with(p(2), func(p *Peer) { p.Keepalive = 0 })), []string{
			"update peer east/n2 (K2) keepalive 0s",
			"remove peer K1",
		}},
		"a prefix more":          {have(a(1, "10.1.0.0/24")), want(p(1, "10.1.0.0/24", "10.1.1.0/24")), []string{"update peer east/n1 (K1) more allowed IPs [10.1.1.0/24]"}},
		"a prefix less":          {have(a(1, "10.1.0.0/24", "10.1.1.0/24")), want(p(1, "10.1.0.0/24")), []string{"update peer east/n1 (K1) allowed IPs [10.1.0.0/24]"}},
		"the last prefix":        {have(a(1, "10.1.0.0/24")), want(p(1)), []string{"update peer east/n1 (K1) allowed IPs []"}},
		"moves to a later peer":  {have(a(1, "10.1.0.0/24", "10.2.0.0/24"), a(2)), want(p(1, "10.1.0.0/24"), p(2, "10.2.0.0/24")), []string{"update peer east/n2 (K2) more allowed IPs [10.2.0.0/24]"}},
		"moves to an earlier":    {have(a(1), a(2, "10.1.0.0/24", "10.2.0.0/24")), want(p(1, "10.1.0.0/24"), p(2, "10.2.0.0/24")), []string{"update peer east/n1 (K1) more allowed IPs [10.1.0.0/24]"}},
		"two peers swap":         {have(a(1, "10.2.0.0/24"), a(2, "10.1.0.0/24")), want(p(1, "10.1.0.0/24"), p(2, "10.2.0.0/24")), []string{"update peer east/n1 (K1) more allowed IPs [10.1.0.0/24]", "update peer east/n2 (K2) more allowed IPs [10.2.0.0/24]"}},
		"moves from one removed": {have(a(1, "10.1.0.0/24"), a(2)), want(p(2, "10.1.0.0/24")), []string{"update peer east/n2 (K2) more allowed IPs [10.1.0.0/24]", "remove peer K1"}},
		"a node's key changes": {have(a(1, "10.1.0.0/24")), want(p(2, "10.1.0.0/24")), []string{
			"add peer east/n2 (K2) endpoint 192.0.2.1:51830 allowed IPs [10.1.0.0/24] keepalive 25s", "remove peer K1",
		}},
		"rotate":                     {have(a(1)), want(with(p(1), func(p *Peer) { p.Candidates = []netip.AddrPort{one, two}; p.Rotate = true })), []string{"update peer east/n1 (K1) endpoint 192.0.2.2:51830"}},
		"new candidates, still good": {have(a(1)), want(with(p(1), func(p *Peer) { p.Candidates = []netip.AddrPort{two} })), nil},
		"no candidates":              {have(), want(with(p(1), func(p *Peer) { p.Candidates = nil })), []string{"add peer east/n1 (K1) allowed IPs [] keepalive 25s"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := x.desired.Validate(); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, op := range Diff(x.actual, x.desired) {
				s := op.String()
				for n := range byte(10) {
					s = strings.ReplaceAll(s, key(n).String(), fmt.Sprintf("K%d", n))
				}
				got = append(got, s)
			}
			if !slices.Equal(got, x.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(x.want, "\n  "))
			}
			after := modelApply(x.actual, Diff(x.actual, x.desired))
			if rest := Diff(after, x.desired); len(rest) > 0 {
				t.Errorf("not the end: %v", rest)
			}
		})
	}
}

// modelApply does to a value what WireGuard does to a device, with each prefix
// held by one peer alone.
func modelApply(a Actual, ops []Op) Actual {
	peers := map[mesh.PublicKey]ActualPeer{}
	for _, p := range a.Peers {
		peers[p.Key] = p
	}
	for _, op := range ops {
		p, known := peers[op.Key]
		switch op.Kind {
		case SetPrivateKey:
			a.HasKey, a.PublicKey = true, op.PrivateKey.PublicKey()
			delete(peers, a.PublicKey)
			continue
		case SetFirewallMark:
			a.FirewallMark = op.FirewallMark
			continue
		case SetListenPort:
			a.ListenPort = op.ListenPort
			continue
		case RemovePeer:
			delete(peers, op.Key)
			continue
		case UpdatePeer:
			if !known {
				continue
			}
		case AddPeer:
		}
		p.Key = op.Key
		if op.Endpoint.IsValid() {
			p.Endpoint, p.EndpointSince = op.Endpoint, a.At
		}
		if op.Keepalive != nil {
			p.Keepalive = *op.Keepalive
		}
		if op.ReplaceAllowedIPs {
			p.AllowedIPs = nil
		}
		for _, q := range op.AllowedIPs {
			for k, other := range peers {
				other.AllowedIPs = slices.DeleteFunc(slices.Clone(other.AllowedIPs), func(r netip.Prefix) bool { return q == r })
				peers[k] = other
			}
			p.AllowedIPs = append(slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(r netip.Prefix) bool { return q == r }), q)
		}
		slices.SortFunc(p.AllowedIPs, mesh.ComparePrefix)
		peers[op.Key] = p
	}
	a.Peers = nil
	for _, p := range peers {
		a.Peers = append(a.Peers, p)
	}
	slices.SortFunc(a.Peers, func(p, q ActualPeer) int { return compareKey(p.Key, q.Key) })
	return a
}

// randomDesired deals prefixes and endpoints to a few peers, out of pools so
// small that everything moves to and fro.
func randomDesired(r *rand.Rand, private PrivateKey, ports []uint16) Desired {
	d := Desired{PrivateKey: private, ListenPort: ports[r.IntN(len(ports))], FirewallMark: uint32(r.IntN(2)) * 0x5746}
	for n := byte(1); n <= 8; n++ {
		if r.IntN(3) == 0 {
			continue
		}
		p := Peer{Name: fmt.Sprintf("east/n%d", n), Key: key(n), Keepalive: time.Duration(r.IntN(2)*25) * time.Second, Rotate: r.IntN(4) == 0}
		for i := range r.IntN(4) {
			p.Candidates = append(p.Candidates, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))}), uint16(1+i)))
		}
		d.Peers = append(d.Peers, p)
	}
	for i := range byte(20) {
		if len(d.Peers) == 0 || r.IntN(4) == 0 {
			continue
		}
		q := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, i, 0}), 24)
		if i%4 == 0 {
			q = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 1, 2, i}), 32)
		}
		p := &d.Peers[r.IntN(len(d.Peers))]
		p.AllowedIPs = append(p.AllowedIPs, q)
	}
	for i := range d.Peers {
		slices.SortFunc(d.Peers[i].AllowedIPs, mesh.ComparePrefix)
	}
	return d
}

// checkHolds compares what a device holds with what was desired, by itself and
// not by Diff, so that a difference that Diff does not see shows.
func checkHolds(a Actual, d Desired) error {
	if a.PublicKey != d.PrivateKey.PublicKey() || a.ListenPort != d.ListenPort || a.FirewallMark != d.FirewallMark || len(a.Peers) != len(d.Peers) {
		return fmt.Errorf("device holds key %v port %d mark %d and %d peers", a.PublicKey, a.ListenPort, a.FirewallMark, len(a.Peers))
	}
	for i, p := range d.Peers {
		got := a.Peers[i]
		if got.Key != p.Key || !slices.Equal(got.AllowedIPs, p.AllowedIPs) || got.Keepalive != p.Keepalive {
			return fmt.Errorf("device holds %+v, want %+v", got, p)
		}
		if len(p.Candidates) > 0 && !slices.Contains(p.Candidates, got.Endpoint) {
			return fmt.Errorf("peer %s has endpoint %v, which is none of %v", p.Name, got.Endpoint, p.Candidates)
		}
	}
	return nil
}

func TestRandomWalk(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	keys := []PrivateKey{newKey(t), newKey(t)}
	a := Actual{At: at}
	for step := range 1000 {
		d := randomDesired(r, keys[r.IntN(len(keys))], []uint16{51830, 51831})
		if err := d.Validate(); err != nil {
			t.Fatalf("seed %d step %d: %v", seed, step, err)
		}
		ops := Diff(a, d)
		// An apply that was cut off in the middle leads to the same end.
		if r.IntN(3) == 0 {
			a = modelApply(a, ops[:r.IntN(len(ops)+1)])
			ops = Diff(a, d)
		}
		// A replaced set drops packets for an instant: never without need.
		for _, op := range ops {
			if have, ok := a.Peer(op.Key); ok && op.ReplaceAllowedIPs {
				if !slices.ContainsFunc(have.AllowedIPs, func(q netip.Prefix) bool { return !claimed(d, q) }) {
					t.Fatalf("seed %d step %d: %v replaces %v for nothing", seed, step, op, have.AllowedIPs)
				}
			}
		}
		a = modelApply(a, ops)
		if err := checkHolds(a, d); err != nil {
			t.Fatalf("seed %d step %d: %v\nafter %v", seed, step, err, ops)
		}
		if rest := Diff(a, d); len(rest) > 0 {
			t.Fatalf("seed %d step %d: not the end: %v", seed, step, rest)
		}
		a.At = a.At.Add(time.Duration(r.IntN(20)) * time.Second)
	}
}

func claimed(d Desired, q netip.Prefix) bool {
	return slices.ContainsFunc(d.Peers, func(p Peer) bool { return slices.Contains(p.AllowedIPs, q) })
}
