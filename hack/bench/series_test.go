package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestSeries(t *testing.T) {
	s := series{5, 1, 4, 2, 3, 6, 7, 8, 9, 10}
	for q, want := range map[float64]float64{0: 1, 0.1: 1, 0.11: 2, 0.5: 5, 0.9: 9, 0.99: 10, 1: 10} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if got := s.median(); got != 5.5 {
		t.Errorf("median %v, want 5.5", got)
	}
	if got := (series{3}).spread("%.0f"); got != "3" {
		t.Errorf("spread of one: %q", got)
	}
	if got := s.spread("%.1f"); got != "5.5 (1.0–10.0)" {
		t.Errorf("spread: %q", got)
	}
	if got := (series{1, 2, 3, 4, 5}).every(4).over(series{2, 0}); len(got) != 1 || got[0] != 0.5 {
		t.Errorf("ratios: %v", got)
	}
}

// TestLikely counts how often the interval holds the true median.
func TestLikely(t *testing.T) {
	if _, _, ok := make(series, 5).likely(); ok {
		t.Error("five measurements say nothing with 95 %")
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{6, 20, 51} {
		const trials = 20_000
		held := 0
		for range trials {
			s := make(series, n)
			for i := range s {
				s[i] = r.ExpFloat64()
			}
			low, high, ok := s.likely()
			if !ok {
				t.Fatalf("%d measurements: no interval", n)
			}
			if low <= math.Ln2 && math.Ln2 <= high { // the median of that distribution
				held++
			}
		}
		if part := float64(held) / trials; part < 0.945 || part > 0.985 {
			t.Errorf("%d measurements: the interval holds the median in %.3f of all cases, want 0.95 or little more", n, part)
		}
	}
}
