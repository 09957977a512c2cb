package source

import (
	"fmt"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestPod(t *testing.T) {
	for _, c := range []struct {
		name string
		pod  corev1.Pod
		want string
		err  string
	}{
		{name: "nothing but a name", want: "{shop web   default []}"},
		{name: "all", pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web"},
			Status: corev1.PodStatus{PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}}}},
			want: "{shop web u n1 web [10.1.0.1 fd00::1]}"},
		{name: "old fields", pod: corev1.Pod{Spec: corev1.PodSpec{DeprecatedServiceAccount: "old"}, Status: corev1.PodStatus{PodIP: "10.1.0.1"}},
			want: "{shop web   old [10.1.0.1]}"},
		{name: "faults", pod: corev1.Pod{Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "::1"}, {IP: "x"}}}},
			want: "{shop web   default [10.1.0.1]}",
			err:  "status.podIPs[1].ip: ::1 lies in ::/96, which cannot be reached from another node\nstatus.podIPs[2].ip: \"x\" is not an IP address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.pod.Namespace, c.pod.Name = "shop", "web"
			got, err := Pod(&c.pod)
			if said := errText(err); fmt.Sprint(got) != c.want || said != c.err {
				t.Errorf("got %v (%s), want %s (%s)", got, said, c.want, c.err)
			}
			// What is trimmed away makes no difference.
			if again, _ := Pod(Trim(&c.pod).(*corev1.Pod)); !again.Equal(got) {
				t.Errorf("trimmed it is %v", again)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestTrim fills every field of a Pod and finds out which are left.
func TestTrim(t *testing.T) {
	full := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"a": "b"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}, ResourceVersion: "1"},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web", HostNetwork: true, Containers: []corev1.Container{{Name: "web"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}}, HostIP: "192.168.0.1",
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady}}},
	}
	want := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u"},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "web", HostNetwork: true},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}}},
	}
	before := full.DeepCopy()
	if got := Trim(full); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if !reflect.DeepEqual(full, before) {
		t.Error("the pod itself was changed")
	}
	s := &corev1.Service{}
	if Trim(s) != s {
		t.Error("a Service was trimmed")
	}
}

func TestServiceExportCopy(t *testing.T) {
	e := &ServiceExport{TypeMeta: metav1.TypeMeta{Kind: "ServiceExport"}, ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"a": "b"}}}
	c := e.DeepCopyObject().(*ServiceExport)
	if !reflect.DeepEqual(e, c) {
		t.Errorf("got %+v", c)
	}
	if c.Labels["a"] = "c"; e.Labels["a"] != "b" {
		t.Error("the copy shares its labels")
	}
}

func TestTLSDefaultText(t *testing.T) {
	for _, d := range []TLSDefault{TLSAuto, TLSAll, TLSNone} {
		var back TLSDefault
		if text, _ := d.MarshalText(); back.UnmarshalText(text) != nil || back != d {
			t.Errorf("%v comes back as %v", d, back)
		}
	}
	d := TLSAll
	if err := d.UnmarshalText([]byte("always")); err == nil || d != TLSAll {
		t.Errorf("got %v, %v", d, err)
	}
}

// TestIndexOfOddObjects: keys and objects that do not go together count as
// removals, and nothing is known of what was never there.
func TestIndexOfOddObjects(t *testing.T) {
	x := NewIndex(east, Options{})
	var changes []Change
	for _, k := range []Kind{KindEndpointSlice, KindNamespace, KindNode, KindPod, KindService, KindServiceCIDR, "Other"} {
		changes = append(changes, Change{Key: Key{Kind: k, Namespace: "shop", Name: "a"}, Object: &ServiceExport{}}, Change{Key: Key{Kind: k, Namespace: "shop", Name: "a"}})
	}
	if d := x.Apply(changes); len(d.Services)+len(d.Nodes) > 0 || d.Gateways {
		t.Errorf("dirty: %v", d)
	}
	name := mesh.ServiceName{Namespace: "shop", Name: "a"}
	if _, ok := x.Part(name); ok || x.Problems(name) != nil || len(x.namespaces) > 0 {
		t.Errorf("something is known: %+v", x)
	}
	if _, ok := x.Pod("shop", "a"); ok {
		t.Error("a pod is known")
	}
}
