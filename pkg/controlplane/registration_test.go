package controlplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// twoClusters is east with n1 to n3, and west with n1.
func twoClusters(t *testing.T, change ...func(*Options)) *plane {
	t.Helper()
	p := newPlane(t, change...)
	p.put("A", declare("east", "10.1.0.0/16"), "n1", "n2", "n3")
	p.put("B", declare("west", "10.2.0.0/16"), "n1")
	p.tell()
	return p
}

func expect(t *testing.T, err error, code codes.Code, says string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("got %v, want %v: %s", err, code, says)
	}
}

func TestRegistrationMakesAPeer(t *testing.T) {
	p := twoClusters(t)
	addrs, refused, err := p.join("west/n1")
	if err != nil || fmt.Sprint(addrs, refused) != "[198.19.0.1 fd19::1] []" {
		t.Fatalf("got %v %v %v", addrs, refused, err)
	}
	if got := p.peersOf("east"); got != "west/n1" {
		t.Errorf("east's peers: %s", got)
	}
	if got := p.peersOf("west"); got != "" {
		t.Errorf("west's peers: %s", got)
	}
	p.mustJoin("east/n1", "east/n3")
	if got := p.peersOf("west"); got != "east/n1 east/n3" {
		t.Errorf("west's peers: %s", got)
	}

	// The same again is nothing new, and gives the same addresses.
	before := content(p.cache)
	again, _, err := p.join("west/n1")
	if err != nil || !slices.Equal(again, addrs) || differences(before, content(p.cache)) != "" {
		t.Errorf("again: %v %v", again, err)
	}
	// A restart gives them too, and with the same versions.
	p.restart()
	if again, _, err = p.join("west/n1"); status.Code(err) != codes.Unavailable {
		t.Errorf("before the sources are read: %v %v", again, err)
	}
	p.tell()
	if again, _, err = p.join("west/n1"); err != nil || !slices.Equal(again, addrs) {
		t.Errorf("after a restart: %v %v", again, err)
	}
	if d := differences(before, content(p.cache)); d != "" {
		t.Error(d)
	}

	// With the node goes its registration, and its addresses are free again.
	p.put("B", declare("west", "10.2.0.0/16"), "n2")
	p.tell()
	if err := p.turn1(func(l *loop) error { _, err := l.confirm("west"); return err }); err != nil {
		t.Fatal(err)
	}
	if got := p.peersOf("east"); got != "" || p.pool.AllocateExact(addrs[0]) != nil {
		t.Errorf("still there: %q", got)
	}
}

func TestRegistrationRefused(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1")
	before := content(p.cache)
	_, _, err := p.join("north/n1")
	expect(t, err, codes.FailedPrecondition, "cluster north is not known to the control plane: declare it first")
	_, _, err = p.join("east/n9")
	expect(t, err, codes.FailedPrecondition, "node east/n9 is not in A")
	_, _, err = p.join("west/n1", func(r *peering.Registration) { r.Key = keyOf("east/n1") })
	expect(t, err, codes.AlreadyExists, "is already that of east/n1")
	if d := differences(before, content(p.cache)); d != "" || len(p.registrations) != 1 || p.pool.Free(mesh.IPv4) != 65533 {
		t.Errorf("something stayed behind: %s, %d free", d, p.pool.Free(mesh.IPv4))
	}
	// A key is free once its node has gone.
	p.put("A", declare("east", "10.1.0.0/16"), "n2", "n3")
	p.tell()
	if _, _, err = p.join("west/n1", func(r *peering.Registration) { r.Key = keyOf("east/n1") }); err != nil {
		t.Error(err)
	}
}

