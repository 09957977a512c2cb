package view

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/internal/testmesh"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// walker takes a Catalog through the changes of a world.
type walker struct {
	*testmesh.World
	c      *Catalog
	gaveUp map[mesh.NodeID]bool
}

// step makes one change and says which.
func (w *walker) step() string {
	switch k := w.IntN(20); {
	case k < 6:
		w.ChangeTopology()
		w.c.SetTopology(w.Topology)
		return "topology"
	case k < 13:
		changed := map[mesh.ServiceName]*mesh.Service{}
		for range 1 + w.IntN(2) {
			n := w.ChangeService()
			changed[n] = w.Services[n]
		}
		w.c.SetServices(changed)
		return fmt.Sprint("services ", slices.SortedFunc(maps.Keys(changed), mesh.ServiceName.Compare))
	case k < 18:
		id := w.ChangeReport()
		w.c.SetReport(id, w.Reach[id])
		if w.Reach[id] != nil {
			delete(w.gaveUp, id)
		}
		return "report of " + id.String()
	default:
		id := testmesh.Nodes()[w.IntN(len(testmesh.Nodes()))]
		if k == 18 {
			w.c.GiveUp(id)
			if w.Reach[id] == nil {
				w.gaveUp[id] = true
			}
			return "give up " + id.String()
		}
		w.c.Forget(id)
		delete(w.gaveUp, id)
		return "forget " + id.String()
	}
}

// What comes of changes one by one is what comes of their result at once; every
// answer that changes is told, once it is the new one; and clients that get the
// same share it.
func TestWalk(t *testing.T) {
	for _, mcs := range []bool{false, true} {
		t.Run(fmt.Sprint("mcs=", mcs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { walk(t, 1, mcs, 60) })
		})
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(uint64(7), true)
	f.Add(uint64(22), false)
	f.Fuzz(func(t *testing.T, seed uint64, mcs bool) {
		synctest.Test(t, func(t *testing.T) { walk(t, seed, mcs, 20) })
	})
}

func walk(t *testing.T, seed uint64, mcs bool, steps int) {
	w := &walker{World: testmesh.New(seed), c: New(t.Context(), options(mcs)), gaveUp: map[mesh.NodeID]bool{}}
	a := attend(t, w.c)
	w.c.SetTopology(w.Topology)
	w.c.SetServices(w.Services)
	for _, id := range testmesh.Nodes() {
		w.c.SetReport(id, w.Reach[id])
	}
	if missed := a.missed(); missed != nil {
		t.Fatalf("answered before everything is told: %v", missed[0])
	}
	w.c.Begin(testmesh.Nodes())
	var settle func()
	for i := range steps {
		if settle == nil && w.IntN(3) == 0 {
			settle = a.hold()
		}
		what := w.step()
		synctest.Wait()
		if missed := a.missed(); missed != nil {
			t.Fatalf("step %d, %s: not told of %v", i, what, missed[0])
		}
		listed(t, w.c)
		if settle == nil || w.IntN(3) > 0 {
			continue
		}
		settle()
		settle = nil
		synctest.Wait()
		if missed := a.missed(); missed != nil {
			t.Fatalf("step %d, %s, settled: not told of %v", i, what, missed[0])
		}
		compare(t, w, a)
	}
	if settle != nil {
		settle()
		synctest.Wait()
	}
	compare(t, w, a)
}

// listed checks that the names that are listed are those that are found, but for
// clusters that are leaving.
func listed(t *testing.T, c *Catalog) {
	t.Helper()
	for _, v := range views() {
		for _, typeURL := range []string{resource.ClusterType, resource.ListenerType} {
			names, ok := c.Names(v, typeURL)
			if !ok {
				t.Fatalf("%s of %s are not known", typeURL, v)
			}
			for _, n := range names {
				if _, answer := c.Lookup(v, typeURL, n); answer != xds.Found {
					t.Fatalf("%s lists %s, which is %v", v, n, answer)
				}
			}
		}
	}
}

