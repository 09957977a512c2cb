package controlplane

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flatmesh/flatmesh/pkg/source"
)

func TestStatusOfAHeldCluster(t *testing.T) {
	p := twoClusters(t)
	begin := p.clock
	p.remove("B")
	p.tell()
	p.after(testHold / 2)
	s := p.status("v9")
	west := s.Clusters[1]
	if !west.Gone || fmt.Sprint(west.Held) != "[n1]" || !west.HeldSince.Equal(begin) || !west.HeldUntil.Equal(begin.Add(testHold)) || west.Error != "there is no such folder" {
		t.Errorf("got %+v", west)
	}
	if fmt.Sprint(s.Sources) != "[{B there is no such folder}]" || s.Healthy() || s.Mesh != "test" || s.Version != "v9" {
		t.Errorf("got %+v", s)
	}
	// What was handed out stays what it was.
	since := *west.HeldSince
	p.put("B", declare("west", "10.2.0.0/16"), "n1")
	p.tell()
	if !west.HeldSince.Equal(since) {
		t.Error("a status changed after it was made")
	}
	if s := p.status("v9"); len(s.Clusters[1].Held) > 0 || s.Clusters[1].HeldSince != nil || !s.Healthy() {
		t.Errorf("got %+v", s)
	}
}

func TestStatusCountsObjects(t *testing.T) {
	p := newPlane(t)
	service := func(name string) source.Change {
		o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		return source.Change{Key: source.Key{Kind: source.KindService, Namespace: "shop", Name: name}, Object: o}
	}
	gone := service("web")
	gone.Object = nil
	for i, c := range []struct {
		u    source.Update
		want string
	}{
		{source.Update{Full: true, Changes: []source.Change{service("web"), service("db"), {Key: source.Key{Kind: source.KindNamespace, Name: "shop"}, Object: &corev1.Namespace{}}}}, "map[Namespace:1 Service:2]"},
		{source.Update{Changes: []source.Change{gone, service("db")}}, "map[Namespace:1 Service:1]"},
		{source.Update{Full: true, Changes: []source.Change{service("web")}}, "map[Service:1]"},
		{source.Update{Full: true}, "map[]"},
	} {
		c.u.Source, c.u.Cluster = "A", declare("east")
		if err := p.turn1(func(l *loop) error { l.takeUpdates([]source.Update{c.u}, i == 0); return nil }); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(p.status("v").Clusters[0].Objects); got != c.want {
			t.Errorf("update %d: got %s, want %s", i, got, c.want)
		}
	}
}

// The JSON form is what scripts read: lists are never null.
func TestStatusJSON(t *testing.T) {
	p := newPlane(t)
	for range 2 {
		b, err := json.Marshal(p.status("v"))
		if err != nil || strings.Contains(string(b), "null") {
			t.Errorf("%s (%v)", b, err)
		}
		p.put("A", declare("east"), "n1=")
		p.tell()
	}
}
