package dir

import "time"

const (
	// quiet is how long nothing may happen before a burst of events counts as
	// over, so that an editor's save or a command's output is read once.
	quiet = 50 * time.Millisecond
	// patience is how long a burst may last before it is read all the same.
	patience = 500 * time.Millisecond
)

// burst is a series of events that are answered together. The zero value is
// none.
type burst struct{ first, last time.Time }

// add takes an event into the burst.
func (b *burst) add(now time.Time) {
	if b.first.IsZero() {
		b.first = now
	}
	b.last = now
}

// wait returns how long to wait for the end of the burst.
func (b burst) wait(now time.Time) time.Duration {
	return max(0, min(b.last.Add(quiet).Sub(now), b.first.Add(patience).Sub(now)))
}
