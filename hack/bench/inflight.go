package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// refusals are the values of the agents' --reset-after that are compared.
var refusals = []string{"2s", "never"}

// silences are how long tunnels are silent, and how many times.
var silences = []struct {
	long  time.Duration
	times int
}{{5 * time.Second, 10}, {20 * time.Second, 10}}

// inFlight measures how long calls hang that were on a tunnel when it went silent,
// with packets into it refused and not.
func (b *bench) inFlight(ctx context.Context) (*table, error) {
	t := newTable("Calls in flight on a tunnel that goes silent",
		"silent for", "refused when Down for", "cuts", "calls on it", "failed", "ended after the cut, s: p50, p99, max", "after it healed, s: p50, p99, max")
	var mu sync.Mutex
	got := map[string][]hung{}
	g, gctx := errgroup.WithContext(ctx)
	for _, after := range refusals {
		// Side by side: what disturbs the machine disturbs both.
		g.Go(func() error {
			u, end, err := b.underLoad(gctx, "hang"+after, "--reset-after", after)
			if err != nil {
				return err
			}
			defer end()
			tr := newTroubled(u)
			for _, s := range silences {
				times := s.times
				if b.quick {
					times = 1
				}
				for n := range times {
					h, err := tr.hang(gctx, s.long)
					if err != nil {
						return fmt.Errorf("--reset-after %s: %w", after, err)
					}
					progress("inflight: refused after %s, silent for %v, %d of %d: %d calls on it", after, s.long, n+1, times, len(h.ended))
					mu.Lock()
					key := s.long.String() + after
					got[key] = append(got[key], h)
					mu.Unlock()
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, s := range silences {
		for _, after := range refusals {
			all := hung{}
			cuts := got[s.long.String()+after]
			for _, h := range cuts {
				all.failed += h.failed
				all.ended, all.healed = append(all.ended, h.ended...), append(all.healed, h.healed...)
			}
			name := fmt.Sprintf("silent for %v, refused after %s", s.long, after)
			t.sample(name, all.ended)
			t.row(s.long.String(), after, fmt.Sprint(len(cuts)), fmt.Sprint(len(all.ended)), fmt.Sprint(all.failed), tail3(all.ended), tail3(all.healed))
		}
	}
	t.note("The clients of --only failover, %d of them with a call every %v each. On it: calls to the pod behind the silent tunnel, under way at the cut or begun before the client went through the gateway.", len(callingPods), callEvery)
	t.note("A call may take %v: one with a limit of its own ends by that, sooner. Those that did not fail were answered once TCP repeated what was lost.", callLimit)
	return t, nil
}

// tail3 prints what most and what the last of a series had to wait.
func tail3(s series) string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s, %s, %s", s3(s.quantile(.5)), s3(s.quantile(.99)), s3(s.quantile(1)))
}

// hung are the calls that were on a silent tunnel: how many failed, and when each
// ended, in seconds after the cut and after healing (negative: before it).
type hung struct {
	failed        int
	ended, healed series
}

// hang cuts a tunnel for a time and waits until all calls on it have ended.
func (t *troubled) hang(ctx context.Context, long time.Duration) (h hung, err error) {
	i, err := t.silence(ctx, false, long)
	if err != nil {
		return h, err
	}
	from, err := t.whole(ctx)
	if err != nil {
		return h, err
	}
	for _, s := range i.silent {
		for _, o := range s.take(from) {
			end := endOfCall(o)
			if peerOfCall(o) != s.addr || o.Start.After(s.healed) || end.Before(s.cut) {
				continue
			}
			if !o.OK {
				h.failed++
			}
			h.ended = append(h.ended, end.Sub(i.began).Seconds())
			h.healed = append(h.healed, end.Sub(s.healed).Seconds())
		}
	}
	for _, c := range t.callers {
		c.take(from)
	}
	return h, nil
}
