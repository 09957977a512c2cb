package xds

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// shelf is a Source that knows each name by itself, in all views alike. It counts
// what it is asked.
type shelf struct {
	mu       sync.Mutex
	names    map[topic]*discovery.Resource // nil: missing
	unlisted bool                          // the lists of names are not known
	lookups  atomic.Int64
	hold     map[string]chan struct{} // a Lookup of such a name waits
}

func newShelf() *shelf { return &shelf{names: map[topic]*discovery.Resource{}} }

func (s *shelf) Lookup(_, typeURL, name string) (*discovery.Resource, Answer) {
	s.lookups.Add(1)
	s.mu.Lock()
	hold := s.hold[name]
	r, known := s.names[topic{typeURL: typeURL, key: name}]
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	switch {
	case !known:
		return nil, Pending
	case r == nil:
		return nil, Missing
	default:
		return r, Found
	}
}

func (s *shelf) Names(_, typeURL string) ([]string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for t, r := range s.names {
		if t.typeURL == typeURL && r != nil {
			out = append(out, t.key)
		}
	}
	return out, !s.unlisted
}

// put makes the names of "name=version" found, those of "name" missing and those
// of "name?" not known, and returns them.
func (s *shelf) put(typeURL string, list ...string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range list {
		name, version, found := strings.Cut(x, "=")
		name, unknown := strings.CutSuffix(name, "?")
		t := topic{typeURL: typeURL, key: name}
		switch {
		case unknown:
			delete(s.names, t)
		case !found:
			s.names[t] = nil
		default:
			s.names[t] = &discovery.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(x)}}
		}
		names = append(names, name)
	}
	return names
}

func (s *shelf) list(known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlisted = !known
}

// asked returns how often the shelf was asked while f ran.
func (s *shelf) asked(f func()) int64 {
	before := s.lookups.Load()
	f()
	return s.lookups.Load() - before
}

// serveShelf serves a shelf.
func serveShelf(t testing.TB) (*service, *shelf) {
	t.Helper()
	sh := newShelf()
	s := newService()
	s.start(t, sh)
	return s, sh
}

// change puts something on the shelf and tells the server.
func (s *service) change(sh *shelf, typeURL string, list ...string) {
	s.server.Changed(typeURL, sh.put(typeURL, list...)...)
}

func TestMux(t *testing.T) {
	a, b := NewCache(), newShelf()
	m := Mux{thing: a, mark: b, "other": a}
	told := 0
	m.Tell(func(typeURL, view string, names ...string) { told++ })
	if _, answer := m.Lookup("v", thing, "a"); answer != Pending {
		t.Errorf("before it is filled: %v", answer)
	}
	a.Replace(SetKey{thing, "v"}, things("a=1"))
	b.put(mark, "x=1", "y")
	if told != 1 {
		t.Errorf("told %d times of one change", told)
	}
	for _, c := range []struct {
		typeURL, name string
		want          Answer
	}{{thing, "a", Found}, {thing, "b", Missing}, {mark, "x", Found}, {mark, "y", Missing}, {mark, "z", Pending}, {"unknown", "a", Pending}} {
		if r, got := m.Lookup("v", c.typeURL, c.name); got != c.want || (r != nil) != (got == Found) {
			t.Errorf("%s %s: %v, %v", c.typeURL, c.name, r, got)
		}
	}
	for typeURL, want := range map[string][]string{thing: {"a"}, mark: {"x"}} {
		if got, ok := m.Names("v", typeURL); !ok || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", typeURL, got, ok)
		}
	}
	if _, ok := m.Names("v", "unknown"); ok {
		t.Error("the names of an unknown type are known")
	}
}

func TestAnswersHaveNames(t *testing.T) {
	got := map[string]bool{}
	for _, a := range []Answer{Pending, Missing, Found} {
		got[a.String()] = true
	}
	if want := map[string]bool{"pending": true, "missing": true, "found": true}; !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
