package relay

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// wildcard is the name that stands for all that there are.
const wildcard = "*"

// cache is what the control plane has answered: it gives every answer to clients,
// and knows what is to be asked. It is safe for concurrent use.
type cache struct {
	log       *slog.Logger
	now       func() time.Time
	retention time.Duration
	maxIdle   int

	// mu is taken before that of a DeltaClient, and after that of a server's watch:
	// no server is called under it.
	mu   sync.Mutex
	sets map[setKey]*set
	// idle holds the names that are asked of the control plane though nobody
	// subscribes to them any longer, those unused for longest first.
	idle *list.List
	// tunnels is what demotion goes by.
	tunnels tunnels
	// unsaved is what the file on disk lacks.
	unsaved map[key]struct{}
}

// setKey names what one kind of client sees of one type.
type setKey struct {
	kind    build.Kind
	typeURL string
}

// key names an entry.
type key struct {
	setKey
	name string
}

// set is guarded by the cache's mutex, and so are its entries.
type set struct {
	setKey
	upstream upstream
	// entries are those that somebody asks for by name, "*" too, and those that the
	// wildcard brought.
	entries map[string]*entry
	// names lists what is Found; nil where it is to be made anew.
	names []string
}

// upstream is asked for names: an xds.DeltaClient.
type upstream interface {
	Add(typeURL string, names ...string)
	Remove(typeURL string, names ...string)
}

// entry is one name. That of "*" is Found, with no resource, once everything that
// there is has come.
type entry struct {
	key
	answer xds.Answer
	// resource is as the control plane gave it, served as clients get it; nil where
	// that is to be made anew.
	resource, served *discovery.Resource
	// assignment is what an EDS resource says, where tunnels have part in it.
	assignment *build.Assignment
	// users counts the streams that subscribe to the name.
	users int
	// named: the control plane is asked for it by its name.
	named bool
	// idle is the entry's place among those that nobody uses, since when.
	idle  *list.Element
	since time.Time
}

// newCache returns an empty cache; upstream says who is asked for a kind's names.
func newCache(o Options, upstream func(build.Kind) upstream) *cache {
	c := &cache{
		log: o.Log, now: o.Now, retention: o.Retention, maxIdle: o.MaxIdle,
		sets: map[setKey]*set{}, idle: list.New(), tunnels: newTunnels(), unsaved: map[key]struct{}{},
	}
	for _, kind := range kinds {
		for _, t := range types {
			k := setKey{kind, t}
			c.sets[k] = &set{setKey: k, upstream: upstream(kind), entries: map[string]*entry{}}
		}
	}
	return c
}

// Lookup implements xds.Source; views are kinds.
func (c *cache) Lookup(view, typeURL, name string) (*discovery.Resource, xds.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[setKey{build.Kind(view), typeURL}]
	if s == nil {
		return nil, xds.Pending
	}
	e := s.entries[name]
	switch {
	case e == nil && s.complete():
		return nil, xds.Missing
	case e == nil || name == wildcard:
		return nil, xds.Pending
	case e.answer != xds.Found:
		return nil, e.answer
	}
	if err := c.serve(e); err != nil {
		c.log.Error("an assignment cannot be demoted; its clients keep what they have", "name", name, "err", err)
		return nil, xds.Pending
	}
	return e.served, xds.Found
}

// Names implements xds.Source.
func (c *cache) Names(view, typeURL string) ([]string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[setKey{build.Kind(view), typeURL}]
	if s == nil || !s.complete() {
		return nil, false
	}
	if s.names == nil {
		s.names = make([]string, 0, len(s.entries))
		for n, e := range s.entries {
			if n != wildcard && e.answer == xds.Found {
				s.names = append(s.names, n)
			}
		}
	}
	return s.names, true
}

// complete reports whether the wildcard was answered. Must hold the cache's
// mutex.
func (s *set) complete() bool {
	w := s.entries[wildcard]
	return w != nil && w.answer == xds.Found
}

// change says what an update altered: names, or everything. fresh: some name was
// not Found before.
type change struct {
	names      []string
	all, fresh bool
}

// apply takes in what the control plane answers to a kind's names. What is wrong
// is left out, and the error says so; what stood there stays.
func (c *cache) apply(kind build.Kind, u xds.Update) (change, error) {
	var errs []error
	good := make([]*discovery.Resource, 0, len(u.Resources))
	read := make([]*build.Assignment, 0, len(u.Resources))
	for _, r := range u.Resources {
		a, err := check(u.TypeURL, r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		good, read = append(good, r), append(read, a)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[setKey{kind, u.TypeURL}]
	if s == nil {
		return change{}, fmt.Errorf("type %s was not asked for", u.TypeURL)
	}
	var out change
	w := s.entries[wildcard]
	for i, r := range good {
		e := s.entries[r.GetName()]
		switch {
		case e == nil && w == nil:
			continue // unsubscribed meanwhile
		case e == nil:
			e = s.add(r.GetName())
		case e.answer == xds.Found && e.resource.GetVersion() == r.GetVersion():
			continue
		}
		out.fresh = out.fresh || e.answer != xds.Found
		c.fill(e, r, read[i])
		out.names = append(out.names, e.name)
	}
	for _, name := range u.Removed {
		e := s.entries[name]
		if e == nil || name == wildcard || e.answer == xds.Missing {
			continue
		}
		out.names = append(out.names, name)
		c.empty(e)
		switch {
		case e.users > 0:
			e.answer = xds.Missing
		case e.named:
			c.end(e)
		default:
			delete(s.entries, name)
		}
	}
	if w != nil && w.answer != xds.Found {
		// The first answer to a wildcard holds all that there is.
		w.answer, out.all = xds.Found, true
		c.unsaved[w.key] = struct{}{}
	}
	return out, errors.Join(errs...)
}

// check refuses a resource that no client could use. Of an assignment it returns
// what it says, where tunnels have part in it.
func check(typeURL string, r *discovery.Resource) (*build.Assignment, error) {
	switch {
	case r.GetName() == "" || r.GetName() == wildcard || r.GetVersion() == "":
		return nil, fmt.Errorf("resource %q of version %q: want a name and a version", r.GetName(), r.GetVersion())
	case r.GetResource().GetTypeUrl() != typeURL:
		return nil, fmt.Errorf("resource %q: type %q, want %q", r.GetName(), r.GetResource().GetTypeUrl(), typeURL)
	case typeURL != resource.EndpointType:
		return nil, nil
	}
	a, err := build.ParseEDS(r)
	if err != nil {
		return nil, err
	}
	for i := range a.Direct {
		if a.Direct[i].Reason == mesh.ReasonTunnel {
			return &a, nil
		}
	}
	return nil, nil
}

func (s *set) add(name string) *entry {
	e := &entry{key: key{s.setKey, name}}
	s.entries[name] = e
	return e
}

// fill makes an entry Found. Must hold c.mu.
func (c *cache) fill(e *entry, r *discovery.Resource, a *build.Assignment) {
	c.tunnels.remove(e)
	e.answer, e.resource, e.served, e.assignment = xds.Found, r, nil, a
	c.tunnels.add(e)
	c.altered(e)
}

// empty makes an entry one of which nothing is known. Must hold c.mu.
func (c *cache) empty(e *entry) {
	if e.answer != xds.Found {
		return
	}
	c.tunnels.remove(e)
	e.answer, e.resource, e.served, e.assignment = xds.Pending, nil, nil, nil
	c.altered(e)
}

func (c *cache) altered(e *entry) {
	c.sets[e.setKey].names = nil
	c.unsaved[e.key] = struct{}{}
}
