package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
)

// caller makes one call and fills in what came of it.
type caller func(ctx context.Context, c *report.Call)

// load says how many calls to make, and when.
type load struct {
	count             int // 0: until told to stop
	interval, timeout time.Duration
	concurrency       int
}

func (l load) validate() error {
	if l.count < 0 || l.interval < 0 || l.timeout <= 0 || l.concurrency < 1 {
		return errors.New("want a count and an interval of at least 0, a timeout above 0 and a concurrency of at least 1")
	}
	return nil
}

// run makes the calls, and emits each as it ends, from several goroutines. When
// ctx ends it begins no more, and those under way run on: ended early, they would
// look like failures.
func (l load) run(ctx context.Context, call caller, emit func(report.Call)) {
	var g errgroup.Group
	g.SetLimit(l.concurrency)
	tick := make(<-chan time.Time)
	if l.interval > 0 {
		t := time.NewTicker(l.interval)
		defer t.Stop()
		tick = t.C
	}
	for n := 1; l.count == 0 || n <= l.count; n++ {
		if n > 1 && l.interval > 0 {
			select {
			case <-tick:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			// It may have waited for its turn.
			if ctx.Err() != nil {
				return nil
			}
			one, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
			defer cancel()
			c := report.Call{N: n, Start: time.Now()}
			call(one, &c)
			c.LatencySeconds = time.Since(c.Start).Seconds()
			emit(c)
			return nil
		})
	}
	_ = g.Wait() // the calls return no error
}
