package xds

import (
	"slices"
	"sync"
	"sync/atomic"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

// watch is what one stream wants of one type and what it has been sent. It lives
// as long as the stream; go-control-plane's own watches are one-shot, so this
// one is opened by each request and closed by each answer.
//
// Whoever changes something marks the watch, which never waits, and then tries
// to flush it: who finds it busy leaves that to whoever is busy with it. So a
// client that asks for much holds up nobody else.
type watch struct {
	source  Source
	index   *index
	id      uint64
	client  string
	typeURL string
	view    string
	// compose answers what is dirty; it is the protocol's. Must hold mu.
	compose func()

	// open: a request waits for an answer. Written under mu, and only then are
	// names and known read or written: go-control-plane, whose maps they are,
	// alters them between a cancel and the next request, and in our callbacks.
	open atomic.Bool

	markMu sync.Mutex
	// marks are the names that have changed, markAll that everything may have.
	marks   map[string]struct{}
	markAll bool
	round   uint64 // the last round that marked it

	mu sync.Mutex
	// One of these takes the answer to the request that waits. Neither blocks: see
	// newWatch.
	deltaChan chan cache.DeltaResponse
	sotwChan  chan cache.Response

	wildcard bool
	names    map[string]struct{}
	// known maps a name to the version that the client has, or to told.
	known map[string]string
	// dirty holds names to compare with known before the next answer; all says
	// that these are all names.
	dirty map[string]struct{}
	all   bool
	// unlisted: it is a wildcard watch, and the source does not know its type's
	// names yet.
	unlisted bool
	// pending holds the names that the source does not know yet (delta only).
	pending map[string]struct{}
	// answered: the client has had one answer, even if an empty one, and so knows
	// that it is in step.
	answered bool

	// queued are the answers on their way to go-control-plane's Send: at most two
	// of delta, one of SotW. unacked are the names in answers that were sent and
	// not acknowledged, nonce is the last one's, judged that the client has
	// acknowledged or refused it.
	queued  []news
	unacked map[string]struct{}
	nonce   string
	judged  bool

	gone     bool
	progress chan struct{} // closed at the next change of what Settled looks at
}

// told stands in a watch's known for a name that the client has been told does
// not exist. No source gives a resource this version.
const told = "\x00"

// news is the content of one answer.
type news struct {
	found []*discovery.Resource
	lost  []string
}

// mark notes that names have changed, or everything where there are none. It
// reports whether that is the first mark of a round.
func (w *watch) mark(round uint64, names ...string) bool {
	w.markMu.Lock()
	defer w.markMu.Unlock()
	if len(names) == 0 {
		w.markAll = true
	}
	if w.marks == nil {
		w.marks = make(map[string]struct{}, len(names))
	}
	for _, n := range names {
		w.marks[n] = struct{}{}
	}
	first := w.round != round
	w.round = round
	return first
}

func (w *watch) marked() bool {
	w.markMu.Lock()
	defer w.markMu.Unlock()
	return w.markAll || len(w.marks) > 0
}

// takeMarks makes what is marked dirty. Must hold w.mu.
func (w *watch) takeMarks() {
	w.markMu.Lock()
	marks, all := w.marks, w.markAll
	w.marks, w.markAll = nil, false
	w.markMu.Unlock()
	w.all = w.all || all
	if w.dirty == nil {
		w.dirty = marks
		return
	}
	for n := range marks {
		w.dirty[n] = struct{}{}
	}
}

// soil makes one name dirty. Must hold w.mu.
func (w *watch) soil(name string) {
	if w.dirty == nil {
		w.dirty = map[string]struct{}{}
	}
	w.dirty[name] = struct{}{}
}

// flush answers what is marked if a request waits for it.
func (w *watch) flush() {
	for w.open.Load() && w.marked() {
		if !w.mu.TryLock() {
			return // whoever holds it flushes when done
		}
		w.answer()
		w.mu.Unlock()
	}
}

// do runs f under w.mu. Nobody takes that lock in another way, but flush itself.
func (w *watch) do(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.flush()
}

// answer answers with everything that is dirty, if a request waits for it and
// there is something to say. Must hold w.mu.
func (w *watch) answer() {
	w.takeMarks()
	if !w.open.Load() {
		return
	}
	w.all = w.all || w.unlisted
	if w.all {
		w.soilAll()
	}
	before := len(w.dirty)
	w.compose()
	if len(w.dirty) != before {
		w.moved()
	}
}

// soilAll makes dirty all that the client has or wants. Must hold w.mu.
func (w *watch) soilAll() {
	w.all, w.unlisted = false, false
	for n := range w.names {
		w.soil(n)
	}
	if !w.wildcard {
		return
	}
	for n := range w.known {
		w.soil(n)
	}
	list, ok := w.source.Names(w.view, w.typeURL)
	w.unlisted = !ok
	for _, n := range list {
		w.soil(n)
	}
}

// verdict says how a name differs from what the client has.
type verdict uint8

const (
	same    verdict = iota
	differs         // it is there, in another version
	lost            // it is not there, and the client does not know that
	unknown
)

// look compares a name with what the client has. Must hold w.mu.
func (w *watch) look(name string) (*discovery.Resource, verdict) {
	_, named := w.names[name]
	if !named && (!w.wildcard || w.unlisted) {
		return nil, same
	}
	version, has := w.known[name]
	r, answer := w.source.Lookup(w.view, w.typeURL, name)
	switch {
	case answer == Pending:
		return nil, unknown
	case answer == Found && has && version == r.GetVersion():
		// The source's string is shared by all clients, the one that the client
		// itself resumed with is not.
		w.known[name] = r.GetVersion()
		return r, same
	case answer == Found:
		return r, differs
	case version == told, !named && !has:
		return nil, same
	default:
		return nil, lost
	}
}

// learn notes what the client has with an answer. Must hold w.mu.
func (w *watch) learn(a news) {
	for _, r := range a.found {
		w.known[r.GetName()] = r.GetVersion()
	}
	for _, n := range a.lost {
		if _, named := w.names[n]; named {
			w.known[n] = told
		} else {
			delete(w.known, n)
		}
	}
}

// close closes the watch until the next request.
func (w *watch) close() { w.do(func() { w.open.Store(false) }) }

// sent notes that the oldest queued answer is being sent under a nonce, and with
// learn that the client knows its content only now.
func (w *watch) sent(nonce string, learn bool) {
	w.do(func() {
		if len(w.queued) == 0 {
			return
		}
		a := w.queued[0]
		w.queued = slices.Delete(w.queued, 0, 1) // what is deleted is let go
		if learn {
			w.learn(a)
			w.answered = true
		}
		if w.unacked == nil {
			w.unacked = make(map[string]struct{}, len(a.found)+len(a.lost))
		}
		for _, r := range a.found {
			w.unacked[r.GetName()] = struct{}{}
		}
		for _, n := range a.lost {
			w.unacked[n] = struct{}{}
		}
		w.nonce, w.judged = nonce, false
	})
}

// judge notes that a request carries a nonce. It reports whether that is the
// client's first word on the newest answer: its ACK or NACK.
func (w *watch) judge(nonce string) (first bool) {
	w.do(func() {
		if nonce != w.nonce || nonce == "" {
			return
		}
		first = !w.judged
		w.judged, w.unacked = true, nil
		w.moved()
	})
	return first
}

// moved wakes whoever waits for the watch to settle. Must hold w.mu.
func (w *watch) moved() {
	if w.progress != nil {
		close(w.progress)
		w.progress = nil
	}
}

// settled reports whether the client has been told what is current of the names,
// or of everything where there are none, and has acknowledged it. Where not, the
// channel is closed when that may have changed.
func (w *watch) settled(names []string) (progress <-chan struct{}, ok bool) {
	w.do(func() {
		w.answer() // what is marked counts as well
		if ok = w.gone || !w.owes(names); ok {
			return
		}
		if w.progress == nil {
			w.progress = make(chan struct{})
		}
		progress = w.progress
	})
	return progress, ok
}

// owes reports whether any of the names, or anything where there are none, is
// still to be sent or to be acknowledged. Must hold w.mu.
func (w *watch) owes(names []string) bool {
	if w.all {
		return true
	}
	if len(names) == 0 {
		return len(w.dirty)+len(w.unacked)+len(w.queued) > 0
	}
	on := map[string]bool{}
	for _, a := range w.queued {
		for _, r := range a.found {
			on[r.GetName()] = true
		}
		for _, n := range a.lost {
			on[n] = true
		}
	}
	for _, n := range names {
		_, dirty := w.dirty[n]
		_, unacked := w.unacked[n]
		if dirty || unacked || on[n] {
			return true
		}
	}
	return false
}

// follow puts the watch on the lists that do not depend on what it asks for.
func (w *watch) follow() {
	w.index.add(topic{byView, w.typeURL, w.view}, w)
	w.index.add(topic{everyone, w.typeURL, ""}, w)
}

// setWildcard puts the watch on the lists of wildcard watches, or takes it off.
// Must hold w.mu.
func (w *watch) setWildcard(on bool) {
	of, all := topic{wildcardsOf, w.typeURL, w.view}, topic{wildcards, w.typeURL, ""}
	switch {
	case on && !w.wildcard:
		w.index.add(of, w)
		w.index.add(all, w)
		w.all = true
	case !on && w.wildcard:
		w.index.remove(of, w)
		w.index.remove(all, w)
		w.unlisted = false
	}
	w.wildcard = on
}

// detach takes the watch off all lists for good. The stream's handler has ended.
func (w *watch) detach() {
	w.do(func() {
		w.open.Store(false)
		w.setWildcard(false)
		for n := range w.names {
			w.index.remove(topic{byName, w.typeURL, n}, w)
		}
		w.index.remove(topic{byView, w.typeURL, w.view}, w)
		w.index.remove(topic{everyone, w.typeURL, ""}, w)
		w.gone, w.queued, w.unacked, w.dirty = true, nil, nil, nil
		w.moved()
	})
}
