package xds

import (
	"maps"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

// watch is what one stream wants of one set and what it has been sent. It lives
// as long as the stream; go-control-plane's own watches are one-shot, so this
// one is opened by each request and closed by each response.
type watch struct {
	set *set

	mu sync.Mutex
	// open: a request waits for a response on ch. Sends happen under mu and only
	// while open, so that none follows a cancel, after which ch may be closed.
	open bool
	req  *discovery.DeltaDiscoveryRequest
	ch   chan cache.DeltaResponse

	wildcard bool
	names    map[string]struct{}
	// known maps a name to the version that the client has. It is the map that
	// go-control-plane keeps as the subscription's returned resources: that side
	// writes to it only between a cancel and the next request, this side only
	// while open.
	known map[string]string
	// dirty holds names to compare with known before the next response.
	dirty map[string]struct{}
	// answered: the client has had one response, even if an empty one, and so
	// knows that it is in step.
	answered bool
}

// resubscribe takes over what the subscription asks for now, and opens the
// watch for one response.
func (w *watch) resubscribe(req *discovery.DeltaDiscoveryRequest, sub cache.Subscription, ch chan cache.DeltaResponse) {
	s := w.set
	s.mu.Lock()
	w.mu.Lock()
	w.known = sub.ReturnedResources()
	wanted := sub.SubscribedResources()
	switch wildcard := sub.IsWildcard(); {
	case wildcard && !w.wildcard:
		w.wildcard = true
		s.wildcard[w] = struct{}{}
		for n := range s.resources {
			w.dirty[n] = struct{}{}
		}
		for n := range w.known {
			w.dirty[n] = struct{}{}
		}
	case !wildcard && w.wildcard:
		w.wildcard = false
		delete(s.wildcard, w)
		// The client drops what it did not also ask for by name.
		maps.DeleteFunc(w.known, func(n, _ string) bool { _, named := wanted[n]; return !named })
	}
	// A name that is asked for again is answered again, though nothing changed:
	// the client says that way that it has lost the resource.
	for _, n := range req.GetResourceNamesSubscribe() {
		if _, again := w.names[n]; again {
			delete(w.known, n)
			w.dirty[n] = struct{}{}
		}
	}
	for n := range w.names {
		if _, ok := wanted[n]; !ok {
			delete(w.names, n)
			s.unname(w, n)
			// Under a wildcard go-control-plane has taken it from known, since the
			// client wants to hear whether it is still there.
			w.dirty[n] = struct{}{}
		}
	}
	for n := range wanted {
		if _, ok := w.names[n]; !ok {
			w.names[n] = struct{}{}
			w.dirty[n] = struct{}{}
			if s.byName[n] == nil {
				s.byName[n] = map[*watch]struct{}{}
			}
			s.byName[n][w] = struct{}{}
		}
	}
	w.req, w.ch, w.open = req, ch, true
	w.mu.Unlock()
	s.mu.Unlock()
	w.flush()
}

// unname takes w off the list for name n. Must hold s.mu.
func (s *set) unname(w *watch, n string) {
	delete(s.byName[n], w)
	if len(s.byName[n]) == 0 {
		delete(s.byName, n)
	}
}

// mark notes names to compare before the next response. Must hold w.set.mu.
func (w *watch) mark(names []string) {
	w.mu.Lock()
	for _, n := range names {
		w.dirty[n] = struct{}{}
	}
	w.mu.Unlock()
}

// flush sends one response with everything that is dirty, if a request waits
// for one and there is something to say.
func (w *watch) flush() {
	w.set.mu.Lock()
	defer w.set.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.open || !w.set.ready {
		return
	}
	out := &discovery.DeltaDiscoveryResponse{TypeUrl: w.req.GetTypeUrl()}
	for n := range w.dirty {
		_, named := w.names[n]
		version, has := w.known[n]
		switch r := w.set.resources[n]; {
		case !named && !w.wildcard:
			// Unsubscribed meanwhile.
		case r == nil && (has || named):
			// Also for a name that never was: without an answer the client would
			// wait for ever.
			out.RemovedResources = append(out.RemovedResources, n)
			delete(w.known, n)
		case r != nil && version != r.GetVersion():
			out.Resources = append(out.Resources, r)
			w.known[n] = r.GetVersion()
		}
	}
	clear(w.dirty)
	if w.answered && len(out.Resources) == 0 && len(out.RemovedResources) == 0 {
		return
	}
	w.answered, w.open = true, false
	// One response to each request, and the server empties the channel before each
	// request: no more than two of a type are in it, and CreateDeltaWatch sees to
	// it that there are no more types than that leaves room for. So this does not
	// block.
	w.ch <- &cache.DeltaPassthroughResponse{DeltaRequest: w.req, DeltaDiscoveryResponse: out, NextVersionMap: w.known}
}

// cancel closes the watch until the next request.
func (w *watch) cancel() {
	w.mu.Lock()
	w.open = false
	w.mu.Unlock()
}

// detach takes the watch off its set's lists for good.
func (w *watch) detach() {
	s := w.set
	s.mu.Lock()
	defer s.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = false
	delete(s.wildcard, w)
	for n := range w.names {
		s.unname(w, n)
	}
}
