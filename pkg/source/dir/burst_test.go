package dir

import (
	"testing"
	"time"
)

func TestBurst(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for _, c := range []struct {
		name   string
		events []int
		now    int
		want   time.Duration
	}{
		{"one event", []int{0}, 0, quiet},
		{"half waited", []int{0}, 20, 30 * time.Millisecond},
		{"over", []int{0}, 60, 0},
		{"goes on", []int{0, 40}, 40, quiet},
		{"goes on for long", []int{0, 120, 240, 360, 480}, 480, 20 * time.Millisecond},
		{"patience is over", []int{0, 250, 499, 520}, 520, 0},
	} {
		var b burst
		for _, e := range c.events {
			b.add(at(e))
		}
		if got := b.wait(at(c.now)); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
