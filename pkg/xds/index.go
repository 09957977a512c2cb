package xds

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// topicKind says what the key of a topic is.
type topicKind uint8

const (
	byName      topicKind = iota // a name: the watches that subscribed to it
	byView                       // a view: all watches of it
	wildcardsOf                  // a view: its wildcard watches
	wildcards                    // no key: the wildcard watches of every view
	everyone                     // no key: all watches of the type
)

// topic is something that a change may concern.
type topic struct {
	kind         topicKind
	typeURL, key string
}

// index knows the watches of each topic. It is cut in shards by topic so that
// thousands of streams do not wait for one lock. Its locks are innermost: while
// one is held no other is taken.
type index struct {
	seed   maphash.Seed
	ids    atomic.Uint64 // of watches
	shards [64]shard
}

type shard struct {
	mu     sync.Mutex
	topics map[topic]*followers
	peak   int // the most topics since the map was made
}

// roomy reports whether something made for as many is kept by too few to be
// worth its memory: what a crowd needed does not stay when it is gone.
func roomy(made, kept int) bool { return made > 128 && kept < made/8 }

// followers are the watches of a topic, in the order of their ids: a fourth of
// what a map would take, where thousands of clients subscribe to a thousand names.
type followers struct {
	key     string // as the topic has it; the string that all of its watches share
	watches []*watch
}

func (f *followers) find(w *watch) (int, bool) {
	return slices.BinarySearchFunc(f.watches, w, func(a, b *watch) int { return cmp.Compare(a.id, b.id) })
}

func newIndex() *index {
	x := &index{seed: maphash.MakeSeed()}
	for i := range x.shards {
		x.shards[i].topics = map[topic]*followers{}
	}
	return x
}

// locked returns the shard of t with its lock held.
func (x *index) locked(t topic) *shard {
	s := &x.shards[maphash.Comparable(x.seed, t)%uint64(len(x.shards))]
	s.mu.Lock()
	return s
}

func (x *index) add(t topic, w *watch) {
	s := x.locked(t)
	defer s.mu.Unlock()
	f := s.topics[t]
	if f == nil {
		f = &followers{key: t.key}
		s.topics[t] = f
		s.peak = max(s.peak, len(s.topics))
	}
	i, there := f.find(w)
	if !there {
		f.watches = slices.Insert(f.watches, i, w) // at the end, for a new watch
	}
}

func (x *index) remove(t topic, w *watch) {
	s := x.locked(t)
	defer s.mu.Unlock()
	f := s.topics[t]
	if f == nil {
		return
	}
	if i, there := f.find(w); there {
		f.watches = slices.Delete(f.watches, i, i+1)
	}
	if roomy(cap(f.watches), len(f.watches)) {
		f.watches = slices.Clone(f.watches)
	}
	if len(f.watches) > 0 {
		return
	}
	delete(s.topics, t)
	if roomy(s.peak, len(s.topics)) {
		topics := make(map[topic]*followers, len(s.topics))
		maps.Copy(topics, s.topics)
		s.topics, s.peak = topics, len(topics)
	}
}

// shared returns the key of t as the one string that all watches of t hold, so
// that a name costs its bytes once and not for each client.
func (x *index) shared(t topic) string {
	s := x.locked(t)
	defer s.mu.Unlock()
	if f := s.topics[t]; f != nil {
		return f.key
	}
	return t.key
}

// watches appends the watches of t to list.
func (x *index) watches(list []*watch, t topic) []*watch {
	s := x.locked(t)
	defer s.mu.Unlock()
	if f := s.topics[t]; f != nil {
		list = append(list, f.watches...)
	}
	return list
}

// among appends those of ofView, the watches of one view, that subscribed to a
// name. It walks the smaller of the two: a view has few watches where it is a
// node, a name where it is a service that few use.
func (x *index) among(list, ofView []*watch, typeURL, view, name string) []*watch {
	s := x.locked(topic{byName, typeURL, name})
	defer s.mu.Unlock()
	f := s.topics[topic{byName, typeURL, name}]
	switch {
	case f == nil:
	case len(f.watches) <= len(ofView):
		for _, w := range f.watches {
			if w.view == view {
				list = append(list, w)
			}
		}
	default:
		for _, w := range ofView {
			if _, there := f.find(w); there {
				list = append(list, w)
			}
		}
	}
	return list
}
