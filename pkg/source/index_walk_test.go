package source

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// world draws objects from so few names that they keep meeting each other.
type world struct{ *rand.Rand }

func (w world) pick(from ...string) string { return from[w.IntN(len(from))] }

// maybe returns one of the values, or nil.
func maybe[T any](w world, from ...T) *T {
	if i := w.IntN(len(from) + 1); i < len(from) {
		return &from[i]
	}
	return nil
}

func (w world) meta(key Key) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{}, Annotations: map[string]string{}}
	for _, into := range []map[string]string{m.Labels, m.Annotations} {
		if w.IntN(4) == 0 {
			into[settingExport] = w.pick("true", "false", "false", "x")
		}
		if w.IntN(6) == 0 {
			into[settingTLS] = w.pick("mesh", "none")
			into[settingPrefer] = w.pick("zone", "cluster")
			into[settingRetry] = w.pick("true", "x")
		}
	}
	return m
}

func (w world) key() Key {
	k := Key{Kind: []Kind{KindEndpointSlice, KindEndpointSlice, KindEndpointSlice, KindPod, KindPod, KindService, KindService, KindServiceExport, KindNamespace, KindNode}[w.IntN(10)]}
	k.Name = w.pick("a", "b", "c")
	switch {
	case k.Kind.Namespaced():
		k.Namespace = w.pick("shop", "bank")
	case k.Kind == KindNamespace:
		k.Name = w.pick("shop", "bank")
	}
	return k
}

