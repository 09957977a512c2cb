package relay

import (
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// What one pod may subscribe to, over all of its streams. An answer is held in
// memory until the client has read it, so that these bound what one that does not
// read costs.
const (
	// maxUnknown bounds the names that do not exist, or of which nobody knows yet:
	// each is asked of the control plane.
	maxUnknown = 1000
	// maxSubscriptions bounds the names, each as often as a stream subscribes to it:
	// room for two Envoys in a mesh of 20,000 services.
	maxSubscriptions = 50_000
	// maxWildcards bounds the subscriptions to everything of a type: an Envoy has
	// two.
	maxWildcards = 16
)

// asker is who subscribes: all that runs in one pod. It is guarded by the cache's
// mutex.
type asker struct {
	subscriptions, wildcards int
	// unknown counts the subscriptions to names that did not exist when they were
	// asked for.
	unknown map[*entry]int
}

// subscribe notes that a stream of an asker subscribes to a name, and sees to it
// that the control plane is asked for it. Its error is a gRPC status.
func (c *cache) subscribe(a *asker, k setKey, name string) (*entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[k]
	e := s.entries[name]
	unknown := !c.expected(s, name)
	if err := a.admit(e, name, unknown); err != nil {
		return nil, err
	}
	if e == nil {
		e = s.add(name)
	}
	a.subscriptions++
	if name == wildcard {
		a.wildcards++
	}
	if unknown {
		a.unknown[e]++
	}
	e.users++
	if e.idle != nil {
		c.idle.Remove(e.idle)
		e.idle = nil
	}
	if !e.named {
		e.named = true
		s.upstream.Add(k.typeURL, name)
	}
	return e, nil
}

// expected reports whether a name exists for all that is known here: so do the
// assignments of clusters. Must hold c.mu.
func (c *cache) expected(s *set, name string) bool {
	if e := s.entries[name]; name == wildcard || e != nil && e.answer == xds.Found {
		return true
	}
	if s.typeURL != resource.EndpointType {
		return false
	}
	e := c.sets[setKey{s.kind, resource.ClusterType}].entries[name]
	return e != nil && e.answer == xds.Found
}

// admit refuses one more subscription where there are too many; e is the name's
// entry, if there is one. Must hold the cache's mutex.
func (a *asker) admit(e *entry, name string, unknown bool) error {
	switch {
	case a.subscriptions >= maxSubscriptions:
		return status.Errorf(codes.ResourceExhausted, "this pod has %d subscriptions already", maxSubscriptions)
	case name == wildcard && a.wildcards >= maxWildcards:
		return status.Errorf(codes.ResourceExhausted, "this pod has %d wildcard subscriptions already", maxWildcards)
	case !unknown || len(a.unknown) < maxUnknown || a.unknown[e] > 0:
		return nil
	}
	for u := range a.unknown {
		if u.answer == xds.Found {
			delete(a.unknown, u)
		}
	}
	if len(a.unknown) < maxUnknown {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted, "this pod asks for more than %d names that do not exist", maxUnknown)
}

// unsubscribe takes back what subscribe noted. Entries that were Found, and
// wildcards, are kept for those who come later.
func (c *cache) unsubscribe(a *asker, entries ...*entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		a.subscriptions--
		if e.name == wildcard {
			a.wildcards--
		}
		if n := a.unknown[e]; n > 1 {
			a.unknown[e] = n - 1
		} else {
			delete(a.unknown, e)
		}
		e.users--
		switch {
		case e.users > 0:
		case e.answer != xds.Found && e.name != wildcard:
			c.end(e)
		default:
			// A wildcard that comes and goes would have the stream to the control plane
			// begin anew each time.
			c.rest(e)
		}
	}
}

// rest puts an entry among those that nobody uses. Must hold c.mu.
func (c *cache) rest(e *entry) {
	e.since = c.now()
	e.idle = c.idle.PushBack(e)
	for c.idle.Len() > c.maxIdle {
		c.end(c.idle.Front().Value.(*entry))
	}
}

// expire ends what nobody has used for the retention, of those kinds that the
// control plane answers to: while it is away what it said last is all that there
// is.
func (c *cache) expire(connected map[build.Kind]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.now().Add(-c.retention)
	for f := c.idle.Front(); f != nil; {
		e := f.Value.(*entry)
		f = f.Next()
		if e.since.After(before) {
			return
		}
		if connected[e.kind] {
			c.end(e)
		}
	}
}

// end has the control plane no longer asked for a name that nobody uses. What the
// wildcard brings stays as long as that. Must hold c.mu.
func (c *cache) end(e *entry) {
	s := c.sets[e.setKey]
	if e.idle != nil {
		c.idle.Remove(e.idle)
		e.idle = nil
	}
	e.named = false
	s.upstream.Remove(e.typeURL, e.name)
	if e.name == wildcard {
		delete(s.entries, wildcard)
		c.altered(e)
		for _, o := range s.entries {
			if !o.named {
				c.empty(o)
				delete(s.entries, o.name)
			}
		}
		return
	}
	if e.answer == xds.Found && s.entries[wildcard] != nil {
		return
	}
	c.empty(e)
	delete(s.entries, e.name)
}

// restore puts in place what was kept on disk: nobody uses it yet. Versions are
// those that the control plane need not send again. There may be more than maxIdle:
// they were in use, and whoever uses them comes back. It is called before anybody
// subscribes.
func (c *cache) restore(kept []record) (versions map[setKey]map[string]string, errs []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	versions = map[setKey]map[string]string{}
	for _, r := range kept {
		s := c.sets[r.setKey]
		if s == nil {
			continue // of a type that another version relays
		}
		e := s.add(r.name)
		if r.name == wildcard {
			e.answer = xds.Found
			continue
		}
		a, err := check(r.typeURL, r.resource)
		if err != nil {
			errs = append(errs, err)
			delete(s.entries, r.name)
			continue
		}
		c.fill(e, r.resource, a)
		if versions[r.setKey] == nil {
			versions[r.setKey] = map[string]string{}
		}
		versions[r.setKey][r.name] = r.resource.GetVersion()
	}
	clear(c.unsaved) // that is what the file has
	for _, s := range c.sets {
		w := s.entries[wildcard]
		for _, e := range s.entries {
			if e == w || w == nil {
				e.named, e.since, e.idle = true, c.now(), c.idle.PushBack(e)
				s.upstream.Add(e.typeURL, e.name)
			}
		}
	}
	return versions, errs
}
