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

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

// change reads "service a", "slice a=3" with three endpoints in the service a,
// "pod a@n1" on a node with the UID "a-uid", "gateway a=203.0.113.1"; one that is
// to be removed has a dash before.
func change(spec string) source.Change {
	spec, gone := strings.CutPrefix(spec, "-")
	kind, rest, _ := strings.Cut(spec, " ")
	name, _, _ := strings.Cut(strings.ReplaceAll(rest, "@", "="), "=")
	meta := metav1.ObjectMeta{Namespace: "demo", Name: name}
	var o runtime.Object
	switch kind {
	case "service":
		o = &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
	case "slice":
		n := 0
		fmt.Sscanf(strings.TrimPrefix(rest, name), "=%d", &n)
		o = slice(meta, n)
	case "gateway":
		meta.Labels = map[string]string{"topology.istio.io/network": ""}
		o = &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{strings.TrimPrefix(rest, name+"=")}, Ports: []corev1.ServicePort{{Port: 15443, Protocol: corev1.ProtocolTCP}},
		}}
	case "pod":
		_, node, _ := strings.Cut(rest, "@")
		meta.UID = types.UID(name + "-uid")
		o = &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: name + "-account"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	}
	key, err := source.KeyOf(o)
	if err != nil {
		return source.Change{}
	}
	if gone {
		return source.Change{Key: key}
	}
	return source.Change{Key: key, Object: o}
}

func slice(meta metav1.ObjectMeta, n int) *discoveryv1.EndpointSlice {
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
	port, protocol, ready, node := int32(80), corev1.ProtocolTCP, true, "n1"
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: &protocol}}}
	for i := range n {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}).String()}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	return s
}

func changes(list string) (out []source.Change) {
	for spec := range strings.SplitSeq(list, ", ") {
		if spec != "" {
			out = append(out, change(spec))
		}
	}
	return out
}

