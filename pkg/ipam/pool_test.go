package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func prefixes(text string) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range strings.Fields(text) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

func pool(t testing.TB, ranges string) *Pool {
	t.Helper()
	p, err := New(prefixes(ranges))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func allocate(t testing.TB, p *Pool, f mesh.Family) string {
	t.Helper()
	a, err := p.Allocate(f)
	if err != nil {
		t.Fatal(err)
	}
	return a.String()
}

func TestNew(t *testing.T) {
	for _, tt := range []struct {
		ranges string
		v4, v6 int // free
		err    string
	}{
		{"", 0, 0, ""},
		{"198.19.0.0/16", 65534, 0, ""},
		{"198.19.0.0/30", 2, 0, ""},
		{"10.0.0.0/8", 1<<24 - 2, 0, ""},
		{"fd00:0:0:1::/64 198.19.0.0/24", 254, 65534, ""},
		{"fd00::/8", 0, 65534, ""},
		{"fd00::/112", 0, 65534, ""},
		{"fd00::/113", 0, 32766, ""},
		{"fd00::/126", 0, 2, ""},
		{"198.19.0.0/31", 0, 0, "198.19.0.0/31 has no room for nodes: want /30 or larger"},
		{"198.19.0.1/32", 0, 0, "no room"},
		{"fd00::/127", 0, 0, "fd00::/127 has no room for nodes: want /126 or larger"},
		{"fd00::/128", 0, 0, "no room"},
		{"198.19.0.1/16", 0, 0, "did you mean 198.19.0.0/16?"},
		{"::ffff:198.19.0.0/112", 0, 0, "write an IPv4 range in its own form"},
		{"169.254.0.0/16", 0, 0, "cannot be routed"},
		{"0.0.0.0/0", 0, 0, "cannot be routed"},
		{"198.18.0.0/16 198.19.0.0/16", 0, 0, "198.18.0.0/16 and 198.19.0.0/16: want at most one of IPv4"},
		{"fd00::/64 fd00::/64", 0, 0, "at most one of IPv6"},
	} {
		p, err := New(prefixes(tt.ranges))
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: error %v, want %q", tt.ranges, err, tt.err)
			}
		case err != nil:
			t.Errorf("%q: %v", tt.ranges, err)
		case p.Free(mesh.IPv4) != tt.v4 || p.Free(mesh.IPv6) != tt.v6:
			t.Errorf("%q: free %d and %d, want %d and %d", tt.ranges, p.Free(mesh.IPv4), p.Free(mesh.IPv6), tt.v4, tt.v6)
		}
	}
	if _, err := New([]netip.Prefix{{}}); err == nil {
		t.Error("no error for a range that is none")
	}
}

