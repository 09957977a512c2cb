package source

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// crowd makes the objects of n services of one port, each with so many slices of
// 100 pods.
func crowd(n, slices int) []Change {
	var out []Change
	add := func(kind Kind, name string, o any) {
		c := Change{Key: Key{Kind: kind, Namespace: "shop", Name: name}}
		switch o := o.(type) {
		case *corev1.Service:
			c.Object = o
		case *corev1.Pod:
			c.Object = o
		case *discoveryv1.EndpointSlice:
			c.Object = o
		}
		out = append(out, c)
	}
	for i := range n {
		svc := fmt.Sprintf("s%d", i)
		add(KindService, svc, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: svc}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "grpc", Port: 80}}}})
		for j := range slices {
			name := fmt.Sprintf("%s-%d", svc, j)
			add(KindEndpointSlice, name, crowdSlice(svc, i, j, 100))
			for k := range 100 {
				pod := fmt.Sprintf("%s-%d", name, k)
				add(KindPod, pod, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: pod}, Spec: corev1.PodSpec{NodeName: fmt.Sprintf("n%d", k), ServiceAccountName: svc}})
			}
		}
	}
	return out
}

func crowdSlice(svc string, i, j, pods int) *discoveryv1.EndpointSlice {
	name, port := "grpc", int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("%s-%d", svc, j), Labels: map[string]string{discoveryv1.LabelServiceName: svc}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for k := range pods {
		node := fmt.Sprintf("n%d", k)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", i%250, j, k+1)}, NodeName: &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: fmt.Sprintf("%s-%d-%d", svc, j, k)},
		})
	}
	return s
}

func TestIndexOfThousandsOfEndpoints(t *testing.T) {
	x := NewIndex(east, Options{})
	d := x.Apply(crowd(1, 100))
	p, ok := x.Part(mesh.ServiceName{Namespace: "shop", Name: "s0"})
	if !ok || len(p.Ports[0].Backends) != 10_000 || len(d.Services) != 1 || len(d.Nodes) != 100 || len(x.PodsOn("n7")) != 100 {
		t.Errorf("got %d backends, dirty %d services and %d nodes, %d pods on n7", len(p.Ports[0].Backends), len(d.Services), len(d.Nodes), len(x.PodsOn("n7")))
	}
}

// BenchmarkSliceChange takes in one pod that comes and goes in one slice of a
// service. What it costs goes with that service alone.
func BenchmarkSliceChange(b *testing.B) {
	for _, c := range []struct{ services, slices int }{{1, 1}, {1000, 1}, {1, 100}} {
		b.Run(fmt.Sprintf("services=%d/slices=%d", c.services, c.slices), func(b *testing.B) {
			x := NewIndex(east, Options{})
			x.Apply(crowd(c.services, c.slices))
			key := Key{Kind: KindEndpointSlice, Namespace: "shop", Name: "s0-0"}
			states := []*discoveryv1.EndpointSlice{crowdSlice("s0", 0, 0, 99), crowdSlice("s0", 0, 0, 100)}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				if d := x.Apply([]Change{{Key: key, Object: states[i%2]}}); len(d.Services) != 1 {
					b.Fatal("nothing changed")
				}
			}
		})
	}
}
