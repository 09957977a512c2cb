package gateway

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func addrs(n int) []netip.AddrPort {
	var all []netip.AddrPort
	for i := range n {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80))
	}
	return all
}

var noon = time.Unix(1_800_000_000, 0)

func TestRoutes(t *testing.T) {
	g := New(Options{})
	has := func(sni string) int {
		if s := g.routes.find(sni); s != nil {
			return len(s.backends)
		}
		return -1
	}
	check := func(want map[string]int) {
		t.Helper()
		for sni, n := range want {
			if got := has(sni); got != n {
				t.Errorf("%s: %d pods, want %d (-1: unknown)", sni, got, n)
			}
		}
	}
	g.SetRoutes(Routes{"A.demo.": addrs(2), "b.demo": nil})
	check(map[string]int{"a.demo": 2, "A.DEMO": 2, "a.demo.": 2, "a.demo..": -1, "b.demo": 0, "c.demo": -1, "": -1})
	g.Set("c.demo", addrs(1))
	g.Remove("B.demo")
	g.Remove("never.demo")
	check(map[string]int{"a.demo": 2, "b.demo": -1, "c.demo": 1})
	g.SetRoutes(Routes{"c.demo": addrs(3)})
	check(map[string]int{"a.demo": -1, "c.demo": 3})
	// Repeated, mapped and invalid addresses.
	g.Set("d.demo", []netip.AddrPort{
		netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"), netip.MustParseAddrPort("10.0.0.1:80"),
		netip.MustParseAddrPort("10.0.0.1:81"), netip.MustParseAddrPort("[fd00::1]:80"), netip.MustParseAddrPort("10.0.0.1:0"), {},
	})
	check(map[string]int{"d.demo": 3})
}

// A pod that stays keeps its connections and its failures; others come and go.
func TestRoutesKeepWhatIsKnown(t *testing.T) {
	var r table
	r.set("a", addrs(3))
	s := r.find("a")
	kept, gone := s.backends[0], s.backends[2]
	kept.begin(0)
	kept.failed(0, false, noon)
	r.replace(Routes{"a": {addrs(9)[8], kept.addr}})
	s = r.find("a")
	if len(s.backends) != 2 || s.backends[1] != kept || slices.Contains(s.backends, gone) {
		t.Error("the pod that stayed is not the one that was")
	}
}

// choices has a service choose n times, each for a connection that stays.
func choices(s *service, n int, now time.Time) map[netip.AddrPort]int {
	got := map[netip.AddrPort]int{}
	for range n {
		got[s.choose(now, nil).addr]++
	}
	return got
}

func TestChooseSpreads(t *testing.T) {
	var none *service
	// As many connections as pods: one each, which one HTTP/2 client on several
	// gateway ports lives by.
	for range 50 {
		if got := choices(none.with(addrs(4)), 4, noon); len(got) != 4 {
			t.Fatalf("4 connections went to %v", got)
		}
	}
	s := none.with(addrs(10))
	for addr, n := range choices(s, 1000, noon) {
		if n < 95 || n > 105 {
			t.Errorf("%v has %d of 1000 connections to 10 pods", addr, n)
		}
	}
	// A new pod catches up without getting everything.
	s = s.with(addrs(11))
	fresh := choices(s, 100, noon)[addrs(11)[10]]
	if fresh < 10 || fresh > 40 {
		t.Errorf("the new pod got %d of 100, want about twice its share of 9", fresh)
	}
}

// A pod that accepts and closes looks idle and must not draw every connection.
func TestChooseBlackHole(t *testing.T) {
	s := (*service)(nil).with(addrs(10))
	hole := s.backends[3]
	got := 0
	for range 1000 {
		if b := s.choose(noon, nil); b == hole {
			got++
			b.end()
		}
	}
	if got > 300 {
		t.Errorf("the pod that closes got %d of 1000, want about 200", got)
	}
}

func TestChooseTriesEachOnce(t *testing.T) {
	s := (*service)(nil).with(addrs(5))
	s.backends[1].failed(0, false, noon)
	s.backends[4].failed(0, false, noon)
	s.backends[4].failed(1, false, noon)
	for range 20 {
		var tried []*backend
		for b := s.choose(noon, tried); b != nil; b = s.choose(noon, tried) {
			if slices.Contains(tried, b) {
				t.Fatal("a pod was chosen twice")
			}
			tried = append(tried, b)
		}
		if len(tried) != 5 {
			t.Fatalf("%d pods were tried, want all 5", len(tried))
		}
		for _, b := range tried[:3] {
			if b.failures.Load() > 0 {
				t.Fatal("a pod that failed was chosen before one that did not")
			}
		}
	}
}

func TestRest(t *testing.T) {
	s := (*service)(nil).with(addrs(2))
	bad := s.backends[0]
	chosen := func(now time.Time) (n int) {
		for range 10 {
			b := s.choose(now, nil)
			if b == bad {
				n++
			}
			b.end()
		}
		return n
	}
	now := noon
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		want *= time.Second
		bad.failed(int32(i), false, now)
		bad.failed(int32(i), false, now) // at the same time: one failure
		if n := chosen(now.Add(want - 1)); n != 0 {
			t.Errorf("failure %d: chosen %d times within its rest of %v", i+1, n, want)
		}
		now = now.Add(want)
		if n := chosen(now); n != 1 {
			t.Errorf("failure %d: after its rest of %v it was chosen %d times, want one to try", i+1, want, n)
		}
	}
	bad.succeeded()
	if n := chosen(now); n < 4 {
		t.Errorf("after it accepted again it was chosen %d of 10 times", n)
	}
}

func BenchmarkChoose(b *testing.B) {
	s := (*service)(nil).with(addrs(1000))
	b.ReportAllocs()
	for b.Loop() {
		s.choose(noon, nil).end()
	}
}
