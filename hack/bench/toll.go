package main

import (
	"fmt"
	"time"

	echo "github.com/flatmesh/flatmesh/hack/meshecho/report"
)

const (
	// slow is a call that a person would notice.
	slow = time.Second
	// strangest bounds how many calls of a kind of event are told one by one.
	strangest = 20
)

// toll is what calls came to in events of one kind.
type toll struct {
	times, calls, failed, excused, slow, slowElse int
	// strange are failed and slow calls that nothing explains, in words.
	strange []string
	// For silent tunnels, in seconds after the cut.
	down, good, same, last, ended series
	// In seconds after an agent's start.
	served series
}

func (c *toll) unexplained() int { return c.failed - c.excused }

// happened counts an event.
func (c *toll) happened(i incident) {
	c.times++
	if i.served > 0 {
		c.served = append(c.served, i.served.Seconds())
	}
}

// add counts a client's calls in an event.
func (c *toll) add(kind string, i incident, client string, calls []echo.Call) {
	for _, o := range calls {
		c.calls++
		bad, explained := !o.OK, i.excuses(client, o)
		switch {
		case bad:
			c.failed++
			if explained {
				c.excused++
			}
		case seconds(o.LatencySeconds) > slow:
			c.slow++
			if !explained {
				c.slowElse++
			}
		default:
			continue
		}
		if !explained && len(c.strange) < strangest {
			c.strange = append(c.strange, fmt.Sprintf("%s, %s: call %d of %s to %s, begun %.3f s after, ended after %.3f s: %s %s",
				kind, i.what, o.N, client, o.Peer, o.Start.Sub(i.began).Seconds(), o.LatencySeconds, o.Code, o.Error))
		}
	}
	for _, s := range i.silent {
		if s.host == client {
			c.silence(i, s, calls)
		}
	}
}

// silence measures what a silent tunnel did to a client.
func (c *toll) silence(i incident, s silence, calls []echo.Call) {
	c.down = append(c.down, s.down.Sub(i.began).Seconds())
	var good, same, last float64
	earlier := func(old, now float64) float64 {
		if old == 0 {
			return now
		}
		return min(old, now)
	}
	for _, o := range calls {
		began, ended := o.Start.Sub(i.began).Seconds(), endOfCall(o).Sub(i.began).Seconds()
		if o.Start.After(s.cut) && s.instead(o) {
			good = earlier(good, ended)
			if o.Pod == s.pod {
				same = earlier(same, ended)
			}
		}
		if o.Start.After(s.cut) && o.Start.Before(s.healed) && peerOfCall(o) == s.addr {
			last = max(last, began)
		}
		if !o.OK && i.excuses(s.host, o) {
			c.ended = append(c.ended, ended)
		}
	}
	c.good = append(c.good, good)
	if same > 0 {
		c.same = append(c.same, same)
	}
	if last > 0 {
		c.last = append(c.last, last)
	}
}

// join adds what another has counted.
func (c *toll) join(o toll) {
	c.times += o.times
	c.calls += o.calls
	c.failed += o.failed
	c.excused += o.excused
	c.slow += o.slow
	c.slowElse += o.slowElse
	c.strange = append(c.strange, o.strange...)
	for _, s := range [][2]*series{{&c.down, &o.down}, {&c.good, &o.good}, {&c.same, &o.same}, {&c.last, &o.last}, {&c.ended, &o.ended}, {&c.served, &o.served}} {
		*s[0] = append(*s[0], *s[1]...)
	}
}

// row adds it to a table.
func (c *toll) row(t *table, name string) {
	t.row(name, fmt.Sprint(c.times), fmt.Sprint(c.calls), fmt.Sprint(c.failed), fmt.Sprint(c.excused), fmt.Sprint(c.unexplained()), fmt.Sprint(c.slow), fmt.Sprint(c.slowElse), tail3(c.good))
}
