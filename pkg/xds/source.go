package xds

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Answer says what is known of a name.
type Answer uint8

const (
	// Pending: it is not known yet whether the name exists. Clients are told
	// nothing and keep what they have.
	Pending Answer = iota
	// Missing: the name does not exist. Clients are told so as far as their
	// protocol can.
	Missing
	// Found: the name exists.
	Found
)

// String returns "pending", "missing" or "found".
func (a Answer) String() string {
	switch a {
	case Missing:
		return "missing"
	case Found:
		return "found"
	default:
		return "pending"
	}
}

// Source holds the resources of a [Server]. It is called by many goroutines at
// once, also while Changed is called. It must be fast, and must not call the
// server from within a call. Whatever alters an answer, also from Pending, is
// told to the server after the source gives the new one.
type Source interface {
	// Lookup returns what clients of a view get under a name. Where it is Found
	// the resource has that name and a version that is not empty, and is the same
	// pointer for all clients that see it alike; it is never altered.
	Lookup(view, typeURL, name string) (*discovery.Resource, Answer)
	// Names lists a type's names in a view, for wildcard subscriptions; false
	// while it is not known yet. The list is not altered later.
	Names(view, typeURL string) ([]string, bool)
}

// teller is a source that tells by itself what changes in it.
type teller interface {
	Tell(changed func(typeURL, view string, names ...string))
}

// Mux is a [Source] made of one for each type. Nothing is ever known of other
// types.
type Mux map[string]Source

// Lookup implements [Source].
func (m Mux) Lookup(view, typeURL, name string) (*discovery.Resource, Answer) {
	if s := m[typeURL]; s != nil {
		return s.Lookup(view, typeURL, name)
	}
	return nil, Pending
}

// Names implements [Source].
func (m Mux) Names(view, typeURL string) ([]string, bool) {
	if s := m[typeURL]; s != nil {
		return s.Names(view, typeURL)
	}
	return nil, false
}

// Tell has each source of m that can tell what changes in it call changed.
func (m Mux) Tell(changed func(typeURL, view string, names ...string)) {
	told := map[teller]bool{}
	for _, s := range m {
		if t, ok := s.(teller); ok && !told[t] {
			told[t] = true
			t.Tell(changed)
		}
	}
}