func TestAllocate(t *testing.T) {
	p := pool(t, "198.19.0.0/16 fd00:1:2:3::/64")
	for _, want := range []string{"198.19.0.1", "198.19.0.2", "198.19.0.3"} {
		if got := allocate(t, p, mesh.IPv4); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for _, want := range []string{"fd00:1:2:3::1", "fd00:1:2:3::2"} {
		if got := allocate(t, p, mesh.IPv6); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, err := pool(t, "198.19.0.0/16").Allocate(mesh.IPv6); err == nil || errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "no IPv6 tunnel range") {
		t.Errorf("a family with no range: %v", err)
	}
}

func TestReleasedAddressesComeLast(t *testing.T) {
	p := pool(t, "198.19.0.0/29") // .1 to .6
	for range 3 {
		allocate(t, p, mesh.IPv4)
	}
	p.Release(netip.MustParseAddr("198.19.0.3"))
	var got []string
	for range 4 {
		got = append(got, allocate(t, p, mesh.IPv4))
	}
	if want := []string{"198.19.0.4", "198.19.0.5", "198.19.0.6", "198.19.0.3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRestore(t *testing.T) {
	p := pool(t, "198.19.0.0/24")
	for _, a := range []string{"198.19.0.7", "198.19.0.2", "198.19.0.5"} {
		if err := p.AllocateExact(netip.MustParseAddr(a)); err != nil {
			t.Fatal(err)
		}
	}
	if got := allocate(t, p, mesh.IPv4); got != "198.19.0.8" {
		t.Errorf("after a restore the next is %s, want 198.19.0.8, behind all that were in use", got)
	}
	if got, want := p.Free(mesh.IPv4), 250; got != want {
		t.Errorf("free: %d, want %d", got, want)
	}
}

func TestAllocateExact(t *testing.T) {
	p := pool(t, "198.19.0.0/24 fd00::/48")
	for _, tt := range []struct {
		addr string
		want error
	}{
		{"198.19.0.1", nil},
		{"198.19.0.1", ErrTaken},
		{"198.19.0.254", nil},
		{"198.19.0.0", ErrOutsideRange},
		{"198.19.0.255", ErrOutsideRange},
		{"198.19.1.0", ErrOutsideRange},
		{"198.18.255.255", ErrOutsideRange},
		{"::ffff:198.19.0.9", ErrOutsideRange},
		{"fd00:0:0:1::", ErrOutsideRange},
		{"fd00:0:0:1::1", ErrOutsideRange}, // of /48, not of its first /112
		{"fd00::", ErrOutsideRange},
		{"fd00::1", nil},
		{"fd00::1", ErrTaken},
		{"fd00::1%eth0", ErrOutsideRange},
		{"fd00::fffe", nil},
		{"fd00::ffff", ErrOutsideRange},
		{"fd00::1:0", ErrOutsideRange},
		{"fd00:0:0:1::2", ErrOutsideRange}, // 2⁶⁴ behind fd00::2, which is free
	} {
		if err := p.AllocateExact(netip.MustParseAddr(tt.addr)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.addr, err, tt.want)
		}
	}
	if err := p.AllocateExact(netip.Addr{}); !errors.Is(err, ErrOutsideRange) {
		t.Errorf("no address: %v", err)
	}
	if got := p.Free(mesh.IPv4); got != 252 {
		t.Errorf("IPv4: %d free, want 252", got)
	}
	if got := p.Free(mesh.IPv6); got != 65532 {
		t.Errorf("IPv6: %d free, want 65532", got)
	}
}

func TestRelease(t *testing.T) {
	p := pool(t, "198.19.0.0/24 fd00::/48")
	for range 2 {
		allocate(t, p, mesh.IPv4)
		allocate(t, p, mesh.IPv6)
	}
	for _, a := range []string{"198.19.0.9", "198.19.0.0", "198.19.0.255", "10.0.0.1", "::ffff:198.19.0.1", "fd00:0:0:1::1", "fd01::1", "fd00::1%eth0"} {
		p.Release(netip.MustParseAddr(a))
	}
	p.Release(netip.Addr{})
	if p.Free(mesh.IPv4) != 252 || p.Free(mesh.IPv6) != 65532 {
		t.Errorf("releasing what was never handed out freed something: %d and %d", p.Free(mesh.IPv4), p.Free(mesh.IPv6))
	}
	for range 2 {
		p.Release(netip.MustParseAddr("198.19.0.1"))
		p.Release(netip.MustParseAddr("fd00::2"))
	}
	if p.Free(mesh.IPv4) != 253 || p.Free(mesh.IPv6) != 65533 {
		t.Errorf("free: %d and %d, want 253 and 65533", p.Free(mesh.IPv4), p.Free(mesh.IPv6))
	}
}

func TestExhausted(t *testing.T) {
	for _, tt := range []struct{ tunnel, spare, says string }{
		{"198.19.0.0/28", "198.19.0.5", "tunnel range 198.19.0.0/28: all 14 addresses are taken; restart the control plane with a larger --tunnel-cidr that contains this one, so that every node keeps its address: address range exhausted"},
		{"fd00::/124", "fd00::5", "larger --tunnel-cidr"},
		{"fd00::/64", "fd00::5", "tunnel range fd00::/64: all 65534 addresses are taken; no more are handed out of one IPv6 range; remove nodes that are gone: address range exhausted"},
	} {
		p := pool(t, tt.tunnel)
		spare := netip.MustParseAddr(tt.spare)
		f := mesh.FamilyOf(spare)
		seen := map[netip.Addr]bool{}
		for p.Free(f) > 0 {
			a, err := p.Allocate(f)
			if err != nil || seen[a] {
				t.Fatalf("%s: got %v a second time, or %v", tt.tunnel, a, err)
			}
			seen[a] = true
		}
		for range 2 {
			if _, err := p.Allocate(f); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v\nwant %s", tt.tunnel, err, tt.says)
			}
		}
		for a := range seen {
			if err := p.AllocateExact(a); !errors.Is(err, ErrTaken) {
				t.Fatalf("%s: %v is no longer taken: %v", tt.tunnel, a, err)
			}
		}
		p.Release(spare)
		if got := allocate(t, p, f); got != tt.spare {
			t.Errorf("%s: got %s, want the only free one, %s", tt.tunnel, got, tt.spare)
		}
	}
}