func TestNewKeyBeginsANewRegistration(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("west/n1")
	first := p.registrations[id("west/n1")]
	p.clock = p.clock.Add(time.Hour)
	if _, _, err := p.join("west/n1", func(r *peering.Registration) { r.Version = "v2" }); err != nil {
		t.Fatal(err)
	}
	if r := p.registrations[id("west/n1")]; !r.Registered.Equal(first.Registered) || r.Version != "v2" {
		t.Errorf("got %+v", r)
	}
	addrs, _, err := p.join("west/n1", func(r *peering.Registration) { r.Key = keyOf("new") })
	if err != nil || !slices.Equal(addrs, first.TunnelAddrs) {
		t.Errorf("got %v, %v", addrs, err)
	}
	if r := p.registrations[id("west/n1")]; !r.Registered.After(first.Registered) || r.Key != keyOf("new") {
		t.Errorf("got %+v", r)
	}
	peer, err := xds.ParsePeer(p.cache.Resources(peerSet("east"))["west/n1"])
	if err != nil || peer.Key != keyOf("new") {
		t.Errorf("got %v, %v", peer, err)
	}
}

func TestEndpointCandidates(t *testing.T) {
	p := newPlane(t)
	east := declare("east", "10.1.0.0/16")
	east.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}
	east.NodeCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
	p.put("A", east, "n1")
	p.tell()
	addrs, refused, err := p.join("east/n1", func(r *peering.Registration) {
		for _, s := range []string{
			"203.0.113.7:51830", "203.0.113.7:51830", "192.168.1.99:51830", "[2001:db8::1]:1",
			"10.1.7.7:51830", "10.100.0.1:51830", "198.19.3.3:51830", "[fd19::5]:51830",
			"127.0.0.1:51830", "[fe80::1]:51830", "[fe80::1%eth0]:51830", "224.0.0.1:1", "0.0.0.0:51830", "203.0.113.8:0",
		} {
			r.Endpoints = append(r.Endpoints, netip.MustParseAddrPort(s))
		}
	})
	if err != nil || len(addrs) != 2 {
		t.Fatal(addrs, err)
	}
	want := []string{
		"10.1.7.7:51830 lies in the pod range 10.1.0.0/16 of east",
		"10.100.0.1:51830 lies in the service range 10.96.0.0/12 of east",
		"198.19.3.3:51830 lies in the tunnel range 198.19.0.0/16 of the mesh",
		"[fd19::5]:51830 lies in the tunnel range fd19::/64 of the mesh",
		"127.0.0.1:51830: 127.0.0.1 lies in 127.0.0.0/8, which cannot be reached from another node",
		"[fe80::1]:51830: fe80::1 lies in fe80::/10, which cannot be reached from another node",
		"[fe80::1%eth0]:51830: fe80::1%eth0: an address in the mesh has no zone",
		"224.0.0.1:1: 224.0.0.1 lies in 224.0.0.0/3, which cannot be reached from another node",
		"0.0.0.0:51830: 0.0.0.0 lies in 0.0.0.0/8, which cannot be reached from another node",
		"203.0.113.8:0: port 0",
	}
	if got := strings.Join(refused, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("refused:\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	endpoints := func() string {
		n, _ := p.topology.Node(id("east/n1"))
		return fmt.Sprint(n.Endpoints)
	}
	// Kubernetes' own address comes last.
	if got := endpoints(); got != "[203.0.113.7:51830 192.168.1.99:51830 [2001:db8::1]:1 192.168.1.1:51830]" {
		t.Errorf("endpoints: %s", got)
	}
	// A claim that comes later is looked at too, and one that goes.
	p.put("B", declare("west", "203.0.113.0/24"))
	p.tell()
	if got := endpoints(); got != "[192.168.1.99:51830 [2001:db8::1]:1 192.168.1.1:51830]" {
		t.Errorf("endpoints: %s", got)
	}
	p.put("B", declare("west", "10.2.0.0/16"))
	p.tell()
	if got := endpoints(); got != "[203.0.113.7:51830 192.168.1.99:51830 [2001:db8::1]:1 192.168.1.1:51830]" {
		t.Errorf("endpoints: %s", got)
	}
}

