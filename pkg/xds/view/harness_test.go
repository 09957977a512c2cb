package view

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/internal/testmesh"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

var types = []string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType, resource.SecretType}

func options(mcs bool) Options {
	return Options{TrustDomain: "test.local", MCS: mcs, Log: slog.New(slog.DiscardHandler)}
}

// views are those of all clients of a testmesh.World.
func views() (out []string) {
	for _, n := range testmesh.Nodes() {
		out = append(out, viewsOf(n)...)
	}
	for _, c := range testmesh.Clusters {
		out = append(out, gatewayOf(c))
	}
	return out
}

func gatewayOf(cluster string) string { return Of(build.Gateway, mesh.NodeID{Cluster: cluster}) }

// namesIn returns all names of a type that the services of a world may have.
func namesIn(typeURL string, mcs bool) []string {
	all := &mesh.Service{}
	for _, p := range testmesh.Ports() {
		all.Parts = append(all.Parts, mesh.ServicePart{Ports: []mesh.ServicePort{{Number: p}}})
	}
	var out []string
	for _, n := range testmesh.ServiceNames() {
		s := *all
		s.Name = n
		out = append(out, newServed(&s).namesOf(typeURL, mcs)...)
	}
	switch typeURL {
	case resource.ClusterType:
		out = append(out, "PassthroughCluster", "BlackHoleCluster")
	case resource.ListenerType:
		for _, p := range gatewayPorts {
			out = append(out, "gateway_"+strconv.Itoa(int(p)))
		}
	case resource.SecretType:
		out = append(out, "default", "ROOTCA")
	}
	return sorted(out)
}

// key names an answer.
type key struct{ view, typeURL, name string }

// answer is one, as far as a client can tell.
type answer struct {
	is      xds.Answer
	version string
}

func look(c *Catalog, k key) answer {
	r, is := c.Lookup(k.view, k.typeURL, k.name)
	return answer{is, r.GetVersion()}
}

// audience is a Listener in place of the xDS server: clients of all views that
// subscribe to everything, and look anew only at what they are told of.
type audience struct {
	t *testing.T
	c *Catalog

	mu    sync.Mutex
	names map[string][]string // by type: all that clients subscribe to
	has   map[key]answer
	told  []telling
	// gate holds back whoever waits for clients to settle; nil: nobody.
	gate chan struct{}
}

// telling is one call of Changed or ChangedIn.
type telling struct {
	typeURL, view string
	names         []string
}

func attend(t *testing.T, c *Catalog) *audience {
	a := &audience{t: t, c: c, names: map[string][]string{}, has: map[key]answer{}}
	for _, typeURL := range types {
		a.names[typeURL] = namesIn(typeURL, c.opts.MCS)
	}
	c.Attach(a)
	return a
}

func (a *audience) Changed(typeURL string, names ...string) {
	for _, v := range views() {
		a.look(v, typeURL, names)
	}
	a.note(telling{typeURL, "", names})
}

func (a *audience) ChangedIn(typeURL, view string, names ...string) {
	a.note(telling{typeURL, view, names})
	if len(names) == 0 {
		names = a.subscribed(typeURL)
	}
	a.look(view, typeURL, names)
}

func (a *audience) note(x telling) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = append(a.told, x)
}

func (a *audience) subscribed(typeURL string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.names[typeURL])
}

// look is what clients do who are told: those who subscribed to a name, or to
// everything, compare it with what they have. Where nothing is known they keep it.
func (a *audience) look(view, typeURL string, names []string) {
	for _, n := range names {
		k := key{view, typeURL, n}
		got := look(a.c, k)
		a.mu.Lock()
		if i, known := slices.BinarySearch(a.names[typeURL], n); !known {
			a.names[typeURL] = slices.Insert(a.names[typeURL], i, n) // an Envoy's listener, by its address
		}
		if got.is != xds.Pending {
			a.has[k] = got
		}
		a.mu.Unlock()
	}
}

func (a *audience) Settled(ctx context.Context, _ string, names ...string) error {
	if len(names) == 0 {
		a.t.Error("Settled without names: of everything")
	}
	a.mu.Lock()
	gate := a.gate
	a.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hold makes clients take their time until the returned function is called.
func (a *audience) hold() (settle func()) {
	gate := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gate = gate
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.gate = nil
		close(gate)
	})
}

// since returns what was told since it was last called.
func (a *audience) since() []telling {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.told
	a.told = nil
	return out
}

// missed returns the answers that changed without a word.
func (a *audience) missed() (out []key) {
	a.mu.Lock()
	has := a.has
	a.mu.Unlock()
	for _, typeURL := range types {
		for _, n := range a.subscribed(typeURL) {
			for _, v := range views() {
				k := key{v, typeURL, n}
				got := look(a.c, k)
				had := has[k]
				if had.is == xds.Pending {
					had.is = xds.Missing // never told anything
				}
				if got.is != xds.Pending && got != had {
					out = append(out, k)
				}
			}
		}
	}
	return out
}

// fresh is a Catalog that is told the state of a world at once.
func fresh(ctx context.Context, w *testmesh.World, o Options, gaveUp map[mesh.NodeID]bool) *Catalog {
	c := New(ctx, o)
	c.SetTopology(w.Topology)
	c.SetServices(w.Services)
	for id, r := range w.Reach {
		c.SetReport(id, r)
	}
	for id := range gaveUp {
		c.GiveUp(id)
	}
	c.Begin(nil)
	return c
}

// bytesOf returns what a resource holds.
func bytesOf(r *discovery.Resource) string { return string(r.GetResource().GetValue()) }