func TestMeshULA(t *testing.T) {
	// Fixed for ever: another value would renumber every mesh.
	if got, want := MeshULA("default"), netip.MustParsePrefix("fd84:54e5:c21d:21f4::/64"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	seen := map[netip.Prefix]bool{}
	for _, name := range []string{"", "default", "prod", "prod2", "Prod"} {
		p := MeshULA(name)
		if err := mesh.ValidatePrefix(p); err != nil {
			t.Error(err)
		}
		if p.Bits() != 64 || !netip.MustParsePrefix("fd00::/8").Contains(p.Addr()) {
			t.Errorf("%v is no /64 of fd00::/8", p)
		}
		if seen[p] {
			t.Errorf("%v for two names", p)
		}
		seen[p] = true
		if _, err := New([]netip.Prefix{p}); err != nil {
			t.Error(err)
		}
	}
}

// FuzzPool runs a Pool beside a plain set of addresses.
func FuzzPool(f *testing.F) {
	f.Add([]byte{0, 4, 8, 12, 3, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 5, 9, 13, 2, 6, 10, 0, 4, 3, 7, 1, 1, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		ranges := map[mesh.Family]netip.Prefix{
			mesh.IPv4: netip.MustParsePrefix("198.19.0.16/28"),
			mesh.IPv6: netip.MustParsePrefix("fd00::40/123"),
		}
		p, err := New([]netip.Prefix{ranges[mesh.IPv6], ranges[mesh.IPv4]})
		if err != nil {
			t.Fatal(err)
		}
		taken := map[netip.Addr]bool{}
		room := map[mesh.Family]int{mesh.IPv4: 14, mesh.IPv6: 30}
		usable := func(a netip.Addr) bool {
			r := ranges[mesh.FamilyOf(a)]
			return r.Contains(a) && r.Contains(a.Prev()) && r.Contains(a.Next())
		}
		for _, op := range ops {
			// An address in or around the range of its family.
			a, family := netip.AddrFrom4([4]byte{198, 19, 0, 12 + op>>3}), mesh.IPv4
			if op&4 != 0 {
				a, family = netip.AddrFrom16([16]byte{0: 0xfd, 15: 0x3c + op>>3}), mesh.IPv6
			}
			switch op & 3 {
			case 0, 1:
				got, err := p.Allocate(family)
				if room[family] == 0 {
					if !errors.Is(err, ErrExhausted) {
						t.Fatalf("allocated %v with nothing free: %v", got, err)
					}
					continue
				}
				if err != nil || taken[got] || !usable(got) || mesh.FamilyOf(got) != family {
					t.Fatalf("allocated %v (%v), taken %v", got, err, taken)
				}
				taken[got] = true
				room[family]--
			case 2:
				want := error(nil)
				switch {
				case !usable(a):
					want = ErrOutsideRange
				case taken[a]:
					want = ErrTaken
				default:
					taken[a] = true
					room[family]--
				}
				if err := p.AllocateExact(a); !errors.Is(err, want) {
					t.Fatalf("%v: %v, want %v", a, err, want)
				}
			case 3:
				p.Release(a)
				if taken[a] {
					delete(taken, a)
					room[family]++
				}
			}
			if p.Free(mesh.IPv4) != room[mesh.IPv4] || p.Free(mesh.IPv6) != room[mesh.IPv6] {
				t.Fatalf("free: %d and %d, want %v", p.Free(mesh.IPv4), p.Free(mesh.IPv6), room)
			}
		}
	})
}
