package controlplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/source"
)

// Each step does something to folders, tells of it in one batch and sees what is
// in force. A step is commands, split by ";":
//
//	A = east 10.1.0.0/16: n1 n2    the folder declares a cluster and holds nodes
//	A gone, A bad                  it vanishes; its newest state cannot be read
//	tell                           tell before the step ends
//	after 11m, confirm east, restart
type step struct{ do, see string }

// troubled in see, "!A", names folders whose newest state is refused.
var sourceScripts = map[string][]step{
	"a cluster comes, grows and shrinks": {
		{"A = east 10.1.0.0/16: n1", "east@A[n1]"},
		{"A = east 10.1.0.0/16: n1 n2 n3", "east@A[n1 n2 n3]"},
		{"A = east 10.1.0.0/16: n1 n3", "east@A[n1 n3]"},
		{"restart", "east@A[n1 n3]"},
	},
	"an empty mesh": {{"", ""}, {"A = east 10.1.0.0/16:", "east@A[]"}, {"restart", "east@A[]"}},
	"a folder vanishes and comes back": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone", "east@A[-n1 -n2] gone !A"},
		{"after 9m", "east@A[-n1 -n2] gone !A"},
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"after 9m", "east@A[n1 n2]"},
	},
	"it comes back with less: that is held as long": {
		{"A = east 10.1.0.0/16: n1 n2 n3 n4", "east@A[n1 n2 n3 n4]"},
		{"A gone", "east@A[-n1 -n2 -n3 -n4] gone !A"},
		{"after 1m; A = east 10.1.0.0/16: n1 n2 n3", "east@A[n1 n2 n3 -n4]"},
		{"after 8m", "east@A[n1 n2 n3 -n4]"},
		{"after 1m", "east@A[n1 n2 n3]"},
	},
	"a folder vanishes for good: its nodes are held, its name and claims kept until confirmed": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone", "east@A[-n1 -n2] gone !A"},
		{"after 10m", "east@A[] gone !A"},
		{"restart", "east@A[] gone !A"},
		{"confirm east", ""},
		{"restart", ""},
	},
	"and is confirmed at once": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone", "east@A[-n1 -n2] gone !A"},
		{"confirm east", ""},
		{"A = east 10.1.0.0/16: n1", "east@A[n1]"},
	},
	"it vanished while nobody looked": {
		{"A = east 10.1.0.0/16: n1 n2; B = west 10.2.0.0/16: n1", "east@A[n1 n2]; west@B[n1]"},
		{"A gone; restart", "east@A[-n1 -n2] gone; west@B[n1] !A"},
		{"after 10m", "east@A[] gone; west@B[n1] !A"},
	},
	"an emptied folder is held": {
		{"A = east 10.1.0.0/16: n1 n2 n3", "east@A[n1 n2 n3]"},
		{"A = east 10.1.0.0/16:", "east@A[-n1 -n2 -n3]"},
		{"restart", "east@A[-n1 -n2 -n3]"},
		{"after 5m; A = east 10.1.0.0/16: n1", "east@A[n1 -n2 -n3]"},
		{"confirm east", "east@A[n1]"},
	},
	"many at once are held, a few are not": {
		{"A = east 10.1.0.0/16: n1 n2 n3 n4 n5 n6 n7 n8 n9 n10", "east@A[n1 n10 n2 n3 n4 n5 n6 n7 n8 n9]"},
		{"A = east 10.1.0.0/16: n4 n5 n6 n7 n8 n9 n10", "east@A[n10 n4 n5 n6 n7 n8 n9]"},
		{"after 31s; A = east 10.1.0.0/16: n8 n9 n10", "east@A[n10 -n4 -n5 -n6 -n7 n8 n9]"},
		{"confirm east", "east@A[n10 n8 n9]"},
	},
	"all replaced by others are held": {
		{"A = east 10.1.0.0/16: n1 n2 n3", "east@A[n1 n2 n3]"},
		{"A = east 10.1.0.0/16: n4 n5 n6 n7 n8", "east@A[-n1 -n2 -n3 n4 n5 n6 n7 n8]"},
		{"after 10m", "east@A[n4 n5 n6 n7 n8]"},
	},
	"one by one within the window is at once": {
		{"A = east 10.1.0.0/16: n1 n2 n3 n4 n5 n6 n7 n8 n9 n10", "east@A[n1 n10 n2 n3 n4 n5 n6 n7 n8 n9]"},
		{"A = east 10.1.0.0/16: n2 n3 n4 n5 n6 n7 n8 n9 n10", "east@A[n10 n2 n3 n4 n5 n6 n7 n8 n9]"},
		{"after 9s; A = east 10.1.0.0/16: n3 n4 n5 n6 n7 n8 n9 n10", "east@A[n10 n3 n4 n5 n6 n7 n8 n9]"},
		{"after 9s; A = east 10.1.0.0/16: n4 n5 n6 n7 n8 n9 n10", "east@A[n10 n4 n5 n6 n7 n8 n9]"},
		{"after 9s; A = east 10.1.0.0/16: n5 n6 n7 n8 n9 n10", "east@A[n10 -n4 n5 n6 n7 n8 n9]"},
		{"after 10m", "east@A[n10 n5 n6 n7 n8 n9]"},
	},
	"one by one over a longer time is not": {
		{"A = east 10.1.0.0/16: n1 n2 n3 n4 n5", "east@A[n1 n2 n3 n4 n5]"},
		{"after 31s; A = east 10.1.0.0/16: n2 n3 n4 n5", "east@A[n2 n3 n4 n5]"},
		{"after 31s; A = east 10.1.0.0/16: n3 n4 n5", "east@A[n3 n4 n5]"},
		{"after 31s; A = east 10.1.0.0/16: n4 n5", "east@A[n4 n5]"},
		{"after 31s; A = east 10.1.0.0/16: n5", "east@A[n5]"},
		{"after 31s; A = east 10.1.0.0/16:", "east@A[-n5]"},
	},
	"what cannot be read changes nothing": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A bad", "east@A[n1 n2] !A"},
		{"restart", "east@A[n1 n2] !A"},
		{"A gone", "east@A[-n1 -n2] gone !A"},
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
	},
	"it goes before it could be read since the start": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A bad; restart", "east@A[n1 n2] !A"},
		{"A gone", "east@A[-n1 -n2] gone !A"},
		{"confirm east", ""},
	},
	"a bad node keeps its last good state, a new one is left out": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A = east 10.1.0.0/16: n1=10.1.1.1/24 n2 n3=x", "east@A[n1 n2] !A"},
		{"A = east 10.1.0.0/16: n1=10.1.1.1/24 n2", "east@A[n1 n2] !A"},
		{"A = east 10.1.0.0/16: n2", "east@A[n2]"},
		{"A = east 10.1.0.0/16: n2 n3=x", "east@A[n2] !A"},
		{"A gone", "east@A[-n2] gone !A"},
		{"A = east 10.1.0.0/16: n2", "east@A[n2]"},
	},
	"the first keeps a name, the second waits until it is confirmed that the first is gone": {
		{"A = east 10.1.0.0/16: n1", "east@A[n1]"},
		{"B = east 10.9.0.0/16: n1 n2", "east@A[n1]; B waits for east !B"},
		{"B = east 10.9.0.0/16: n1 n3", "east@A[n1]; B waits for east !B"},
		{"A gone", "east@A[-n1] gone; B waits for east !A B"},
		{"after 10m", "east@A[] gone; B waits for east !A B"},
		{"confirm east", "east@B[n1 n3]"},
		{"restart", "east@B[n1 n3]"},
	},
	"the first comes back": {
		{"A = east 10.1.0.0/16: n1; tell; B = east 10.9.0.0/16: n1", "east@A[n1]; B waits for east !B"},
		{"A gone", "east@A[-n1] gone; B waits for east !A B"},
		{"B = east 10.9.0.0/16: n1 n2", "east@A[-n1] gone; B waits for east !A B"},
		{"A = east 10.1.0.0/16: n1", "east@A[n1]; B waits for east !B"},
	},
	"after a restart the established one keeps the name, whatever is read first": {
		{"B = east 10.1.0.0/16: n1; tell; A = east 10.9.0.0/16: n1; tell; C = east 10.1.0.0/16: n2", "east@B[n1]; A waits for east; C waits for east !A C"},
		{"restart", "east@B[n1]; A waits for east; C waits for east !A C"},
	},
	"also when it vanished while nobody looked": {
		{"B = east 10.1.0.0/16: n1; tell; A = east 10.9.0.0/16: n1", "east@B[n1]; A waits for east !A"},
		{"B gone; restart", "east@B[-n1] gone; A waits for east !A B"},
		{"B = east 10.1.0.0/16: n1", "east@B[n1]; A waits for east !A"},
	},
	"the second gives up": {
		{"A = east 10.1.0.0/16: n1; tell; B = east 10.9.0.0/16: n1", "east@A[n1]; B waits for east !B"},
		{"B = west 10.9.0.0/16: n1", "east@A[n1]; west@B[n1]"},
		{"B = east 10.9.0.0/16: n1", "east@A[n1]; west@B[-n1] gone; B waits for east !B"},
		{"B gone", "east@A[n1]; west@B[-n1] gone !B"},
		{"confirm west", "east@A[n1]"},
	},
	"the second goes": {
		{"A = east 10.1.0.0/16: n1; tell; B = east 10.9.0.0/16: n1", "east@A[n1]; B waits for east !B"},
		{"B gone", "east@A[n1]"},
	},
	"the first is renamed: a person has decided": {
		{"A = east 10.1.0.0/16: n1; tell; B = east 10.9.0.0/16: n1 n2", "east@A[n1]; B waits for east !B"},
		{"A = west 10.1.0.0/16: n1", "east@B[n1 n2]; west@A[n1]"},
		{"restart", "east@B[n1 n2]; west@A[n1]"},
	},
	"renamed, with nobody waiting: the nodes are held, then the old name ends": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A = west 10.1.0.0/16: n1 n2", "east@A[-n1 -n2] gone; west@A[n1 n2]"},
		{"after 10m", "west@A[n1 n2]"},
		{"restart", "west@A[n1 n2]"},
	},
	"and back again in time": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A = west 10.1.0.0/16: n1 n2", "east@A[-n1 -n2] gone; west@A[n1 n2]"},
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]; west@A[-n1 -n2] gone"},
		{"after 10m", "east@A[n1 n2]"},
	},
	"renamed while nobody looked": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A = west 10.1.0.0/16: n1 n2; restart", "east@A[-n1 -n2] gone; west@A[n1 n2]"},
		{"confirm east", "west@A[n1 n2]"},
	},
	"a folder that had two names vanishes with both": {
		{"A = east 10.1.0.0/16: n1; tell; A = west 10.1.0.0/16: n1; tell; A gone; tell; after 10m", "east@A[] gone; west@A[] gone !A"},
		{"restart", "east@A[] gone; west@A[] gone !A"},
		{"confirm west", "east@A[] gone !A"},
		{"confirm east", ""},
	},
	"two swap their names": {
		{"A = east 10.1.0.0/16: n1; B = west 10.2.0.0/16: n1", "east@A[n1]; west@B[n1]"},
		{"A = west 10.1.0.0/16: n1; B = east 10.2.0.0/16: n1", "east@B[n1]; west@A[n1]"},
	},
	"two swap their names while nobody looked": {
		{"A = east 10.1.0.0/16: n1; B = west 10.2.0.0/16: n1", "east@A[n1]; west@B[n1]"},
		{"A = west 10.1.0.0/16: n1; B = east 10.2.0.0/16: n1; restart", "east@B[n1]; west@A[n1]"},
	},
	"a folder is moved: nothing changes but where it is": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone; B = east 10.1.0.0/16: n1 n2", "east@B[n1 n2]"},
		{"restart", "east@B[n1 n2]"},
	},
	"moved in two steps": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"B = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]; B waits for east !B"},
		{"A gone", "east@B[n1 n2]"},
	},
	"moved in two steps, the other way": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone", "east@A[-n1 -n2] gone !A"},
		{"B = east 10.1.0.0/16: n1 n2", "east@B[n1 n2]"},
		{"after 10m", "east@B[n1 n2]"},
	},
	"moved while nobody looked": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone; B = east 10.1.0.0/16: n1 n2; restart", "east@B[n1 n2]"},
	},
	"moved, and what is missing there is held": {
		{"A = east 10.1.0.0/16: n1 n2", "east@A[n1 n2]"},
		{"A gone; B = east 10.1.0.0/16: n2", "east@B[-n1 n2]"},
		{"confirm east", "east@B[n2]"},
	},
	"a folder of nothing comes and goes": {
		{"A bad", "!A"},
		{"A gone", ""},
	},
}