// shown reads "service a, slice a=3".
func shown(objects map[source.Key]runtime.Object) string {
	var out []string
	for _, k := range slices.SortedFunc(maps.Keys(objects), source.Key.Compare) {
		s := strings.ToLower(strings.TrimPrefix(string(k.Kind), "Endpoint")) + " " + k.Name
		if n := endpointsIn(objects[k]); k.Kind == source.KindEndpointSlice {
			s += fmt.Sprint("=", n)
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestTakeObjects(t *testing.T) {
	const begin = "service a, service b, slice a=3, slice b=2"
	const inForce = "slice a=3, slice b=2, service a, service b"
	type step struct {
		after                time.Duration
		changes              string
		full, release, doubt bool
		want                 string
		held                 int
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"one service goes", []step{{changes: "-service a, -slice a", want: "slice b=2, service b"}}},
		{"a slice empties", []step{{changes: "slice a=0", want: "slice a=0, slice b=2, service a, service b"}}},
		{"all services", []step{
			{changes: "-service a, -service b", want: inForce, held: 2},
			{after: testHold - 1, want: inForce, held: 2},
			{after: 1, want: "slice a=3, slice b=2"},
		}},
		{"all endpoints, by empty slices", []step{{changes: "slice a=0, slice b=0", want: inForce, held: 2}}},
		{"all endpoints, by removal", []step{{changes: "-slice a, slice b=0", want: inForce, held: 2}}},
		{"an empty relist", []step{{full: true, want: inForce, held: 4}, {release: true, want: ""}}},
		{"a relist without some", []step{{changes: "service b, slice b=2", full: true, want: "slice b=2, service b"}}},
		{"in two steps", []step{
			{changes: "-service a, -slice a", want: "slice b=2, service b"},
			{changes: "-service b, -slice b", want: ""}, // the last of a small cluster may go
		}},
		{"all come back", []step{
			{full: true, want: inForce, held: 4},
			{changes: begin, want: inForce},
			{changes: "-service a", want: "slice a=3, slice b=2, service b"},
		}},
		{"they come back one by one", []step{
			{full: true, want: inForce, held: 4},
			{changes: "service a, slice a=1", want: "slice a=1, slice b=2, service a, service b", held: 2},
			{changes: "service c, slice c=1", want: "slice a=1, slice b=2, slice c=1, service a, service b, service c", held: 2},
			{after: testHold, want: "slice a=1, slice c=1, service a, service c"},
		}},
		{"what is held goes and comes", []step{
			{full: true, want: inForce, held: 4},
			{full: true, want: inForce, held: 4},
			{changes: "-service a", want: inForce, held: 4},
			{changes: "slice a=4", want: "slice a=4, slice b=2, service a, service b", held: 3},
			{changes: "slice a=0", want: "slice a=4, slice b=2, service a, service b", held: 4},
			{after: testHold, want: "slice a=0"},
		}},
		{"what never was", []step{{changes: "-service x, slice x=0", want: "slice a=3, slice b=2, slice x=0, service a, service b"}}},
		{"nodes are missing as well", []step{{changes: "-service a", doubt: true, want: inForce, held: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, now := newObjects(), time.Unix(0, 0)
			o.take(changes(begin), true, false, false, now, testHold)
			for i, s := range c.steps {
				now = now.Add(s.after)
				o.take(changes(s.changes), s.full, s.release, s.doubt, now, testHold)
				if got := shown(o.inForce); got != s.want || len(o.withheld) != s.held || o.since.IsZero() != (s.held == 0) {
					t.Errorf("step %d: in force %s, %d held since %v; want %s, %d", i, got, len(o.withheld), o.since, s.want, s.held)
				}
			}
		})
	}
}

// However changes come: what is in force is what the source says but for what is
// held, the changes that are handed on lead there, and nothing is lost all at once
// but after the hold.
func TestTakeObjectsOnAWalk(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		o, now := newObjects(), time.Unix(0, 0)
		says, follows := map[source.Key]runtime.Object{}, map[source.Key]runtime.Object{}
		for i := range 200 {
			now = now.Add(time.Duration(r.IntN(3)) * testHold / 4)
			full := r.IntN(10) == 0
			if full {
				clear(says)
			}
			var told []source.Change
			for range r.IntN(6) {
				c := change(fmt.Sprintf([]string{"service s%d", "-service s%d", "slice s%d=2", "slice s%d=0", "-slice s%d", "pod s%d@n1", "-pod s%d@n1"}[r.IntN(7)], r.IntN(4)))
				if slices.ContainsFunc(told, func(o source.Change) bool { return o.Key == c.Key }) || full && c.Object == nil {
					continue
				}
				told = append(told, c)
				if c.Object == nil {
					delete(says, c.Key)
				} else {
					says[c.Key] = c.Object
				}
			}
			services, endpoints, since := 0, o.endpoints, o.since
			for k := range o.inForce {
				if k.Kind == source.KindService {
					services++
				}
			}
			for _, c := range o.take(told, full, false, false, now, testHold) {
				if c.Object == nil {
					delete(follows, c.Key)
				} else {
					follows[c.Key] = c.Object
				}
			}
			at := fmt.Sprintf("seed %d, step %d", seed, i)
			if !maps.Equal(follows, o.inForce) {
				t.Fatalf("%s: handed on %s, in force %s", at, shown(follows), shown(o.inForce))
			}
			want := maps.Clone(says)
			for k := range o.withheld {
				want[k] = o.inForce[k]
			}
			if !maps.Equal(want, o.inForce) {
				t.Fatalf("%s: in force %s, want %s", at, shown(o.inForce), shown(want))
			}
			count, left := 0, 0
			for k, x := range o.inForce {
				count += endpointsIn(x)
				if k.Kind == source.KindService {
					left++
				}
			}
			if count != o.endpoints {
				t.Fatalf("%s: %d endpoints, %d are in force", at, o.endpoints, count)
			}
			waited := !since.IsZero() && now.Sub(since) >= testHold
			comes := slices.ContainsFunc(told, func(c source.Change) bool { return c.Object != nil && !takesAway(c.Object) })
			if !waited && !comes && (services > 1 && left == 0 || endpoints > manyEndpoints && count == 0) {
				t.Fatalf("%s: lost all at once: %d services, %d endpoints", at, services, endpoints)
			}
			if waited && len(o.withheld) > 0 {
				t.Fatalf("%s: still held after %v", at, now.Sub(since))
			}
		}
	}
}

// say tells of objects of the cluster whose source is the folder.
func (p *plane) say(folder string, full bool, list string) {
	p.t.Helper()
	f := p.folders[folder]
	u := source.Update{Source: folder, Cluster: f.decl, Full: full, Changes: changes(list)}
	if full {
		for n, o := range f.nodes {
			u.Changes = append(u.Changes, source.Change{Key: source.Key{Kind: source.KindNode, Name: n}, Object: o})
		}
	}
	if err := p.turn1(func(l *loop) error { l.takeUpdates([]source.Update{u}, false); return nil }); err != nil {
		p.t.Fatal(err)
	}
}

// answers says what clients on a node get as the assignment of a service.
func (p *plane) answers(node, service string) xds.Answer {
	host := build.Host(mesh.ServiceName{Namespace: "demo", Name: service}, mesh.ScopeMesh)
	_, answer := p.catalog.Lookup(view.Of(build.GRPC, id(node)), resource.EndpointType, build.ClusterName(80, host))
	return answer
}

// A source that loses its services keeps them served until somebody confirms, or
// the hold ends, or they come back.
func TestLostServicesStayServed(t *testing.T) {
	begin := func() *plane {
		p := twoClusters(t)
		p.say("A", false, "service a, slice a=3, service b, slice b=2")
		p.catalog.SetReport(id("east/n1"), map[mesh.NodeID]mesh.TunnelStatus{})
		if p.answers("east/n1", "a") != xds.Found {
			t.Fatal("nothing is served")
		}
		p.say("A", true, "") // an empty relist
		if p.answers("east/n1", "a") != xds.Found || p.answers("east/n1", "b") != xds.Found {
			t.Fatal("lost at once")
		}
		return p
	}
	gone := func(p *plane, what string, want bool) {
		t.Helper()
		// Its assignment may be answered until clients are away; this is not.
		list, err := p.catalog.Explain(id("west/n1"), "demo/b")
		if (err != nil) != want {
			t.Errorf("%s: %v, %v", what, list, err)
		}
	}
	p := begin()
	p.after(testHold - time.Second)
	gone(p, "before the end of the hold", false)
	p.after(time.Second)
	gone(p, "at its end", true)

	p = begin()
	if err := p.turn1(func(l *loop) error { _, err := l.confirm("east"); return err }); err != nil {
		t.Fatal(err)
	}
	gone(p, "confirmed", true)

	p = begin()
	p.say("A", false, "service a, slice a=3")
	gone(p, "one is back", false)
	p.say("A", false, "service b, slice b=1")
	p.after(2 * testHold)
	gone(p, "both are back", false)
	if len(p.clusters["east"].objects.withheld) > 0 {
		t.Error("something is still held")
	}

	// The end of the cluster is theirs too.
	p = begin()
	p.say("A", false, "service a, slice a=3, service b, slice b=2")
	p.remove("A")
	p.tell()
	gone(p, "the folder is gone", false)
	if err := p.turn1(func(l *loop) error { _, err := l.confirm("east"); return err }); err != nil {
		t.Fatal(err)
	}
	gone(p, "the end of the cluster", true)
}
