package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string][]uint16{
		"":            nil,
		"15443":       {15443},
		"15443-15446": {15443, 15444, 15445, 15446},
		"7-7":         {7},
		"80,90-91":    {80, 90, 91},
		"65535":       {65535},
		"65534-65535": {65534, 65535},
	} {
		if got, err := parsePorts(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "0-3", "65536", "-1", "1-", "-", ",", "1,", "1,,2", "2-1", "80,80", "1-3,2", "a", " 80", "80-90-100", "+80"} {
		if got, err := parsePorts(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func goodOptions() options {
	return options{
		cluster: "east", name: "gw", controlPlane: "mesh:15012", addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10")},
		ports: []uint16{15443, 15444}, standby: []uint16{15447}, maxConnections: 1,
		helloTimeout: time.Second, connectTimeout: time.Second, idleTimeout: time.Second,
	}
}

func TestValidate(t *testing.T) {
	if err := goodOptions().validate(); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*options){
		"--cluster, --name":       func(o *options) { o.cluster = "" },
		"gateway name":            func(o *options) { o.name = "a/b" },
		"--control-plane":         func(o *options) { o.controlPlane = "mesh" },
		`--control-plane ":1"`:    func(o *options) { o.controlPlane = ":1" },
		"--address: 127.0.0.1":    func(o *options) { o.addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"--address: 17 are given": func(o *options) { o.addresses = slices.Repeat(o.addresses, 17) },
		"--ports: want":           func(o *options) { o.ports = nil },
		"15444 is in --ports too": func(o *options) { o.standby = []uint16{15444} },
		"256 is the limit":        func(o *options) { o.ports, _ = parsePorts("1-256") },
		"--drain-time":            func(o *options) { o.drainTime = -1 },
		"--drain-delay":           func(o *options) { o.drainDelay = -1 },
		"--max-connections 0":     func(o *options) { o.maxConnections = 0 },
		"--idle-timeout":          func(o *options) { o.idleTimeout = 0 },
	} {
		o := goodOptions()
		change(&o)
		if err := o.validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for listen, want := range map[string]string{
		"":                    ":15443 :15444 :15447",
		"0.0.0.0":             ":15443 :15444 :15447",
		"::,192.0.2.1":        ":15443 :15444 :15447",
		"192.0.2.1,::1":       "192.0.2.1:15443 192.0.2.1:15444 192.0.2.1:15447 [::1]:15443 [::1]:15444 [::1]:15447",
		"::ffff:192.0.2.1":    "192.0.2.1:15443 192.0.2.1:15444 192.0.2.1:15447",
		"192.0.2.1,192.0.2.1": "192.0.2.1:15443 192.0.2.1:15444 192.0.2.1:15447",
	} {
		o := goodOptions()
		var err error
		if listen != "" {
			if o.listen, err = parseAddrs(strings.Split(listen, ",")); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(o.endpoints(), " "); got != want {
			t.Errorf("%q: %s, want %s", listen, got, want)
		}
	}
	if got, err := parseAddrs([]string{"gw.example"}); err == nil {
		t.Errorf("got %v", got)
	}
}
