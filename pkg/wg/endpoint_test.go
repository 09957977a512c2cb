package wg

import (
	"net/netip"
	"testing"
	"time"
)

func TestChooseEndpoint(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	a, b, c := addrPort("192.0.2.1:1"), addrPort("192.0.2.2:2"), addrPort("[2001:db8::3]:3")
	roamed, none := addrPort("198.51.100.9:9"), netip.AddrPort{}
	abc := []netip.AddrPort{a, b, c}
	never := time.Time{}

	for name, x := range map[string]struct {
		candidates []netip.AddrPort
		rotate     bool
		current    netip.AddrPort
		handshake  time.Time
		since      time.Time
		want       netip.AddrPort
	}{
		"fresh stays":                          {abc, false, b, ago(time.Second), never, b},
		"fresh stays where it roamed to":       {abc, false, roamed, ago(time.Second), never, roamed},
		"fresh to the last":                    {abc, false, b, ago(RejectAfterTime - 1), never, b},
		"no longer fresh":                      {abc, false, b, ago(RejectAfterTime), never, c},
		"stale goes on to the next":            {abc, false, a, ago(time.Hour), never, b},
		"stale wraps":                          {abc, false, c, ago(time.Hour), never, a},
		"stale and roamed begins anew":         {abc, false, roamed, ago(time.Hour), never, a},
		"never shaken hands":                   {abc, false, a, never, never, b},
		"one candidate, in use":                {[]netip.AddrPort{a}, false, a, ago(time.Hour), never, a},
		"one candidate, in use, rotate":        {[]netip.AddrPort{a}, true, a, ago(time.Second), never, a},
		"one candidate, roamed and stale":      {[]netip.AddrPort{a}, false, roamed, ago(time.Hour), never, a},
		"rotate overrules fresh":               {abc, true, b, ago(time.Second), never, c},
		"rotate overrules roamed":              {abc, true, roamed, ago(time.Second), never, a},
		"no candidates":                        {nil, false, b, ago(time.Hour), never, b},
		"no candidates, rotate":                {nil, true, b, ago(time.Hour), never, b},
		"no candidates, no endpoint":           {nil, false, none, never, never, none},
		"no endpoint":                          {abc, false, none, never, never, a},
		"no endpoint, fresh":                   {abc, false, none, ago(time.Second), never, a},
		"just set, no handshake yet":           {abc, false, b, never, ago(EndpointTrial - 1), b},
		"just set, rotate":                     {abc, true, b, ago(time.Second), ago(time.Second), b},
		"set, tried":                           {abc, false, b, never, ago(EndpointTrial), c},
		"set, tried, rotate":                   {abc, true, b, ago(time.Second), ago(EndpointTrial), c},
		"just set, but no candidate any more":  {abc, false, roamed, never, ago(time.Second), a},
		"clock set back: handshake to come":    {abc, false, roamed, now.Add(time.Hour), never, roamed},
		"clock set back, rotate":               {abc, true, a, now.Add(time.Hour), never, b},
		"a candidate was added before current": {[]netip.AddrPort{c, a}, false, a, ago(time.Second), never, a},
	} {
		t.Run(name, func(t *testing.T) {
			p := Peer{Candidates: x.candidates, Rotate: x.rotate}
			have := ActualPeer{Endpoint: x.current, LastHandshake: x.handshake, EndpointSince: x.since}
			if got := chooseEndpoint(p, have, now); got != x.want {
				t.Errorf("got %v, want %v", got, x.want)
			}
		})
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
