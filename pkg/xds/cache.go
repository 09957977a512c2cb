package xds

import (
	"maps"
	"slices"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// SetKey names one set of resources: those of one type that one view holds.
type SetKey struct {
	TypeURL string
	View    string
}

// Cache holds sets of resources and tells the streams that watch them. A set is
// not served before its first Replace: an empty answer would read as "there are
// none". It is safe for concurrent use.
type Cache struct {
	mu   sync.Mutex // taken before that of a set, never after
	sets map[SetKey]*set
}

// NewCache returns an empty cache.
func NewCache() *Cache { return &Cache{sets: map[SetKey]*set{}} }

// set is the resources of one type in one view and who watches them. Its mutex
// is taken before that of a watch, never after.
type set struct {
	key SetKey
	// users counts the watches that hold the set; guarded by the Cache's mutex.
	users int

	mu sync.Mutex
	// ready: the set is served. One that is not may still hold resources: what its
	// watchers were sent before it was dropped.
	ready     bool
	resources map[string]*discovery.Resource
	// A watch stands in wildcard, or under each name that it subscribed to.
	wildcard map[*watch]struct{}
	byName   map[string]map[*watch]struct{}
}

// set returns the set of k, made where it is missing. Must hold c.mu.
func (c *Cache) set(k SetKey) *set {
	s := c.sets[k]
	if s == nil {
		s = &set{
			key:       k,
			resources: map[string]*discovery.Resource{},
			wildcard:  map[*watch]struct{}{},
			byName:    map[string]map[*watch]struct{}{},
		}
		c.sets[k] = s
	}
	return s
}

// locked returns the set of k with its mutex held: a Drop comes before or after,
// never between.
func (c *Cache) locked(k SetKey) *set {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.set(k)
	s.mu.Lock()
	return s
}

// hold returns the set of k for a watch, which lets go of it in the end: as long
// as it is held it stays the one that Replace fills.
func (c *Cache) hold(k SetKey) *set {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.set(k)
	s.users++
	return s
}

func (c *Cache) letGo(s *set) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.users--
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 && !s.ready {
		delete(c.sets, s.key)
	}
}

// Replace makes resources the whole content of a set and tells its watchers
// what that changed. Resources with the version that the set already holds are
// unchanged, whatever their bytes. It returns how many were changed or removed.
func (c *Cache) Replace(k SetKey, resources []*discovery.Resource) int {
	s := c.locked(k)
	var changed []string
	next := make(map[string]*discovery.Resource, len(resources))
	for _, r := range resources {
		if old := s.resources[r.GetName()]; old != nil && old.GetVersion() == r.GetVersion() {
			next[r.GetName()] = old
			continue
		}
		next[r.GetName()] = r
		changed = append(changed, r.GetName())
	}
	for name := range s.resources {
		if next[name] == nil {
			changed = append(changed, name)
		}
	}
	s.resources = next
	first := !s.ready
	s.ready = true
	concerned := s.concerned(changed, first)
	for w, names := range concerned {
		w.mark(names)
	}
	s.mu.Unlock()
	// Outside the set's lock: a flush takes it again, one watch at a time, so
	// that a long list of watchers does not hold up the next change.
	for w := range concerned {
		w.flush()
	}
	return len(changed)
}

// concerned returns the watches that names concern, with the names of each; all
// of the set's watches where all is true. Must hold s.mu.
func (s *set) concerned(names []string, all bool) map[*watch][]string {
	out := map[*watch][]string{}
	for w := range s.wildcard {
		if all || len(names) > 0 {
			out[w] = names
		}
	}
	for _, n := range names {
		for w := range s.byName[n] {
			if _, ok := s.wildcard[w]; !ok {
				out[w] = append(out[w], n)
			}
		}
	}
	if all {
		for _, watches := range s.byName {
			for w := range watches {
				if _, ok := out[w]; !ok {
					out[w] = nil
				}
			}
		}
	}
	return out
}

// Drop forgets a set that no view needs any longer. Streams that still watch it
// keep what they have.
func (c *Cache) Drop(k SetKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[k]
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The key may come back to life (a node deleted and made again) while a stream
	// watches it: then Replace tells that stream what differs from what it has.
	s.ready = false
	if s.users == 0 {
		delete(c.sets, k)
	}
}

// Keys returns the keys of all sets, in no order; also of those that are only
// watched.
func (c *Cache) Keys() []SetKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.sets))
}

// Resources returns a copy of what a set serves, for status pages and tests; nil
// where it is not served.
func (c *Cache) Resources(k SetKey) map[string]*discovery.Resource {
	c.mu.Lock()
	s := c.sets[k]
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready {
		return nil
	}
	return maps.Clone(s.resources)
}

// watchers counts the watches of all sets: zero once every stream has ended.
func (c *Cache) watchers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, s := range c.sets {
		n += s.users
	}
	return n
}