func TestSources(t *testing.T) {
	for name, steps := range sourceScripts {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			for i, s := range steps {
				for command := range strings.SplitSeq(s.do, ";") {
					p.command(strings.TrimSpace(command))
				}
				p.tell()
				got := p.String()
				if trouble := p.troubles(); trouble != "" {
					got = strings.TrimSpace(got + " !" + trouble)
				}
				if got != s.see {
					t.Fatalf("step %d, %s:\ngot  %s\nwant %s", i, s.do, got, s.see)
				}
			}
			// What is in force is what a restart finds, and what is served.
			before := content(p.cache)
			for k := range before {
				if cluster, node, ok := strings.Cut(k.View, "/"); ok && p.clusters[cluster].nodes[node].ID.Name == "" {
					t.Errorf("%v is served", k)
				}
			}
			p.restart()
			p.tellIn(slices.Reverse[[]source.Update])
			if d := differences(before, content(p.cache)); d != "" {
				t.Errorf("after a restart, with folders in another order:\n%s", d)
			}
		})
	}
}

func (p *plane) command(s string) {
	p.t.Helper()
	words := strings.Fields(strings.ReplaceAll(s, ":", ""))
	switch {
	case s == "":
	case s == "tell":
		p.tell()
	case s == "restart":
		p.restart()
	case words[0] == "after":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			p.t.Fatal(err)
		}
		p.after(d)
	case words[0] == "confirm":
		if err := p.turn1(func(l *loop) error { _, err := l.confirm(words[1]); return err }); err != nil {
			p.t.Fatal(err)
		}
	case words[1] == "gone":
		p.remove(words[0])
	case words[1] == "bad":
		if p.folders[words[0]] == nil {
			p.folders[words[0]] = &folder{}
		}
		p.folders[words[0]].there, p.folders[words[0]].err = true, "nodes.yaml:3: no"
	case words[1] == "=":
		p.put(words[0], declare(words[2], words[3]), words[4:]...)
	default:
		p.t.Fatalf("what is %q?", s)
	}
}

