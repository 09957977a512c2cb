package controlplane

import (
	"slices"
	"time"
)

// removalWindow is how long nodes that went one by one count as having gone at
// once: a source that loses its data may tell so in many small steps.
const removalWindow = 30 * time.Second

// tooMany reports whether removing these nodes looks like a source that lost
// its data rather than like a person's doing: all of a cluster's nodes at once,
// or more than max(3, 30 %) of them. before is how many nodes the cluster had
// at the start of the window, recent how many of those have gone already.
func tooMany(before, recent, now int) bool {
	if now == 0 {
		return false
	}
	gone := recent + now
	return gone >= before || gone > max(3, before*30/100)
}

// removals remembers when nodes went.
type removals []time.Time

// recent forgets what is older than the window and counts the rest. A clock
// that was set back makes nothing older than it is.
func (r *removals) recent(now time.Time) int {
	*r = slices.DeleteFunc(*r, func(at time.Time) bool { return now.Sub(at) > removalWindow })
	return len(*r)
}

func (r *removals) add(n int, now time.Time) {
	for range n {
		*r = append(*r, now)
	}
}