// compare checks a Catalog that has settled against a fresh one.
func compare(t *testing.T, w *walker, a *audience) {
	t.Helper()
	if len(w.c.leaving) > 0 {
		t.Fatalf("still leaving: %v", w.c.leaving)
	}
	f := fresh(t.Context(), w.World, w.c.opts, w.gaveUp)
	for _, typeURL := range types {
		for _, n := range a.subscribed(typeURL) {
			shared := map[string]*discovery.Resource{} // by cluster, kind and content
			valid := map[string]bool{}
			for _, v := range views() {
				got, answer := w.c.Lookup(v, typeURL, n)
				want, wants := f.Lookup(v, typeURL, n)
				if answer != wants || got.GetVersion() != want.GetVersion() || bytesOf(got) != bytesOf(want) {
					t.Fatalf("%s %s for %s: %v, want %v\n%q\n%q", typeURL, n, v, answer, wants, bytesOf(got), bytesOf(want))
				}
				if answer == xds.Found && !valid[bytesOf(got)] {
					valid[bytesOf(got)] = true
					if err := build.Validate(got); err != nil {
						t.Errorf("%s for %s: %v", n, v, err)
					}
				}
				kind, client := parse(v)
				k := client.Cluster + "|" + bytesOf(got)
				if typeURL != resource.EndpointType {
					k += string(kind)
				}
				if answer == xds.Found && shared[k] != nil && shared[k] != got && !w.prefersZone(n) {
					t.Errorf("%s %s for %s: made twice", typeURL, n, v)
				}
				shared[k] = got
			}
		}
	}
	for _, v := range views() {
		for _, typeURL := range types {
			got, _ := w.c.Names(v, typeURL)
			want, _ := f.Names(v, typeURL)
			if got, want := slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
				t.Fatalf("%s lists %v, want %v", v, got, want)
			}
			for _, n := range a.subscribed(typeURL) {
				_, answer := w.c.Lookup(v, typeURL, n)
				kind, _ := parse(v)
				if listable := kind != "grpc" && (typeURL == resource.ClusterType || typeURL == resource.ListenerType); listable && (answer == xds.Found) != slices.Contains(got, n) {
					t.Fatalf("%s lists %v, and of %s it has %v", v, got, n, answer)
				}
			}
		}
	}
	w.sizes(t)
}

// prefersZone reports whether the service of a name prefers zones: then clients
// may get the same by two keys.
func (w *walker) prefersZone(name string) bool {
	service, _, _, err := w.c.parseClusterName(name)
	s := w.Services[service]
	return err == nil && s != nil && s.Parts[0].Prefer == mesh.PreferZone
}

// sizes checks that the indices hold what the services need, and nothing else.
func (w *walker) sizes(t *testing.T) {
	t.Helper()
	byNode, byCluster := index[mesh.NodeID]{}, index[string]{}
	for n, s := range w.Services {
		for _, p := range s.Parts {
			byCluster.add(p.Cluster, n)
			for _, q := range p.Ports {
				for _, b := range q.Backends {
					byNode.add(mesh.NodeID{Cluster: p.Cluster, Name: b.Node}, n)
				}
			}
		}
	}
	same := func(a, b map[mesh.ServiceName]struct{}) bool { return maps.Equal(a, b) }
	if !maps.EqualFunc(w.c.byNode, byNode, same) || !maps.EqualFunc(w.c.byCluster, byCluster, same) {
		t.Fatalf("indices %v %v, want %v %v", w.c.byNode, w.c.byCluster, byNode, byCluster)
	}
	if !maps.Equal(w.c.unheard, w.gaveUp) || len(w.c.reach) != len(w.Reach) || len(w.c.services) != len(w.Services) {
		t.Fatalf("%d unheard, %d reports, %d services; want %d, %d, %d", len(w.c.unheard), len(w.c.reach), len(w.c.services), len(w.gaveUp), len(w.Reach), len(w.Services))
	}
	for _, s := range w.c.services {
		for k := range s.made {
			if _, ok := w.Topology.Cluster(k.cluster); !ok && !slices.Contains(testmesh.Clusters[:], k.cluster) {
				t.Errorf("%v is kept", k)
			}
		}
	}
}
