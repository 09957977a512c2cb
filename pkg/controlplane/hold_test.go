package controlplane

import (
	"testing"
	"time"
)

func TestTooMany(t *testing.T) {
	for _, c := range []struct {
		before, recent, now int
		want                bool
	}{
		{0, 0, 0, false},
		{5, 0, 0, false},
		{5, 5, 0, false}, // nothing is to be removed
		{1, 0, 1, true},  // all of them
		{2, 0, 1, false},
		{2, 0, 2, true},
		{2, 1, 1, true}, // the last
		{4, 0, 3, false},
		{5, 0, 4, true}, // more than three
		{10, 0, 3, false},
		{10, 0, 4, true},
		{10, 2, 1, false},
		{10, 3, 1, true},
		{20, 0, 6, false}, // 30 %
		{20, 0, 7, true},
		{100, 0, 30, false},
		{100, 0, 31, true},
		{100, 29, 1, false},
		{100, 30, 1, true},
		{5000, 0, 1500, false},
		{5000, 0, 1501, true},
	} {
		if got := tooMany(c.before, c.recent, c.now); got != c.want {
			t.Errorf("%d of %d, after %d: got %t", c.now, c.before, c.recent, got)
		}
	}
}

func TestRemovalWindow(t *testing.T) {
	var r removals
	at := time.Unix(1_000_000, 0)
	r.add(2, at)
	r.add(1, at.Add(20*time.Second))
	for after, want := range map[time.Duration]int{0: 3, removalWindow: 3, removalWindow + 1: 1, 20*time.Second + removalWindow + 1: 0, -time.Hour: 3} {
		c := append(removals{}, r...)
		if got := c.recent(at.Add(after)); got != want {
			t.Errorf("%v later: %d, want %d", after, got, want)
		}
	}
}
