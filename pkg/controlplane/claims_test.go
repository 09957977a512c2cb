package controlplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// conflicts lists them as "west yields 10.1.0.0/16 to east".
func (p *plane) conflicts() string {
	var out []string
	for _, x := range p.topology.Conflicts {
		if x.Effect == mesh.Listed {
			continue // the nodes' addresses
		}
		out = append(out, fmt.Sprintf("%s %v %v to %s", x.Second.Cluster, x.Effect, x.Second.Prefix, x.First.Cluster))
	}
	return strings.Join(out, "; ")
}

// Each step is as in TestSources, and what conflicts afterwards.
var claimScripts = map[string][]step{
	"the later one yields, whatever its name, and still after a restart": {
		{"B = west 10.1.0.0/16: n1", ""},
		{"A = east 10.1.0.0/16: n1", "east yields 10.1.0.0/16 to west"},
		{"restart", "east yields 10.1.0.0/16 to west"},
	},
	"in one batch": {
		{"A = east 10.1.0.0/16: n1; B = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"restart", "west yields 10.1.0.0/16 to east"},
	},
	"a vanished folder keeps its place": {
		{"A = east 10.1.0.0/16: n1", ""},
		{"A gone", ""},
		{"B = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"after 10m", "west yields 10.1.0.0/16 to east"},
		{"A = east 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
	},
	"with the confirmed end of a cluster its place is free": {
		{"A = east 10.1.0.0/16: n1", ""},
		{"B = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"A gone; tell; confirm east", ""},
		{"A = east 10.1.0.0/16: n1", "east yields 10.1.0.0/16 to west"},
		{"restart", "east yields 10.1.0.0/16 to west"},
	},
	"a range that is withdrawn by hand has lost its place": {
		{"A = east 10.1.0.0/16: n1", ""},
		{"B = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"A = east 10.3.0.0/16: n1", ""},
		{"A = east 10.1.0.0/16: n1", "east yields 10.1.0.0/16 to west"},
		{"restart", "east yields 10.1.0.0/16 to west"},
	},
	"withdrawn and back before it was looked at": {
		{"A = east 10.1.0.0/16: n1", ""},
		{"A = east 10.3.0.0/16: n1; tell; B = west 10.1.0.0/16: n1; tell; A = east 10.1.0.0/16: n1", "east yields 10.1.0.0/16 to west"},
	},
	"a wider range is another one": {
		{"A = east 10.1.0.0/16: n1", ""},
		{"B = west 10.2.0.0/16: n1", ""},
		{"A = east 10.0.0.0/8: n1", "east yields 10.0.0.0/8 to west"},
	},
	"what cannot be read withdraws nothing": {
		{"A = east 10.1.0.0/16: n1; B = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"A bad", "west yields 10.1.0.0/16 to east"},
		{"restart", "west yields 10.1.0.0/16 to east"},
		{"A = east 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
	},
	"a moved folder keeps its place": {
		{"A = east 10.1.0.0/16: n1; B = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"A gone; C = east 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
	},
	"a renamed cluster's place ends with the old name": {
		{"A = east 10.1.0.0/16: n1", ""},
		{"A = west 10.1.0.0/16: n1", "west yields 10.1.0.0/16 to east"},
		{"after 10m", ""},
	},
}

func TestClaimOrderIsKept(t *testing.T) {
	for name, steps := range claimScripts {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			for i, s := range steps {
				for command := range strings.SplitSeq(s.do, ";") {
					p.command(strings.TrimSpace(command))
				}
				p.tell()
				if got := p.conflicts(); got != s.see {
					t.Fatalf("step %d, %s: got %q, want %q", i, s.do, got, s.see)
				}
			}
		})
	}
}

// holders lists who holds what within a cluster.
func (p *plane) holders() string {
	var out []string
	for _, n := range p.topology.Nodes {
		out = append(out, fmt.Sprint(n.ID.Name, n.Prefixes))
	}
	return strings.Join(out, " ")
}

// The first holder of a prefix keeps it, until it lets go of it.
func TestFirstHolderKeeps(t *testing.T) {
	p := newPlane(t)
	for i, s := range []step{
		{"A = east 10.1.0.0/16: n2=10.1.7.0/24", "n2[10.1.7.0/24]"},
		{"A = east 10.1.0.0/16: n1=10.1.7.0/24 n2=10.1.7.0/24 n3=10.1.0.0/20", "n1[] n2[10.1.7.0/24] n3[]"},
		{"restart", "n1[] n2[10.1.7.0/24] n3[]"},
		{"A = east 10.1.0.0/16: n1=10.1.7.0/24 n2=10.1.8.0/24 n3=10.1.0.0/20", "n1[10.1.7.0/24] n2[10.1.8.0/24] n3[]"},
		// It comes back to what it held once: the other one is the first now.
		{"A = east 10.1.0.0/16: n1=10.1.7.0/24 n2=10.1.7.0/24 n3=10.1.0.0/20", "n1[10.1.7.0/24] n2[] n3[]"},
		{"A = east 10.1.0.0/16: n2=10.1.7.0/24 n3=10.1.0.0/20", "n2[] n3[10.1.0.0/20]"},
		{"A = east 10.1.0.0/16: n1=10.1.7.0/24 n2=10.1.7.0/24 n3=10.1.0.0/20", "n1[] n2[] n3[10.1.0.0/20]"},
		{"restart", "n1[] n2[] n3[10.1.0.0/20]"},
		{"A = east 10.1.0.0/16: n1=10.1.7.0/24 n2=10.1.7.0/24 n3=10.9.0.0/20", "n1[] n2[10.1.7.0/24] n3[]"},
	} {
		for command := range strings.SplitSeq(s.do, ";") {
			p.command(command)
		}
		p.tell()
		if got := p.holders(); got != s.see {
			t.Fatalf("step %d, %s: got %s, want %s", i, s.do, got, s.see)
		}
	}
	// Nothing is left of nodes that have gone.
	p.command("A = east 10.1.0.0/16: n2=10.1.7.0/24 n3=10.1.9.0/24")
	p.tell()
	for k := range p.orders {
		if strings.HasPrefix(k, "@prefix/") && !strings.Contains(k, "n2/10.1.7.0") && !strings.Contains(k, "n3/10.1.9.0") {
			t.Errorf("still numbered: %s", k)
		}
	}
}
