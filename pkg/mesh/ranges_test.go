package mesh

import (
	"net/netip"
	"strings"
	"testing"
)

func TestValidatePrefix(t *testing.T) {
	for _, c := range []struct{ in, why string }{
		{"10.1.0.0/16", ""},
		{"10.1.0.1/32", ""},
		{"100.64.0.0/10", ""},
		{"198.19.0.0/16", ""},
		{"fd00:1::/64", ""},
		{"2001:db8::1/128", ""},
		{"64:ff9b::/96", ""},

		{"10.1.0.1/16", "did you mean 10.1.0.0/16?"},
		{"fd00::1/64", "did you mean fd00::/64?"},
		{"::ffff:10.1.0.0/112", "write an IPv4 range in its own form"},
		{"0.0.0.0/0", "cannot be routed"},
		{"::/0", "cannot be routed"},
		{"0.0.0.0/8", "cannot be routed"},
		{"0.1.2.3/32", "cannot be routed"},
		{"126.0.0.0/7", "127.0.0.0/8"},
		{"127.0.0.1/32", "127.0.0.0/8"},
		{"169.254.169.254/32", "169.254.0.0/16"},
		{"224.0.0.0/4", "224.0.0.0/3"},
		{"255.255.255.255/32", "224.0.0.0/3"},
		{"128.0.0.0/1", "cannot be routed"},
		{"::1/128", "::/96"},
		{"::/64", "cannot be routed"},
		{"fe80::/64", "fe80::/10"},
		{"fe00::/8", "fe80::/10"},
		{"ff02::/16", "ff00::/8"},
		{"::fffe:0:0/95", "cannot be routed"},
	} {
		p := netip.MustParsePrefix(c.in)
		err := ValidatePrefix(p)
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%v: got %v, want %q", p, err, c.why)
		}
	}
	for _, p := range []netip.Prefix{{}, netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)} {
		if err := ValidatePrefix(p); err == nil {
			t.Errorf("%v is taken", p)
		}
	}
}

func TestValidateAddr(t *testing.T) {
	for in, ok := range map[string]bool{
		"10.1.0.1": true, "203.0.113.9": true, "fd00::1": true, "2001:db8::": true,
		"0.0.0.0": false, "127.0.0.1": false, "169.254.0.1": false, "224.0.0.1": false, "255.255.255.255": false, "0.1.2.3": false,
		"::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fd00::1%eth0": false, "ff02::1": false,
		"::ffff:10.1.0.1": false, "::10.1.0.1": false,
	} {
		if err := ValidateAddr(netip.MustParseAddr(in)); (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
	}
	if ValidateAddr(netip.Addr{}) == nil {
		t.Error("no address is taken for one")
	}
}

func TestFamilyOf(t *testing.T) {
	for in, want := range map[string]Family{"10.1.0.1": IPv4, "fd00::1": IPv6, "::ffff:10.1.0.1": IPv6} {
		if got := FamilyOf(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: got %v", in, got)
		}
	}
	for f, bits := range map[Family]int{IPv4: 32, IPv6: 128} {
		if f.Bits() != bits {
			t.Errorf("%v has %d bits", f, f.Bits())
		}
	}
	if got := HostPrefix(netip.MustParseAddr("fd00::1")).String() + HostPrefix(netip.MustParseAddr("10.0.0.1")).String(); got != "fd00::1/12810.0.0.1/32" {
		t.Error(got)
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestClusterValidate(t *testing.T) {
	good := Cluster{
		Name: "east", Network: "vpc-1",
		PodCIDRs: prefixes("10.1.0.0/16", "fd00:1::/48"), ServiceCIDRs: prefixes("10.96.0.0/12"), NodeCIDRs: prefixes("192.168.0.0/24"),
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := Cluster{
		Name: "East", PodCIDRs: prefixes("10.1.0.0/16", "10.1.128.0/17", "10.2.0.1/16"),
		ServiceCIDRs: []netip.Prefix{{}}, NodeCIDRs: prefixes("0.0.0.0/0"),
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{
		`cluster name "East"`, `network: cluster name ""`, "podCIDRs[1]: 10.1.128.0/17 overlaps podCIDRs[0] 10.1.0.0/16",
		"podCIDRs[2]: 10.2.0.1/16 has bits", "serviceCIDRs[0]: not an address range", "nodeCIDRs[0]: 0.0.0.0/0 covers",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not told: %s; told:\n%v", want, err)
		}
	}
}

func TestClusterEqual(t *testing.T) {
	a := Cluster{Name: "east", Network: "east", PodCIDRs: prefixes("10.1.0.0/16"), ServiceCIDRs: prefixes("10.96.0.0/12"), NodeCIDRs: prefixes("192.168.0.0/24")}
	if !a.Equal(a) {
		t.Error("differs from itself")
	}
	for i, change := range []func(*Cluster){
		func(c *Cluster) { c.Name = "west" }, func(c *Cluster) { c.Network = "x" },
		func(c *Cluster) { c.PodCIDRs = nil }, func(c *Cluster) { c.ServiceCIDRs = nil }, func(c *Cluster) { c.NodeCIDRs = nil },
	} {
		b := a
		if change(&b); a.Equal(b) || b.Equal(a) {
			t.Errorf("change %d goes unnoticed", i)
		}
	}
}
