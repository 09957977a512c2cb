package route

import (
	"sync"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// held is what of flatmesh's the kernel holds, as Observe last saw it and Apply
// has changed it since. By it Watch tells what others do from the echo of the
// Table's own changes: not every notification names who asked for the change.
type held struct {
	mu   sync.Mutex
	link int
	// keys holds a routeKey, a ruleKey, or the netip.Prefix of an address on the
	// interface.
	keys map[any]bool
}

type ruleKey struct {
	family   mesh.Family
	priority int
}

func (r Rule) key() ruleKey { return ruleKey{r.Family, r.Priority} }

func (h *held) reset(a Actual) {
	keys := make(map[any]bool, len(a.Routes))
	for _, r := range a.Routes {
		keys[r.key()] = true
	}
	for _, r := range a.Rules {
		keys[r.key()] = true
	}
	for _, p := range a.Addrs {
		keys[p] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link, h.keys = a.LinkIndex, keys
}

func (h *held) add(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[key] = true
}

func (h *held) remove(key any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, key)
}

func (h *held) has(key any) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[key]
}

func (h *held) isLink(index int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return index == h.link
}
