package xds

import (
	"maps"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

// wildcard is the name that stands for all that there are.
const wildcard = "*"

// openDelta takes over what a delta subscription asks for now, and opens the
// watch for one answer. What it costs depends on what the request alters; only
// the first request, and one that turns the wildcard on or off, is as costly as
// the whole subscription.
func (w *watch) openDelta(first bool, req *cache.DeltaRequest, sub cache.Subscription, ch chan cache.DeltaResponse) {
	w.do(func() {
		w.known, w.names, w.deltaChan = sub.ReturnedResources(), sub.SubscribedResources(), ch
		if !sub.IsWildcard() && w.wildcard {
			// The client drops what it did not also ask for by name.
			maps.DeleteFunc(w.known, func(n, _ string) bool { _, named := w.names[n]; return !named })
		}
		w.setWildcard(sub.IsWildcard())
		if first {
			for n := range w.names {
				w.index.add(topic{byName, w.typeURL, n}, w)
			}
			w.all = true
		} else {
			w.amend(req.GetResourceNamesSubscribe(), req.GetResourceNamesUnsubscribe())
		}
		w.open.Store(true)
		w.answer()
	})
}

// amend follows a request's changes to the names. Must hold w.mu.
func (w *watch) amend(subscribe, unsubscribe []string) {
	for _, n := range subscribe {
		if _, named := w.names[n]; !named {
			continue // the wildcard, or taken back in the same request
		}
		w.index.add(topic{byName, w.typeURL, n}, w)
		// What is asked for is answered, also where it was sent before, by this name
		// or under the wildcard: the client may have forgotten it.
		// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#subscribing-to-resources
		delete(w.known, n)
		w.soil(n)
	}
	for _, n := range unsubscribe {
		if n == wildcard {
			continue
		}
		w.index.remove(topic{byName, w.typeURL, n}, w)
		delete(w.pending, n)
		if w.wildcard {
			// The client wants to hear whether it is still there.
			w.known[n] = ""
		}
		w.soil(n)
	}
}

// composeDelta answers with what differs and what is not there. Must hold w.mu.
func (w *watch) composeDelta() {
	var a news
	for n := range w.dirty {
		r, v := w.look(n)
		switch v {
		case differs:
			a.found = append(a.found, r)
		case lost:
			a.lost = append(a.lost, n)
		}
		if v != unknown {
			delete(w.pending, n)
			continue
		}
		if w.pending == nil {
			w.pending = map[string]struct{}{}
		}
		w.pending[n] = struct{}{}
	}
	w.dirty = nil
	// The first answer is given also where there is nothing to say: the client
	// then knows that it is in step.
	complete := (w.wildcard || len(w.names) > 0) && !w.unlisted && len(w.pending) == 0
	if len(a.found)+len(a.lost) == 0 && (w.answered || !complete) {
		return
	}
	w.answered = true
	w.open.Store(false)
	w.learn(a)
	w.queued = append(w.queued, a)
	w.deltaChan <- &cache.DeltaPassthroughResponse{
		// Not the request itself, which may have thousands of names and would be
		// kept for as long.
		DeltaRequest:           &discovery.DeltaDiscoveryRequest{TypeUrl: w.typeURL},
		DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{TypeUrl: w.typeURL, Resources: a.found, RemovedResources: a.lost},
		NextVersionMap:         w.known,
	}
}
