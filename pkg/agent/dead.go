package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/probe"
)

// dead returns the prefixes behind tunnels that have been down for long enough
// that packets to them are refused, and when the next will be; zero where none
// will.
func dead(p plan, results []probe.Result, after time.Duration, now time.Time) (prefixes []netip.Prefix, next time.Time) {
	due := map[string]bool{}
	for _, r := range results {
		if r.Status.State != mesh.Down || after < 0 {
			continue
		}
		if at := silentSince(r).Add(after); now.Before(at) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		due[r.Node.String()] = true
	}
	for _, q := range p.device.Peers {
		if !due[q.Name] {
			continue
		}
		for _, x := range q.AllowedIPs {
			// Tunnel addresses stay open: the echo is how a recovery is seen.
			if _, own := p.owner[x.Addr()]; !own || !x.IsSingleIP() {
				prefixes = append(prefixes, x)
			}
		}
	}
	slices.SortFunc(prefixes, mesh.ComparePrefix)
	return slices.Compact(prefixes), next
}

// silentSince returns since when a tunnel that is Down carries nothing. One that
// was lost and answers again is about to be Up, and at the far end may be already:
// to refuse what it carries would break connections that have just been made.
func silentSince(r probe.Result) time.Time {
	switch r.Status.Reason {
	case mesh.ReasonProbeLost, mesh.ReasonNoHandshake:
		if r.LastReply.After(r.Since) {
			return r.LastReply
		}
	}
	return r.Since
}

// refuse has packets refused that would go into a tunnel which is down, so that
// connections over it end and do not hang. It is for the loop's goroutine.
func (l *loop) refuse(ctx context.Context) {
	l.mu.Lock()
	p, complete := l.applied.plan, l.applied.complete
	l.mu.Unlock()
	if !complete {
		return // what an earlier run refused stays until we know better
	}
	now := time.Now()
	results := l.prober.Snapshot()
	prefixes, next := dead(p, results, l.opts.ResetAfter, now)
	if !next.IsZero() {
		time.AfterFunc(next.Sub(now), func() { mark(l.due) })
	}
	if !l.refusedKnown {
		if have, err := l.table.Refused(ctx); err == nil {
			// An agent that has just started has not judged its tunnels yet.
			prefixes = append(prefixes, stillRefused(p, results, have, l.opts.ResetAfter)...)
			slices.SortFunc(prefixes, mesh.ComparePrefix)
			prefixes = slices.Compact(prefixes)
		}
	}
	if slices.Equal(prefixes, l.refused) && l.refusedKnown {
		return
	}
	var keep []netip.Addr
	for a := range p.owner {
		keep = append(keep, a)
	}
	err := l.table.Refuse(ctx, prefixes, keep)
	if err == nil {
		if !slices.Equal(prefixes, l.refused) {
			l.log.Info("packets to dead peers are refused", "prefixes", prefixes)
		}
		l.refused, l.refusedKnown = prefixes, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && (l.refuseErr == nil || l.refuseErr.Error() != err.Error()) {
		l.log.Warn("packets to dead peers cannot be refused; connections over a tunnel that is down hang until they time out", "err", err)
	}
	l.refuseErr = err
}

// stillRefused returns what an earlier run refused of peers that are not judged
// yet.
func stillRefused(p plan, results []probe.Result, have []netip.Prefix, after time.Duration) []netip.Prefix {
	if after < 0 {
		return nil
	}
	unknown := map[string]bool{}
	for _, r := range results {
		if r.Status.State == mesh.Unknown {
			unknown[r.Node.String()] = true
		}
	}
	var out []netip.Prefix
	for _, q := range p.device.Peers {
		if !unknown[q.Name] {
			continue
		}
		for _, x := range q.AllowedIPs {
			if slices.Contains(have, x) {
				out = append(out, x)
			}
		}
	}
	return out
}
