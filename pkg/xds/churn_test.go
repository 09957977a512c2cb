package xds

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Streams come and go while sets change: nothing stays behind of them.
func TestChurnLeavesNothing(t *testing.T) {
	s := serve(t)
	set := SetKey{thing, "v"}
	s.cache.Replace(set, things("a=0"))
	warm := s.open(t, "v") // the connection and its goroutines
	warm.subscribe(thing, "*")
	warm.recv()
	warm.cancel()
	eventually(t, "the first is gone", func() bool { return s.nobody() })
	before := runtime.NumGoroutine()

	ctx, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			s.cache.Replace(set, things(fmt.Sprint("a=", i), fmt.Sprint("b=", i/7)))
			if i%50 == 0 {
				s.cache.Drop(set)
			}
			runtime.Gosched()
		}
	})
	var streams sync.WaitGroup
	for i := range 200 {
		streams.Go(func() {
			for range 5 {
				m := newMirror("v", []string{"*", "a", "x"}[i%3])
				answers := i % 4
				if m.names[0] == "x" {
					answers = min(answers, 1) // it never changes
				}
				ctx, cancel := context.WithCancel(ctx)
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_ = m.run(ctx, s)
				}()
				// Some end before their first answer, some after a few.
				for range answers {
					select {
					case <-m.changed:
					case <-ended:
					}
				}
				cancel()
				<-ended
			}
		})
	}
	streams.Wait()
	stop()
	writer.Wait()
	eventually(t, "no watch is left", func() bool { return s.nobody() })
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	s.cache.Drop(set)
	if keys := s.cache.Keys(); len(keys) != 0 {
		t.Errorf("sets are left: %v", keys)
	}
}

// Whatever happens in between, in the end every live client holds what its view
// does: nothing is lost between a subscription and a change.
func TestClientsAgreeWithTheSet(t *testing.T) {
	s := serve(t)
	views := []string{"v1", "v2"}
	names := []string{"a", "b", "c", "d", "e", "f"}
	some := func(r *rand.Rand) []string {
		return slices.DeleteFunc(slices.Clone(names), func(string) bool { return r.IntN(2) == 0 })
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()

	// Clients connect anew again and again, with what they have.
	var mirrors []*mirror
	var streams atomic.Int64
	settle := make(chan struct{}) // from when on they stay
	for i := range 40 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		m := newMirror(views[i%2], "*")
		if i%4 >= 2 {
			m.names = some(r)
			m.names = append(m.names, "a")
		}
		mirrors = append(mirrors, m)
		wg.Go(func() {
			for ctx.Err() == nil {
				ctx, cancel := context.WithCancel(ctx)
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_ = m.run(ctx, s)
				}()
				for range r.IntN(4) {
					select {
					case <-m.changed:
					case <-ended:
					case <-settle:
					}
				}
				select {
				case <-settle:
					<-ended
				default:
				}
				cancel()
				<-ended
				streams.Add(1)
			}
		})
	}

	r := rand.New(rand.NewPCG(seed, 1<<32))
	final := map[string]map[string]string{}
	for step := 0; step < 600 || streams.Load() < 10*int64(len(mirrors)); step++ {
		view := views[r.IntN(2)]
		state := map[string]string{}
		var resources []*discovery.Resource
		for _, n := range some(r) {
			state[n] = fmt.Sprint(r.IntN(3))
			resources = append(resources, things(n+"="+state[n])...)
		}
		s.cache.Replace(SetKey{thing, view}, resources)
		final[view] = state
		if step%20 == 0 {
			s.cache.Drop(SetKey{thing, view})
			s.cache.Replace(SetKey{thing, view}, resources)
		}
		runtime.Gosched()
	}
	close(settle)
	for i, m := range mirrors {
		want := maps.Clone(final[m.view])
		if m.names[0] != "*" {
			maps.DeleteFunc(want, func(n, _ string) bool { return !slices.Contains(m.names, n) })
		}
		m.until(t, fmt.Sprintf("client %d, subscribed to %v, holds %v", i, m.names, want), func(state map[string]string) bool { return maps.Equal(state, want) })
	}
}

// A set that was dropped is forgotten also while it is watched: nodes come and go
// under new names.
func TestDroppedSetsAreForgotten(t *testing.T) {
	s := serve(t)
	for i := range 20 {
		view := fmt.Sprint("node", i)
		s.cache.Replace(SetKey{thing, view}, things("a=1"))
		c := s.open(t, view)
		c.subscribe(thing, "*")
		c.recv()
		s.cache.Drop(SetKey{thing, view})
		if s.cache.Resources(SetKey{thing, view}) != nil {
			t.Error("it is still served")
		}
	}
	if keys := s.cache.Keys(); len(keys) != 0 {
		t.Errorf("sets are left: %v", keys)
	}
}

func TestReplaceCountsWhatChanged(t *testing.T) {
	c := NewCache()
	k := SetKey{thing, "v"}
	for i, step := range []struct {
		set  []string
		want int
	}{{nil, 0}, {[]string{"a=1", "b=1"}, 2}, {[]string{"a=1", "b=1"}, 0}, {[]string{"a=2", "b=1"}, 1}, {[]string{"a=2", "c=1"}, 2}, {nil, 2}} {
		if got := c.Replace(k, things(step.set...)); got != step.want {
			t.Errorf("step %d: %d changed, want %d", i, got, step.want)
		}
		if got := len(c.Resources(k)); got != len(step.set) {
			t.Errorf("step %d: holds %d", i, got)
		}
	}
}
