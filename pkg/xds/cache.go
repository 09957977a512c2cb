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

// Cache is a [Source] of sets that are filled as a whole. A set is not known
// before its first Replace: an empty answer would read as "there are none". It
// is safe for concurrent use.
type Cache struct {
	mu   sync.RWMutex
	sets map[SetKey]set
	// listeners is guarded by mu, and only grows.
	listeners []func(typeURL, view string, names ...string)
}

// set is one state of a set; it is never altered.
type set struct {
	resources map[string]*discovery.Resource
	names     []string
}

var (
	_ Source = (*Cache)(nil)
	_ teller = (*Cache)(nil)
)

// NewCache returns an empty cache.
func NewCache() *Cache { return &Cache{sets: map[SetKey]set{}} }

// Tell has changed called after each change of a set with the names that
// changed, or without names where the whole set may have. [NewServer] does this
// for its server.
func (c *Cache) Tell(changed func(typeURL, view string, names ...string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners = append(c.listeners, changed)
}

// Lookup implements [Source].
func (c *Cache) Lookup(view, typeURL, name string) (*discovery.Resource, Answer) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s, ok := c.sets[SetKey{TypeURL: typeURL, View: view}]
	if !ok {
		return nil, Pending
	}
	if r := s.resources[name]; r != nil {
		return r, Found
	}
	return nil, Missing
}

// Names implements [Source].
func (c *Cache) Names(view, typeURL string) ([]string, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s, ok := c.sets[SetKey{TypeURL: typeURL, View: view}]
	return s.names, ok
}

// Replace makes resources the whole content of a set and tells who watches it
// what that changed. Resources with the version that the set already holds are
// unchanged, whatever their bytes. It returns how many were changed or removed.
func (c *Cache) Replace(k SetKey, resources []*discovery.Resource) int {
	c.mu.Lock()
	old, known := c.sets[k]
	var changed []string
	next := make(map[string]*discovery.Resource, len(resources))
	for _, r := range resources {
		if was := old.resources[r.GetName()]; was != nil && was.GetVersion() == r.GetVersion() {
			next[r.GetName()] = was
			continue
		}
		next[r.GetName()] = r
		changed = append(changed, r.GetName())
	}
	for name := range old.resources {
		if next[name] == nil {
			changed = append(changed, name)
		}
	}
	c.sets[k] = set{resources: next, names: slices.Collect(maps.Keys(next))}
	listeners := c.listeners
	c.mu.Unlock()
	for _, tell := range listeners {
		switch {
		case !known: // also to those who ask for what is not in it
			tell(k.TypeURL, k.View)
		case len(changed) > 0:
			tell(k.TypeURL, k.View, changed...)
		}
	}
	return len(changed)
}

// Drop forgets a set that no view needs any longer. Streams that still watch it
// keep what they have; where the set comes back (a node deleted and made again)
// they are told what differs.
func (c *Cache) Drop(k SetKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sets, k)
}

// Keys returns the keys of all sets, in no order.
func (c *Cache) Keys() []SetKey {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Keys(c.sets))
}

// Resources returns a copy of a set, for status pages and tests; nil where
// there is none.
func (c *Cache) Resources(k SetKey) map[string]*discovery.Resource {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return maps.Clone(c.sets[k].resources)
}
