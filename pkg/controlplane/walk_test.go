package controlplane

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// A walk of everything that may happen. After each step what is served is what a
// control plane would serve that computes it anew from the same facts and order,
// and what must always hold does.
func TestWalk(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &walk{plane: newPlane(t), Rand: rand.New(rand.NewPCG(seed, 0))}
			w.tell()
			for range 250 {
				what := w.step()
				w.check(what)
				if t.Failed() {
					t.Fatalf("after: %s", what)
				}
			}
			t.Logf("%d registered; %v", len(w.registrations), w)
		})
	}
}

type walk struct {
	*plane
	*rand.Rand
}

func (w *walk) step() string {
	folder := string(rune('A' + w.IntN(5)))
	switch n := w.IntN(20); {
	case n < 7:
		decl := declare(fmt.Sprint("c", w.IntN(5)))
		for range w.IntN(3) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(w.IntN(4)), 0, 0}), 16)
			if !slices.Contains(decl.PodCIDRs, p) {
				decl.PodCIDRs = append(decl.PodCIDRs, p)
			}
		}
		if f := w.folders[folder]; f != nil && w.IntN(3) > 0 {
			decl = f.decl // mostly nodes change
		}
		var nodes []string
		for i := range 6 {
			switch w.IntN(8) {
			case 0: // missing
			case 1:
				nodes = append(nodes, fmt.Sprintf("n%d=10.%d.%d.0/24", i, w.IntN(4), w.IntN(6)))
			case 2:
				nodes = append(nodes, fmt.Sprintf("n%d=nonsense", i))
			default:
				nodes = append(nodes, fmt.Sprint("n", i))
			}
		}
		w.put(folder, decl, nodes...)
		w.tell()
		return fmt.Sprint("put ", folder, decl, nodes)
	case n < 8:
		if w.folders[folder] != nil {
			w.remove(folder)
			w.tell()
		}
		return "remove " + folder
	case n < 9:
		if f := w.folders[folder]; f != nil {
			f.there, f.err = true, "no"
			w.tell()
		}
		return "bad " + folder
	case n < 15:
		node := fmt.Sprintf("c%d/n%d", w.IntN(5), w.IntN(6))
		_, _, err := w.join(node, func(r *peering.Registration) {
			if w.IntN(4) == 0 {
				r.Key = keyOf(fmt.Sprint("key", w.IntN(6)))
			}
			if w.IntN(3) == 0 {
				r.TunnelAddrs = []netip.Addr{netip.AddrFrom4([4]byte{198, 19, 0, byte(w.IntN(40))})}
			}
			if w.IntN(3) == 0 {
				r.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(w.IntN(6)), 1, 1}), 1000)}
			}
		})
		return fmt.Sprint("register ", node, " ", err)
	case n < 16:
		name := fmt.Sprint("c", w.IntN(5))
		if w.clusters[name] != nil {
			w.command("confirm " + name)
		}
		return "confirm " + name
	case n < 17:
		w.after(testHold)
		return "the hold is over"
	case n < 18:
		w.after(time.Duration(w.IntN(40)) * time.Second)
		return "time passes"
	default:
		before, held := content(w.cache), w.held()
		w.restart()
		w.tellIn(func(batch []source.Update) {
			w.Shuffle(len(batch), func(i, j int) {
				if batch[i].Gone == batch[j].Gone {
					batch[i], batch[j] = batch[j], batch[i]
				}
			})
		})
		if !held { // a hold that has begun is judged anew
			maps.DeleteFunc(before, func(k xds.SetKey, _ map[string]string) bool {
				cluster, _, _ := strings.Cut(k.View, "/")
				return k.TypeURL == xds.PodsType && !w.clusters[cluster].spoken
			})
			if d := differences(before, content(w.cache)); d != "" {
				w.t.Errorf("after a restart:\n%s", d)
			}
		}
		return "restart"
	}
}

func (w *walk) held() bool {
	for _, c := range w.clusters {
		if len(c.held()) > 0 {
			return true
		}
	}
	return false
}

func (w *walk) check(what string) {
	t := w.t
	t.Helper()
	orders := maps.Clone(w.orders)
	top, err := buildTopology(w.facts(), func([]string) (map[string]uint64, error) { return orders, nil })
	if err != nil {
		t.Fatal(err)
	}
	fresh := xds.NewCache()
	if _, err := (&published{}).publish(fresh, top); err != nil {
		t.Fatal(err)
	}
	for _, n := range top.Nodes {
		if !w.clusters[n.ID.Cluster].spoken {
			continue // of its pods nothing is known
		}
		r, err := xds.PodsResource(n.ID, w.clusters[n.ID.Cluster].index.PodsOn(n.ID.Name))
		if err != nil {
			t.Fatal(err)
		}
		fresh.Replace(podSet(n.ID), []*discovery.Resource{r})
	}
	if d := differences(content(w.cache), content(fresh)); d != "" {
		t.Errorf("served against computed anew:\n%s", d)
	}

	addrs := map[netip.Addr]mesh.NodeID{}
	keys := map[mesh.PublicKey]mesh.NodeID{}
	for node, r := range w.registrations {
		if c := w.clusters[node.Cluster]; c == nil || c.nodes[node.Name].ID != node {
			t.Errorf("%v is registered and not there", node)
		}
		if other, ok := keys[r.Key]; ok {
			t.Errorf("%v and %v have one key", node, other)
		}
		keys[r.Key] = node
		for _, a := range r.TunnelAddrs {
			if other, ok := addrs[a]; ok {
				t.Errorf("%v and %v have %v", node, other, a)
			}
			addrs[a] = node
		}
	}
	free := map[mesh.Family]int{mesh.IPv4: 65534, mesh.IPv6: 65534}
	for a := range addrs {
		free[mesh.FamilyOf(a)]--
	}
	for f, want := range free {
		if got := w.pool.Free(f); got != want {
			t.Errorf("%d %v addresses are free, want %d", got, f, want)
		}
	}
	for _, c := range top.Clusters {
		checkServed(t, top, c.Name)
	}
	snap, err := w.db.Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(snap.Registrations) != len(w.registrations) || len(snap.Clusters) != len(w.clusters) || len(snap.Nodes) != len(top.Nodes) || !maps.Equal(snap.Orders, w.orders) {
		t.Errorf("stored: %d registrations, %d clusters, %d nodes, %d orders; in memory: %d, %d, %d, %d", len(snap.Registrations), len(snap.Clusters), len(snap.Nodes), len(snap.Orders),
			len(w.registrations), len(w.clusters), len(top.Nodes), len(w.orders))
	}
	for k := range w.orders {
		cluster, _, _ := strings.Cut(strings.TrimPrefix(k, "@prefix/"), "/")
		if cluster != "" && w.clusters[cluster] == nil {
			t.Errorf("numbered for a cluster that has gone: %s", k)
		}
	}
	for _, src := range slices.Sorted(maps.Keys(w.waiting)) {
		if w.claimName(src, w.waiting[src].cluster) == nil {
			t.Errorf("%s waits for a name that is free", src)
		}
	}
}