func (w world) object(key Key) runtime.Object {
	m := w.meta(key)
	switch key.Kind {
	case KindNamespace:
		return &corev1.Namespace{ObjectMeta: m}
	case KindNode:
		return &corev1.Node{ObjectMeta: m}
	case KindServiceExport:
		return &ServiceExport{ObjectMeta: m}
	case KindPod:
		m.UID = types.UID(w.pick("", "", "", "", "u1", "u2"))
		return &corev1.Pod{
			ObjectMeta: m, Spec: corev1.PodSpec{NodeName: w.pick("", "n1", "n1", "n1", "n2", "n3"), ServiceAccountName: w.pick("", "sa1", "sa2")},
			Status: corev1.PodStatus{Phase: corev1.PodPhase(w.pick("", "Running", "Running", "Failed")), PodIP: w.pick("", "10.1.0.1", "127.0.0.1")},
		}
	case KindService:
		s := &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceType(w.pick("", "", "", "", "", "", "ExternalName")), PublishNotReadyAddresses: w.IntN(5) == 0,
			ClusterIP: w.pick("", "None", "10.96.0.1"),
		}}
		if w.IntN(3) == 0 {
			s.Labels[networkLabel] = w.pick("", "vpc", "x")
			s.Spec.ExternalIPs = []string{w.pick("203.0.113.1", "203.0.113.2", "127.0.0.1"), "203.0.113.3"}
		}
		for i, n := range []int32{80, 81, 15443, 15444, 15447} {
			if i == 0 || w.IntN(2) == 0 {
				s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: w.pick("http", "grpc", "tls"), Port: n, Protocol: corev1.Protocol(w.pick("", "TCP", "UDP"))})
			}
		}
		return s
	}
	s := &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressType(w.pick("IPv4", "IPv4", "IPv4", "IPv4", "IPv4", "FQDN"))}
	if w.IntN(8) > 0 {
		s.Labels[discoveryv1.LabelServiceName] = w.pick("a", "b", "c")
	}
	for range 1 + w.IntN(4) {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: maybe(w, "http", "http", "grpc", "tls"), Port: maybe(w, int32(8080), 8080, 9090), Protocol: maybe(w, corev1.ProtocolTCP, corev1.ProtocolUDP)})
	}
	for range w.IntN(4) {
		e := discoveryv1.Endpoint{
			Addresses:  []string{w.pick("10.1.0.1", "10.1.0.2", "10.1.0.3", "127.0.0.1")},
			Conditions: discoveryv1.EndpointConditions{Ready: maybe(w, true, false), Serving: maybe(w, true, false), Terminating: maybe(w, true, false)},
			NodeName:   maybe(w, "n1", "n2"), Zone: maybe(w, "a", "b"),
		}
		if w.IntN(8) > 0 {
			e.TargetRef = &corev1.ObjectReference{Kind: w.pick("Pod", "Pod", "Pod", "Thing"), Namespace: w.pick("", key.Namespace, key.Namespace, "bank"), Name: w.pick("a", "b", "c"), UID: types.UID(w.pick("", "", "u1", "u2"))}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// seen is what an Index said at a moment. Parts are kept as they were given, to
// find out whether they are changed afterwards.
type seen struct {
	parts    map[mesh.ServiceName]mesh.ServicePart
	printed  string
	pods     map[string][]mesh.Pod
	gateways []mesh.Gateway
}

func look(x *Index) seen {
	s := seen{parts: map[mesh.ServiceName]mesh.ServicePart{}, pods: map[string][]mesh.Pod{}, gateways: x.Gateways()}
	for _, name := range x.Services() {
		s.parts[name], _ = x.Part(name)
	}
	s.printed = fmt.Sprintf("%+v", s.parts)
	for _, n := range []string{"", "n1", "n2", "n3"} {
		s.pods[n] = x.PodsOn(n)
	}
	return s
}

// dirt returns what a Dirty should say where before became after.
func dirt(before, after seen) Dirty {
	d := Dirty{Gateways: !slices.EqualFunc(before.gateways, after.gateways, mesh.Gateway.Equal)}
	names := maps.Clone(before.parts)
	maps.Copy(names, after.parts)
	for _, name := range slices.SortedFunc(maps.Keys(names), mesh.ServiceName.Compare) {
		a, was := before.parts[name]
		b, is := after.parts[name]
		if was != is || !reflect.DeepEqual(a, b) {
			d.Services = append(d.Services, name)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(before.pods)) {
		if !slices.EqualFunc(before.pods[n], after.pods[n], mesh.Pod.Equal) {
			d.Nodes = append(d.Nodes, n)
		}
	}
	return d
}

// TestIndexWalk: whatever changes come in whatever order, an Index says what a
// new one says of the objects that are left, and what it calls dirty is what has
// changed, no less and no more.
func TestIndexWalk(t *testing.T) {
	for _, o := range []Options{{}, {MCS: true, DefaultTLS: TLSAll}} {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		w := world{rand.New(rand.NewPCG(seed, 0))}
		x, cluster := NewIndex(east, o), east
		all := map[Key]runtime.Object{}
		for range 2000 {
			before := look(x)
			batch := map[Key]runtime.Object{}
			for range 1 + w.IntN(3) {
				key := w.key()
				batch[key] = nil
				if w.IntN(3) > 0 {
					batch[key] = w.object(key)
				}
			}
			var d Dirty
			switch w.IntN(40) {
			case 0:
				clear(all)
				take(all, batch)
				d = x.Replace(shuffled(w, all))
			case 1:
				cluster.Network = w.pick("vpc", "x")
				d = x.SetCluster(cluster)
			default:
				take(all, batch)
				d = x.Apply(shuffled(w, batch))
			}
			fresh := NewIndex(cluster, o)
			fresh.Apply(shuffled(w, all))
			if got, want := describe(x), describe(fresh); got != want {
				t.Fatalf("after %v got\n%s\nwant\n%s", batch, got, want)
			}
			if want := dirt(before, look(x)); !reflect.DeepEqual(d, want) {
				t.Fatalf("after %v dirty is\n%v\nwant\n%v", batch, d, want)
			}
			if now := fmt.Sprintf("%+v", before.parts); now != before.printed {
				t.Fatalf("a Part that was given out has changed from\n%s\nto\n%s", before.printed, now)
			}
			for _, ns := range []string{"shop", "bank"} {
				for _, name := range []string{"a", "b", "c"} {
					a, aok := x.Pod(ns, name)
					b, bok := fresh.Pod(ns, name)
					if aok != bok || !a.Equal(b) {
						t.Fatalf("after %v Pod %s/%s is %v, want %v", batch, ns, name, a, b)
					}
				}
			}
		}
		x.Replace(nil)
		if n := len(x.namespaces) + len(x.sliceOf) + len(x.onNode) + len(x.gatewaysOf); n > 0 {
			t.Errorf("%d entries are left where all objects are gone: %+v", n, x)
		}
	}
}

func take(all, batch map[Key]runtime.Object) {
	for key, o := range batch {
		if o == nil {
			delete(all, key)
		} else {
			all[key] = o
		}
	}
}

func shuffled(w world, objects map[Key]runtime.Object) []Change {
	var out []Change
	for _, key := range slices.SortedFunc(maps.Keys(objects), Key.Compare) {
		out = append(out, Change{Key: key, Object: objects[key]})
	}
	w.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