func TestConfirmWhatIsNotThere(t *testing.T) {
	p := newPlane(t)
	p.tell()
	if err := p.turn1(func(l *loop) error { _, err := l.confirm("east"); return err }); err == nil {
		t.Error("no error")
	}
}

func TestDuplicateNameSaysWhatToDo(t *testing.T) {
	p := newPlane(t)
	p.put("A", declare("east", "10.1.0.0/16"), "n1")
	p.tell()
	p.put("B", declare("east", "10.2.0.0/16"), "n1")
	p.tell()
	if got, want := p.sources["B"], "cluster name east is already that of A: give one of the two another name"; got != want {
		t.Errorf("got %q", got)
	}
	p.remove("A")
	p.tell()
	p.folders["B"].decl.Network = "x"
	p.tell()
	if got := p.sources["B"]; !strings.Contains(got, "controlplane confirm east") {
		t.Errorf("got %q", got)
	}
}

// A refused node's error names it, and several come in one order: the status
// must not flicker.
func TestBadNodesAreNamedInOrder(t *testing.T) {
	p := newPlane(t)
	nodes := []string{}
	for i := range 9 {
		nodes = append(nodes, fmt.Sprintf("n%d=x", i))
	}
	p.put("A", declare("east", "10.1.0.0/16"), nodes...)
	p.tell()
	var names []string
	for line := range strings.Lines(p.sources["A"]) {
		names = append(names, strings.TrimSuffix(strings.Fields(line)[1], ":"))
	}
	if got := strings.Join(names, " "); got != "n0 n1 n2 n3 n4 n5 n6 n7 n8" {
		t.Errorf("got %s", got)
	}
}
