package dir

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// state makes a State of node names; "n1=a" labels the node a.
func state(cluster string, nodes ...string) State {
	s := State{Cluster: mesh.Cluster{Name: cluster, Network: cluster}, Objects: map[source.Key]runtime.Object{}}
	for _, n := range nodes {
		name, label, _ := strings.Cut(n, "=")
		s.Objects[source.Key{Kind: source.KindNode, Name: name}] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"l": label}}}
	}
	return s
}

// show writes updates in one line.
func show(updates []source.Update) string {
	var out []string
	for _, u := range updates {
		s := u.Source + "/" + u.Cluster.Name
		if u.Full {
			s += " full"
		}
		if u.Gone {
			s += " gone"
		}
		for _, c := range u.Changes {
			sign := " +"
			if c.Object == nil {
				sign = " -"
			}
			s += sign + c.Key.Name
		}
		if u.Err != nil {
			s += fmt.Sprintf(" (%v)", u.Err)
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func TestTold(t *testing.T) {
	type step struct {
		state State
		err   error
		want  string
	}
	bad, worse, gone := errors.New("bad"), errors.New("worse"), missing("gone")
	native := state("east", "n1")
	native.Cluster.Network = "vpc"
	for name, steps := range map[string][]step{
		"changes": {
			{state("east", "n2", "n1"), nil, "f/east full +n1 +n2"},
			{state("east", "n2", "n1"), nil, ""},
			{state("east", "n2", "n1=a"), nil, "f/east +n1"},
			{state("east", "n3", "n1=a"), nil, "f/east -n2 +n3"},
			{state("east"), nil, "f/east -n1 -n3"},
			{state("east"), nil, ""},
		},
		"declaration changes": {
			{state("east", "n1"), nil, "f/east full +n1"},
			{native, nil, "f/east"},
			{native, nil, ""},
		},
		"no objects at all": {
			{state("east"), nil, "f/east full"},
			{state("east"), nil, ""},
		},
		"errors are told when they change and when they end": {
			{State{}, bad, "f/ (bad)"},
			{State{}, bad, ""},
			{State{}, worse, "f/ (worse)"},
			{state("east", "n1"), nil, "f/east full +n1"},
			{State{}, bad, "f/east (bad)"},
			{State{}, bad, ""},
			{state("east", "n1"), nil, "f/east"},
			{State{}, bad, "f/east (bad)"},
			{state("east", "n2"), nil, "f/east -n1 +n2"},
		},
		"comes back identical": {
			{state("east", "n1"), nil, "f/east full +n1"},
			{State{}, gone, "f/east gone (gone)"},
			{State{}, gone, ""},
			{state("east", "n1"), nil, "f/east full +n1"},
			{state("east", "n1"), nil, ""},
		},
		"comes back broken": {
			{state("east", "n1"), nil, "f/east full +n1"},
			{State{}, gone, "f/east gone (gone)"},
			{State{}, bad, "f/east gone (bad)"},
			{State{}, gone, "f/east gone (gone)"},
			{State{}, bad, "f/east gone (bad)"},
			{state("east", "n2"), nil, "f/east full +n2"},
		},
		"is broken, then goes": {
			{state("east", "n1"), nil, "f/east full +n1"},
			{State{}, bad, "f/east (bad)"},
			{State{}, gone, "f/east gone (gone)"},
		},
		"never was": {
			{State{}, gone, "f/ gone (gone)"},
			{State{}, gone, ""},
			{state("east"), nil, "f/east full"},
		},
		"another name": {
			{state("east", "n1"), nil, "f/east full +n1"},
			{state("west", "n1"), nil, "f/east gone (f: declares cluster west now, no longer east); f/west full +n1"},
			{state("west", "n1"), nil, ""},
			{State{}, bad, "f/west (bad)"},
			{state("east", "n1"), nil, "f/west gone (f: declares cluster east now, no longer west); f/east full +n1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			told := told{source: "f"}
			for i, s := range steps {
				if got := show(told.next(s.state, s.err)); got != s.want {
					t.Fatalf("step %d: got %q, want %q", i+1, got, s.want)
				}
			}
		})
	}
}

func TestToldKeepsPointersOfEqualObjects(t *testing.T) {
	told := told{source: "f"}
	first := state("east", "n1", "n2")
	told.next(first, nil)
	told.next(state("east", "n1", "n2=a"), nil)
	for name, want := range map[string]bool{"n1": true, "n2": false} {
		key := source.Key{Kind: source.KindNode, Name: name}
		if got := told.objects[key] == first.Objects[key]; got != want {
			t.Errorf("%s: same pointer: %t, want %t", name, got, want)
		}
	}
}
