package relay

import (
	"slices"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// Status is what `agent status` shows of the relay. Its JSON fields are stable.
type Status struct {
	// Socket is where it serves; Serving is false while it does not.
	Socket  string `json:"socket"`
	Serving bool   `json:"serving"`
	// Connections are open now; RefusedConnections were too many, since the start.
	Connections        int          `json:"connections"`
	RefusedConnections uint64       `json:"refusedConnections"`
	Kinds              []KindStatus `json:"kinds"`
	// Demoted are the nodes whose pods are served through gateways because this
	// node's tunnels to them cannot be used, and DemotedAssignments counts the
	// assignments that this concerns.
	Demoted            []mesh.NodeID `json:"demoted"`
	DemotedAssignments int           `json:"demotedAssignments"`
	// Idle counts the names that nobody on the node subscribes to any longer and
	// that are kept for those who will.
	Idle  int         `json:"idle"`
	Cache CacheStatus `json:"cache"`
}

// CacheStatus is the file that outlives the agent.
type CacheStatus struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	// Problems say what of it could not be read at the start or cannot be written.
	Problems []string `json:"problems,omitempty"`
}

// KindStatus is one kind of client.
type KindStatus struct {
	Kind build.Kind `json:"kind"`
	// Clients counts the streams that are open.
	Clients  int            `json:"clients"`
	Upstream UpstreamStatus `json:"upstream"`
	Types    []TypeStatus   `json:"types"`
}

// TypeStatus is one type of resource as one kind of client sees it.
type TypeStatus struct {
	// Type is the last part of the type URL, as in "ClusterLoadAssignment".
	Type string `json:"type"`
	// Subscribed counts the names that clients subscribe to, "*" as one.
	Subscribed int `json:"subscribed"`
	// Found, Missing and Pending count what the control plane has said: that it is
	// there, that it is not, nothing yet.
	Found   int `json:"found"`
	Missing int `json:"missing"`
	Pending int `json:"pending"`
	// NACKs counts what clients refused since the start.
	NACKs uint64 `json:"nacks"`
}

// UpstreamState is how the relay stands with the control plane for one kind.
type UpstreamState string

// The states.
const (
	// UpstreamIdle: no client of the kind has asked for anything.
	UpstreamIdle UpstreamState = "idle"
	// UpstreamConnecting: a stream is open and not answered yet.
	UpstreamConnecting UpstreamState = "connecting"
	UpstreamConnected  UpstreamState = "connected"
	// UpstreamAway: clients are served from the cache.
	UpstreamAway UpstreamState = "away"
)

// UpstreamStatus is one kind's stream to the control plane.
type UpstreamStatus struct {
	State UpstreamState `json:"state"`
	Since time.Time     `json:"since"`
	// Error is why the last stream ended, or why the next one does not open.
	Error string `json:"error,omitempty"`
}

// Status returns the state of now.
func (r *Relay) Status() Status {
	nodes := r.cache.demotedNodes()
	s := Status{
		Socket: r.opts.socket(), Demoted: nodes, DemotedAssignments: len(r.cache.demotedNames()), Idle: r.cache.idleCount(),
		Cache: CacheStatus{Path: r.opts.CacheFile},
	}
	r.mu.Lock()
	if r.listener != nil {
		s.Serving, s.Connections, s.RefusedConnections = true, r.listener.conns(), r.listener.refused.Load()
	}
	for _, p := range []string{r.readProblem, r.saveProblem} {
		if p != "" {
			s.Cache.Problems = append(s.Cache.Problems, p)
		}
	}
	r.mu.Unlock()
	r.fileMu.Lock()
	s.Cache.Bytes = r.journal.size
	r.fileMu.Unlock()
	streams := r.clients.byKind()
	nacks := r.refusals.snapshot()
	for _, kind := range kinds {
		k := KindStatus{Kind: kind, Clients: streams[kind], Upstream: r.followers[kind].status()}
		for _, t := range types {
			ts := r.cache.count(setKey{kind, t})
			ts.Type, ts.NACKs = shortType(t), nacks[setKey{kind, t}]
			k.Types = append(k.Types, ts)
		}
		s.Kinds = append(s.Kinds, k)
	}
	return s
}

func shortType(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

// byKind counts the streams that have said what kind they are of.
func (c *clients) byKind() map[build.Kind]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[build.Kind]int{}
	for s := range c.sessions {
		if k := s.kindNow(); k != "" {
			out[k]++
		}
	}
	return out
}

func (s *session) kindNow() build.Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kind
}

func (c *cache) idleCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idle.Len()
}

func (c *cache) count(k setKey) TypeStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out TypeStatus
	for name, e := range c.sets[k].entries {
		if e.users > 0 {
			out.Subscribed++
		}
		switch {
		case name == wildcard:
		case e.answer == xds.Found:
			out.Found++
		case e.answer == xds.Missing:
			out.Missing++
		default:
			out.Pending++
		}
	}
	return out
}

// named returns copies of the entries of a type that a function picks, by kind and
// name.
func (c *cache) named(typeURL string, pick func(name string) bool) []entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []entry
	for _, kind := range kinds {
		first := len(out)
		for name, e := range c.sets[setKey{kind, typeURL}].entries {
			if name != wildcard && pick(name) {
				out = append(out, *e)
			}
		}
		slices.SortFunc(out[first:], func(a, b entry) int { return strings.Compare(a.name, b.name) })
	}
	return out
}
