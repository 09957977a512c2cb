package view

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/internal/testmesh"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// Clients that have the same paths have one resource between them, also when some
// of them change and come back.
func TestShared(t *testing.T) {
	c := begun(t, false, everywhere("echo"))
	get := func(v string) *discovery.Resource {
		r, _ := c.Lookup(v, resource.EndpointType, fmt.Sprintf(ofClients, "echo"))
		return r
	}
	one, other := node("east/n1"), node("east/n2")
	direct := get(grpcOn("east/n1"))
	if direct == nil || get(grpcOn("east/n2")) != direct || get(envoyOn("east/n1")) != direct {
		t.Error("clients with the same paths have their own")
	}
	if get(grpcOn("west/n1")) == direct {
		t.Error("clients of two clusters have one")
	}
	c.SetReport(other, but(allUp(other), "west/n2", mesh.Down))
	if get(grpcOn("east/n2")) != direct {
		t.Error("a tunnel to a node without endpoints makes a difference")
	}
	c.SetReport(one, but(allUp(one), "west/n1", mesh.Down))
	through := get(grpcOn("east/n1"))
	if through == direct || get(grpcOn("east/n2")) != direct {
		t.Error("a tunnel down makes no difference, or one for others")
	}
	c.SetReport(other, but(allUp(other), "west/n1", mesh.Unknown))
	if get(grpcOn("east/n2")) != through {
		t.Error("clients that both go through the gateway have their own")
	}
	c.SetReport(one, allUp(one))
	if get(grpcOn("east/n1")) != direct {
		t.Error("made anew when the tunnel came back")
	}
	// A change of endpoints makes nothing else anew.
	cds := func() *discovery.Resource {
		r, _ := c.Lookup(grpcOn("east/n1"), resource.ClusterType, fmt.Sprintf(ofClients, "echo"))
		return r
	}
	before := cds()
	set(c, aService("echo", aPart("east", 1, 2), aPart("west", 1)))
	if cds() != before {
		t.Error("the cluster was made anew with the endpoints")
	}
}

// Combinations of tunnels that come and go do not pile up, nor do services.
func TestMemoIsBounded(t *testing.T) {
	const nodes = 13 // 2^13 combinations
	top := twoClusters()
	part := mesh.ServicePart{}
	var backs []mesh.NodeID
	for j := range nodes {
		n := aNode("west", 1, 10+j)
		top.Nodes = append(top.Nodes, n)
		backs = append(backs, n.ID)
		p := aPart("west", 11+j)
		if j == 0 {
			part = p
		} else {
			part.Ports[0].Backends = append(part.Ports[0].Backends, p.Ports[0].Backends...)
		}
	}
	c := begun(t, false, aService("echo", part))
	c.SetTopology(top)
	k := key{grpcOn("east/n1"), resource.EndpointType, fmt.Sprintf(ofClients, "echo")}
	versions := map[answer]bool{}
	most := 0
	for i := range 1 << nodes {
		report := map[mesh.NodeID]mesh.TunnelStatus{}
		for j, id := range backs {
			if i>>j&1 == 1 {
				report[id] = mesh.TunnelStatus{State: mesh.Up, Reason: mesh.ReasonTunnel}
			}
		}
		c.SetReport(node("east/n1"), report)
		versions[look(c, k)] = true
		for _, sp := range c.services[name("echo")].spreads {
			most = max(most, len(sp.byKey))
		}
	}
	if len(versions) != 1<<nodes || most != maxKeys {
		t.Errorf("%d assignments of %d, at most %d kept; want %d at most", len(versions), 1<<nodes, most, maxKeys)
	}
}

// entries counts what a Catalog keeps.
func entries(c *Catalog) (n int) {
	n = len(c.services) + len(c.leaving) + len(c.byNode) + len(c.byCluster) + len(c.reach) + len(c.unheard) + len(c.wholes)
	for _, s := range c.services {
		n += len(s.spreads) + len(s.made)
		for _, sp := range s.spreads {
			n += len(sp.byKey)
		}
	}
	return n
}

// After services, nodes and clusters came and went, and everybody asked for
// everything, there is no more than before.
func TestNothingGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begun(t, false, everywhere("echo"))
		ask := func(services ...string) {
			for _, s := range services {
				for _, v := range []string{grpcOn("east/n1"), grpcOn("west/n1"), envoyOn("east/n1"), gatewayOf("west"), grpcOn("third/n1"), envoyOn("third/n1")} {
					for _, typeURL := range types {
						for _, n := range []string{fmt.Sprintf(ofClients, s), fmt.Sprintf(ofGateways, s), s + ".demo:80"} {
							c.Lookup(v, typeURL, n)
						}
						c.Names(v, typeURL)
					}
				}
			}
		}
		round := func(i int) {
			other := fmt.Sprint("other", i)
			set(c, everywhere(other))
			top := twoClusters()
			third := aNode("third", 5, 0)
			top.Clusters = append(top.Clusters, mesh.Cluster{Name: "third", Network: "third"})
			top.Nodes = append(top.Nodes, third)
			c.SetTopology(top)
			for k := range 6 {
				c.SetReport(third.ID, but(allUp(third.ID), "west/n1", mesh.TunnelState(k%3)))
				ask("echo", other)
			}
			c.SetReport(third.ID, nil)
			c.GiveUp(third.ID)
			c.Forget(third.ID)
			remove(c, other)
			synctest.Wait()
			c.SetTopology(twoClusters())
			for k := range c.services[name("echo")].made {
				if k.cluster == "third" {
					t.Fatalf("kept of a cluster that is gone: %v", k)
				}
			}
		}
		round(0)
		baseline := entries(c)
		heap := settledHeap()
		for i := range 100 {
			round(i + 1)
		}
		if n := entries(c); n != baseline {
			t.Errorf("%d entries, before %d", n, baseline)
		}
		if now := settledHeap(); now > heap+1<<20 {
			t.Errorf("the heap has %d KiB more", (now-heap)>>10)
		}
	})
}

func settledHeap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Many ask while everything changes: for the race detector, and whatever they are
// answered belongs to the name that they asked for.
func TestAskedWhileChanging(t *testing.T) {
	w := &walker{World: testmesh.New(11), c: New(t.Context(), options(false)), gaveUp: map[mesh.NodeID]bool{}}
	a := &notes{}
	w.c.Attach(a)
	w.c.SetTopology(w.Topology)
	w.c.SetServices(w.Services)
	w.c.Begin(testmesh.Nodes())
	done := make(chan struct{})
	var asking sync.WaitGroup
	all := map[string][]string{}
	for _, typeURL := range types {
		all[typeURL] = namesIn(typeURL, false)
	}
	for g := range 8 {
		asking.Go(func() {
			for i := g; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				v := views()[i%len(views())]
				typeURL := types[i%len(types)]
				n := all[typeURL][i*7%len(all[typeURL])]
				if r, answer := w.c.Lookup(v, typeURL, n); answer == xds.Found && r.GetName() != n {
					t.Errorf("asked for %s, got %s", n, r.GetName())
					return
				}
				w.c.Names(v, typeURL)
				if i%5 == 0 {
					_, client := parse(v)
					_, _ = w.c.Explain(client, "demo/s1")
				}
			}
		})
	}
	for range 400 {
		w.step()
	}
	close(done)
	asking.Wait()
}
