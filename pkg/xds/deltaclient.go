package xds

import (
	"context"
	"sync"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

// DeltaClient is a client of delta ADS whose subscriptions may change at any
// time. It knows the versions of what its caller has taken, so that a new stream
// resumes where the last one ended; the resources themselves are the caller's.
// It is safe for concurrent use.
type DeltaClient struct {
	apply func(Update) error

	mu      sync.Mutex
	running bool
	types   []*subscribed // in the order of their first Add
	wake    chan struct{} // one slot: there is something to send
	// anew: the stream is of no use any more, see Add. end ends it.
	anew bool
	end  context.CancelCauseFunc
}

// subscribed is the state of one type. It is guarded by the client's mutex.
type subscribed struct {
	typeURL string
	// names are those subscribed to, "*" too; all are the versions of what the
	// wildcard brought, by name.
	names map[string]*held
	all   map[string]string
	// todo is what the stream is not yet told of names. begun: it has had a request
	// for this type. lapsed: "*" was taken back on it.
	todo   map[string]step
	begun  bool
	lapsed bool
	// verdicts are the ACKs and NACKs to send.
	verdicts []verdictOn
}

// step is what the stream is to be told of a name.
type step uint8

const (
	add step = iota
	drop
	renew // dropped, then added: the caller has lost it meanwhile
)

// held is one subscription to a name. One that is removed and added again is
// another, so that a response to the first does not pass for one to the second.
type held struct {
	version string // empty: the caller does not have it
}

// verdictOn is an ACK of the response with a nonce, or a NACK.
type verdictOn struct {
	nonce   string
	refused *rpcstatus.Status
}

// NewDeltaClient returns a client without subscriptions. apply is called for
// each response, in order and by one goroutine, with what is subscribed to at
// that time, also where that is nothing. Where it returns an error the response
// is refused (NACK) with its text, and counts as not taken. It may call Add and
// Remove.
func NewDeltaClient(apply func(Update) error) *DeltaClient {
	return &DeltaClient{apply: apply, wake: make(chan struct{}, 1)}
}

// Add subscribes to names of a type; "*" is all that there are. Names that are
// subscribed to already stay as they are.
func (c *DeltaClient) Add(typeURL string, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(typeURL)
	if s == nil {
		s = &subscribed{typeURL: typeURL, names: map[string]*held{}, all: map[string]string{}, todo: map[string]step{}}
		c.types = append(c.types, s)
	}
	for _, n := range names {
		if s.names[n] == nil {
			// What the wildcard brought counts as had.
			s.names[n] = &held{version: s.all[n]}
			delete(s.all, n)
			if n == wildcard && s.lapsed {
				// A response from before would pass for one to the new subscription, and
				// what is gone since then would stay: the server tells the end of what
				// has no name of its own only to who has been sent it.
				c.anew = true
				c.end(errAnew)
			}
			if _, dropped := s.todo[n]; dropped {
				s.todo[n] = renew
			} else {
				s.todo[n] = add
			}
		}
	}
	c.rouse()
}

// Remove unsubscribes from names of a type. The caller then has none of them,
// but what "*" still covers: that the server sends anew. A response that is
// being applied may still bring one.
func (c *DeltaClient) Remove(typeURL string, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(typeURL)
	if s == nil {
		return
	}
	for _, n := range names {
		if s.names[n] == nil {
			continue
		}
		delete(s.names, n)
		next, ok := s.todo[n]
		if ok && next == add && (n == wildcard || s.names[wildcard] == nil) {
			delete(s.todo, n) // the stream knows nothing of it
		} else {
			s.todo[n] = drop
			s.lapsed = s.lapsed || n == wildcard
		}
		if n == wildcard {
			clear(s.all)
		}
	}
	c.rouse()
}

// Resume says which versions the caller has of a type, from disk, before the
// first Run. What is not subscribed to is passed over.
func (c *DeltaClient) Resume(typeURL string, versions map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.of(typeURL); s != nil {
		for n, v := range versions {
			s.took(n, s.bringer(n), v)
		}
	}
}

// of returns the state of a type, nil where nothing was ever subscribed to. Must
// hold c.mu.
func (c *DeltaClient) of(typeURL string) *subscribed {
	for _, s := range c.types {
		if s.typeURL == typeURL {
			return s
		}
	}
	return nil
}

func (c *DeltaClient) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// bringer is what made a resource wanted when a response brought it: the
// subscriptions to its name and to "*", nil where there was none.
type bringer struct{ named, all *held }

func (s *subscribed) bringer(name string) bringer {
	return bringer{s.names[name], s.names[wildcard]}
}

// doubtful stands for the version of what the caller may have or not, because it
// removed the subscription while it took the resource. No server gives a
// resource this version, so that the next one tells what is the case.
const doubtful = "\x00?"

// took notes a version that the caller has taken, or by an empty one that it has
// none.
func (s *subscribed) took(name string, by bringer, version string) {
	now := s.bringer(name)
	if version != "" && now != by {
		version = doubtful
	}
	switch {
	case now.named != nil:
		now.named.version = version
	case now.all == nil:
	case version == "":
		delete(s.all, name)
	default:
		s.all[name] = version
	}
}
