package main

import (
	"fmt"
	"math"
	"slices"
)

// series are measurements of one thing, in the order in which they were made.
type series []float64

// quantile returns the smallest value that q of all do not exceed (nearest rank).
func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}

// median returns the middle, or the mean of the two in the middle.
func (s series) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	return (sorted[(len(s)-1)/2] + sorted[len(s)/2]) / 2
}

// likely returns the interval in which the true median lies with 95 %, whatever
// the distribution: between two of the measurements, by the binomial distribution
// of how many are below it. Under six measurements say nothing.
func (s series) likely() (low, high float64, ok bool) {
	n := len(s)
	if n < 6 {
		return 0, 0, false
	}
	sorted := slices.Sorted(slices.Values(s))
	k, below, p := 0, 0.0, math.Pow(0.5, float64(n))
	for below+p <= 0.025 {
		below += p
		k++
		p *= float64(n-k+1) / float64(k)
	}
	return sorted[k-1], sorted[n-k], true
}

// every returns each nth measurement, from the first on.
func (s series) every(n int) series {
	var out series
	for i := 0; i < len(s); i += n {
		out = append(out, s[i])
	}
	return out
}

// over returns the ratios to the measurements that were made beside these: what
// disturbs the machine for longer than a round disturbs both.
func (s series) over(o series) series {
	var out series
	for i := range min(len(s), len(o)) {
		if o[i] != 0 {
			out = append(out, s[i]/o[i])
		}
	}
	return out
}

// spread prints the median with the smallest and the largest, each by format.
func (s series) spread(format string) string {
	if len(s) == 0 {
		return "-"
	}
	if len(s) == 1 {
		return fmt.Sprintf(format, s[0])
	}
	return fmt.Sprintf(format+" ("+format+"–"+format+")", s.median(), slices.Min(s), slices.Max(s))
}