// What Kubernetes says is the node's own address may lie in anybody's range: that
// is where the node is.
func TestOwnAddressMayLieAnywhere(t *testing.T) {
	p := newPlane(t)
	p.put("A", declare("east", "10.1.0.0/16"), "n1")
	p.put("B", declare("west", "192.168.0.0/16"))
	p.tell()
	_, refused, err := p.join("east/n1", func(r *peering.Registration) {
		r.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("192.168.1.1:40000"), netip.MustParseAddrPort("192.168.1.2:40000")}
	})
	if err != nil || len(refused) != 1 {
		t.Fatal(refused, err)
	}
	n, _ := p.topology.Node(id("east/n1"))
	if got := fmt.Sprint(n.Endpoints); got != "[192.168.1.1:40000 192.168.1.1:51830]" {
		t.Errorf("endpoints: %s", got)
	}
}

func TestExhaustionHarmsNobody(t *testing.T) {
	p := twoClusters(t, func(o *Options) { o.TunnelRanges = []netip.Prefix{netip.MustParsePrefix("198.19.0.0/30")} }) // two addresses
	p.mustJoin("east/n1", "east/n2")
	before := content(p.cache)
	for range 3 {
		_, _, err := p.join("west/n1")
		expect(t, err, codes.ResourceExhausted, "no tunnel address for west/n1")
	}
	if d := differences(before, content(p.cache)); d != "" {
		t.Error(d)
	}
	p.mustJoin("east/n1", "east/n2") // those that are there go on
	p.put("A", declare("east", "10.1.0.0/16"), "n1", "n3")
	p.tell()
	p.mustJoin("west/n1") // n2 has left its place
}

// Where one family is exhausted what was taken of the other is given back.
func TestExhaustionOfOneFamily(t *testing.T) {
	p := twoClusters(t, func(o *Options) {
		o.TunnelRanges = []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("fd19::/126")}
	})
	p.mustJoin("east/n1", "east/n2")
	_, _, err := p.join("west/n1")
	expect(t, err, codes.ResourceExhausted, "fd19::/126")
	if free := p.pool.Free(mesh.IPv4); free != 65534-2 {
		t.Errorf("%d IPv4 addresses are free", free)
	}
}

func TestWishedAddresses(t *testing.T) {
	wish := func(addrs ...string) func(*peering.Registration) {
		return func(r *peering.Registration) {
			for _, a := range addrs {
				r.TunnelAddrs = append(r.TunnelAddrs, netip.MustParseAddr(a))
			}
		}
	}
	for name, c := range map[string]struct {
		wish []string
		want string
	}{
		"what it held":             {[]string{"198.19.7.7", "fd19::77"}, "[198.19.7.7 fd19::77]"},
		"in any order":             {[]string{"fd19::77", "198.19.7.7"}, "[198.19.7.7 fd19::77]"},
		"one of them is taken":     {[]string{"198.19.0.1", "fd19::77"}, "[198.19.0.2 fd19::77]"},
		"the first one that may":   {[]string{"198.19.0.1", "198.19.9.9"}, "[198.19.9.9 fd19::2]"},
		"of another range":         {[]string{"10.0.0.1", "fd20::1"}, "[198.19.0.2 fd19::2]"},
		"the range's own":          {[]string{"198.19.0.0", "198.19.255.255"}, "[198.19.0.2 fd19::2]"},
		"IPv4 in IPv6":             {[]string{"::ffff:198.19.7.7"}, "[198.19.0.2 fd19::2]"},
		"with a zone":              {[]string{"fd19::77%eth0"}, "[198.19.0.2 fd19::2]"},
		"beyond what is given out": {[]string{"fd19::1:0:0:1"}, "[198.19.0.2 fd19::2]"},
	} {
		t.Run(name, func(t *testing.T) {
			p := twoClusters(t)
			p.mustJoin("east/n1") // .1
			addrs, _, err := p.join("west/n1", wish(c.wish...))
			if err != nil || fmt.Sprint(addrs) != c.want {
				t.Errorf("got %v, %v, want %s", addrs, err, c.want)
			}
			// A wish changes nothing for who has addresses already.
			if again, _, err := p.join("west/n1", wish("198.19.8.8")); err != nil || !slices.Equal(again, addrs) {
				t.Errorf("again: %v, %v", again, err)
			}
		})
	}
}

