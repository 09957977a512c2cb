package main

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/flatmesh/flatmesh/pkg/gateway"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// routed is a router that shows what it has, and counts what it is told.
type routed struct {
	routes gateway.Routes
	told   int
}

func (r *routed) SetRoutes(routes gateway.Routes) { r.routes = maps.Clone(routes) }

func (r *routed) Set(sni string, pods []netip.AddrPort) {
	if r.routes == nil {
		r.routes = gateway.Routes{}
	}
	r.routes[sni] = pods
	r.told++
}

func (r *routed) Remove(sni string) {
	delete(r.routes, sni)
	r.told++
}

// text writes routes as "echo=a,b other=" with pods as podAddr knows them.
func text(routes gateway.Routes) string {
	var out []string
	for _, sni := range slices.Sorted(maps.Keys(routes)) {
		var pods []string
		for _, p := range routes[sni] {
			pods = append(pods, letter(p))
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(sni, "outbound_.80_._."), ".")
		out = append(out, name+"="+strings.Join(pods, ","))
	}
	return strings.Join(out, " ")
}

// letter is the reverse of podAddr.
func letter(p netip.AddrPort) string {
	b := p.Addr().As4()
	return string(b[3:])
}

func routesOf(of map[string]string) gateway.Routes {
	out := gateway.Routes{}
	for name, pods := range of {
		out[sniOf(name)] = []netip.AddrPort{}
		for _, p := range pods {
			out[sniOf(name)] = append(out[sniOf(name)], podAddr(string(p)))
		}
	}
	return out
}

// clusters is an answer to the wildcard.
func clusters(names ...string) xds.Update {
	u := xds.Update{TypeURL: resource.ClusterType}
	for _, n := range names {
		if gone, removed := strings.CutPrefix(n, "-"); removed {
			u.Removed = append(u.Removed, sniOf(gone))
			continue
		}
		name := n
		if n != "BlackHoleCluster" {
			name = sniOf(n)
		}
		u.Resources = append(u.Resources, &discovery.Resource{Name: name, Version: "1"})
	}
	return u
}

// assignments is an answer of pods by service, "-" for one that is not there and
// "!" for one that cannot be read.
func assignments(t *testing.T, of map[string]string) xds.Update {
	t.Helper()
	u := xds.Update{TypeURL: resource.EndpointType}
	for name, pods := range of {
		switch pods {
		case "-":
			u.Removed = append(u.Removed, sniOf(name))
			continue
		case "!":
			u.Resources = append(u.Resources, &discovery.Resource{Name: sniOf(name), Resource: &anypb.Any{TypeUrl: resource.EndpointType, Value: []byte{0xff}}})
			continue
		}
		a := build.Assignment{Name: sniOf(name)}
		for _, p := range pods {
			a.Direct = append(a.Direct, build.Direct{Addr: podAddr(string(p)), Node: mesh.NodeID{Cluster: "east", Name: "n1"}, Reason: mesh.ReasonLocal})
		}
		r, err := build.EDS(a)
		if err != nil {
			t.Fatal(err)
		}
		u.Resources = append(u.Resources, r)
	}
	return u
}

type step struct {
	update xds.Update
	want   string
	from   string
	fails  bool
}

func TestFeed(t *testing.T) {
	type pods = map[string]string
	eds := func(of pods) xds.Update { return assignments(t, of) }
	for name, c := range map[string]struct {
		kept  gateway.Routes
		steps []step
	}{
		"from nothing": {nil, []step{
			{clusters("BlackHoleCluster", "echo", "other"), "", routesNone, false},
			{eds(pods{"echo": "ab", "other": ""}), "echo=a,b other=", routesControlPlane, false},
			{eds(pods{"echo": "b"}), "echo=b other=", routesControlPlane, false},
			{clusters("new"), "echo=b other=", routesControlPlane, false},
			{eds(pods{"new": "a"}), "echo=b new=a other=", routesControlPlane, false},
			{clusters("-echo"), "new=a other=", routesControlPlane, false},
		}},
		"no services": {nil, []step{
			{clusters("BlackHoleCluster"), "", routesControlPlane, false},
			{clusters("echo"), "", routesControlPlane, false},
			{eds(pods{"echo": "a"}), "echo=a", routesControlPlane, false},
		}},
		"all services went": {routesOf(pods{"echo": "a", "gone": "b"}), []step{
			{xds.Update{TypeURL: resource.ClusterType}, "", routesControlPlane, false},
		}},
		"nothing goes before all was told": {routesOf(pods{"echo": "a", "gone": "b", "late": "c"}), []step{
			{clusters("echo", "late", "new"), "echo=a late=c", routesDisk, false},
			{eds(pods{"echo": "b"}), "echo=b late=c", routesControlPlane, false},
			{eds(pods{"late": "", "new": "c"}), "echo=b late= new=c", routesControlPlane, false},
		}},
		"what is kept stays while nothing is told": {routesOf(pods{"echo": "a"}), []step{
			{xds.Update{TypeURL: resource.EndpointType}, "echo=a", routesDisk, false},
		}},
		"not admitted any more, and again": {nil, []step{
			{clusters("echo"), "", routesNone, false},
			{eds(pods{"echo": "a"}), "echo=a", routesControlPlane, false},
			{eds(pods{"echo": "-"}), "", routesControlPlane, false},
			{eds(pods{"echo": "b"}), "echo=b", routesControlPlane, false},
		}},
		"what is wrong is left out": {nil, []step{
			{clusters("bad", "echo", "other"), "", routesNone, false},
			{eds(pods{"bad": "a", "echo": "a", "other": "b"}), "bad=a echo=a other=b", routesControlPlane, false},
			{eds(pods{"bad": "!", "echo": "b", "other": "-"}), "bad=a echo=b", routesControlPlane, true},
			{xds.Update{TypeURL: resource.ListenerType}, "bad=a echo=b", routesControlPlane, true},
		}},
		"not listed": {nil, []step{
			{clusters("echo"), "", routesNone, false},
			{eds(pods{"stranger": "a"}), "", routesControlPlane, false},
			{clusters("-stranger", "-BlackHoleCluster"), "", routesControlPlane, false},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, heard := &routed{}, 0
			f := newFeed(r, c.kept, func() { heard++ }, slog.New(slog.DiscardHandler))
			for i, s := range c.steps {
				if err := f.apply(s.update); (err != nil) != s.fails {
					t.Errorf("step %d: %v", i, err)
				}
				have, from := f.snapshot()
				if got := text(have); got != s.want || from != s.from || from != f.source() {
					t.Errorf("step %d: %q from %s, want %q from %s", i, got, from, s.want, s.from)
				}
				if text(r.routes) != text(have) {
					t.Errorf("step %d: the router has %q", i, text(r.routes))
				}
			}
		})
	}
}

// What says nothing new costs nothing.
func TestFeedTellsOnlyWhatIsNew(t *testing.T) {
	r := &routed{}
	f := newFeed(r, routesOf(map[string]string{"echo": "ab"}), func() {}, slog.New(slog.DiscardHandler))
	for range 2 {
		for _, u := range []xds.Update{clusters("echo"), assignments(t, map[string]string{"echo": "ba", "gone": "-"})} {
			if err := f.apply(u); err != nil {
				t.Error(err)
			}
		}
	}
	if r.told != 0 {
		t.Errorf("the router was told %d times", r.told)
	}
	if len(f.changed) != 1 {
		t.Error("that everything was told is not kept")
	}
}