// The store is lost; agents come back in any order with what they held, and the
// mesh is as it was.
func TestLostStore(t *testing.T) {
	p := twoClusters(t)
	nodes := []string{"east/n1", "east/n2", "east/n3", "west/n1"}
	p.mustJoin(nodes...)
	before := content(p.cache)
	held := map[string][]netip.Addr{}
	for _, n := range nodes {
		held[n] = p.registrations[id(n)].TunnelAddrs
	}
	q := twoClusters(t)
	slices.Reverse(nodes)
	for _, n := range nodes {
		if _, _, err := q.join(n, func(r *peering.Registration) { r.TunnelAddrs = held[n] }); err != nil {
			t.Fatal(err)
		}
	}
	if d := differences(before, content(q.cache)); d != "" {
		t.Error(d)
	}
}

func TestMayJoin(t *testing.T) {
	for name, c := range map[string]struct {
		do func(t *testing.T, p *plane)
		ok bool
	}{
		"nobody has registered":         {func(*testing.T, *plane) {}, true},
		"another node has":              {func(_ *testing.T, p *plane) { p.mustJoin("east/n2") }, true},
		"the same key":                  {func(_ *testing.T, p *plane) { p.joinAs("east/n1", keyOf("new")) }, true},
		"another key":                   {func(_ *testing.T, p *plane) { p.mustJoin("east/n1") }, false},
		"not seen since the start":      {func(_ *testing.T, p *plane) { p.mustJoin("east/n1"); p.after(takeoverAfter) }, false},
		"nor for a while after":         {func(_ *testing.T, p *plane) { p.mustJoin("east/n1"); p.after(takeoverAfter + 1) }, true},
		"its agent is there, long past": {func(t *testing.T, p *plane) { p.mustJoin("east/n1"); p.attach("east/n1"); p.after(time.Hour) }, false},
		"its agent has just gone": {func(t *testing.T, p *plane) {
			p.mustJoin("east/n1")
			s := p.attach("east/n1")
			p.after(time.Hour)
			p.close(s)
			p.after(takeoverAfter)
		}, false},
		"its agent has gone": {func(t *testing.T, p *plane) {
			p.mustJoin("east/n1")
			s := p.attach("east/n1")
			p.after(time.Hour)
			p.close(s)
			p.after(takeoverAfter + 1)
		}, true},
		"a control plane that has just started knows of nobody's end": {func(t *testing.T, p *plane) {
			p.mustJoin("east/n1")
			p.after(time.Hour)
			p.restart()
			p.tell()
		}, false},
		"the node has gone and come": {func(t *testing.T, p *plane) {
			p.mustJoin("east/n1")
			p.put("A", declare("east", "10.1.0.0/16"), "n2", "n3")
			p.tell()
			p.put("A", declare("east", "10.1.0.0/16"), "n1", "n2", "n3")
			p.tell()
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := twoClusters(t)
			c.do(t, p)
			svc := &service{loop: p.loop}
			stop := p.background()
			defer stop()
			err := svc.MayJoin(t.Context(), id("east/n1"), keyOf("new"))
			if c.ok && err != nil {
				t.Error(err)
			}
			if !c.ok {
				expect(t, err, codes.PermissionDenied, "controlplane token create --cluster east --node n1")
			}
		})
	}
}

func (p *plane) joinAs(node string, key mesh.PublicKey) {
	p.t.Helper()
	if _, _, err := p.join(node, func(r *peering.Registration) { r.Key = key }); err != nil {
		p.t.Fatal(err)
	}
}
