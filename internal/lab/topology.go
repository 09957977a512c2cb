package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Topology says which clusters a lab is made of.
type Topology struct {
	Clusters []Cluster
}

// Cluster is one cluster of a lab. ParseTopology fills in what the file leaves
// out; in a value made by hand every field counts as it is.
type Cluster struct {
	Name string `json:"name"`
	// Network holds the clusters that reach each other's pods natively, through
	// one router. Default: the cluster's name.
	Network string `json:"network"`
	// PodCIDRs holds one range, or one of each family. The families are also
	// those of the nodes' own addresses.
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	// Nodes and PodsPerNode count n1, n2, … and p1, p2, … Default: 1 of each.
	Nodes       int `json:"nodes"`
	PodsPerNode int `json:"podsPerNode"`
	// NAT puts the nodes behind a router that hides their addresses.
	NAT bool `json:"nat"`
	// MTU is that of the links between nodes and router, in bytes. Default: 1500.
	MTU int `json:"mtu"`
}

// LoadTopology reads and checks a topology file.
func LoadTopology(path string) (Topology, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Topology{}, fmt.Errorf("read the topology: %w", err)
	}
	return ParseTopology(path, data)
}

// ParseTopology decodes a topology strictly and checks it. Every error names
// file, line and field; all that is wrong is reported at once.
func ParseTopology(file string, data []byte) (Topology, error) {
	d := decoder{lines: map[string]int{}}
	t, err := d.document(data)
	if err != nil {
		return Topology{}, fmt.Errorf("%s: %w", file, err)
	}
	if len(d.problems) == 0 {
		d.problems = t.problems()
	}
	var errs []error
	for _, p := range d.problems {
		errs = append(errs, fmt.Errorf("%s:%d: %w", file, d.line(p.path), p))
	}
	return t, errors.Join(errs...)
}

// decoder walks the YAML by hand, because only so does every complaint, also
// one about a value that is well-formed but wrong, get its line.
type decoder struct {
	lines    map[string]int
	problems []problem
}

// line finds where path, or the nearest thing around it, is written.
func (d *decoder) line(path string) int {
	for {
		if n, ok := d.lines[path]; ok {
			return n
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 1
		}
		path = path[:i]
	}
}

func (d *decoder) complain(path string, n *yaml.Node, format string, args ...any) {
	d.lines[path] = n.Line
	d.problems = append(d.problems, problem{path, fmt.Errorf(format, args...)})
}

func (d *decoder) document(data []byte) (Topology, error) {
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return Topology{}, errors.New("the file is empty; want a list of clusters")
	case err != nil:
		return Topology{}, err
	}
	if err := dec.Decode(&more); err == nil {
		return Topology{}, fmt.Errorf("line %d: a second YAML document; want one", more.Line)
	} else if !errors.Is(err, io.EOF) {
		return Topology{}, err
	}
	var t Topology
	d.mapping("", resolve(doc.Content[0]), map[string]func(string, *yaml.Node){
		"clusters": func(path string, n *yaml.Node) {
			d.sequence(path, n, func(path string, n *yaml.Node) {
				t.Clusters = append(t.Clusters, d.cluster(path, n))
			})
		},
	})
	return t, nil
}

func (d *decoder) cluster(path string, n *yaml.Node) Cluster {
	c := Cluster{Nodes: 1, PodsPerNode: 1, MTU: 1500}
	text := func(into *string) func(string, *yaml.Node) {
		return func(path string, n *yaml.Node) {
			if d.scalar(path, n, "!!str", "a name") {
				*into = n.Value
			}
		}
	}
	number := func(into *int) func(string, *yaml.Node) {
		return func(path string, n *yaml.Node) {
			if !d.scalar(path, n, "!!int", "a number") {
				return
			}
			i, err := strconv.Atoi(n.Value)
			if err != nil {
				d.complain(path, n, "%q: want a whole number", n.Value)
				return
			}
			*into = i
		}
	}
	prefixes := func(into *[]netip.Prefix) func(string, *yaml.Node) {
		return func(path string, n *yaml.Node) {
			d.sequence(path, n, func(path string, n *yaml.Node) {
				if !d.scalar(path, n, "!!str", "an address range") {
					return
				}
				p, err := netip.ParsePrefix(n.Value)
				if err != nil {
					d.complain(path, n, "%q: want an address range such as 10.1.0.0/16", n.Value)
					return
				}
				*into = append(*into, p)
			})
		}
	}
	d.mapping(path, n, map[string]func(string, *yaml.Node){
		"name":         text(&c.Name),
		"network":      text(&c.Network),
		"podCIDRs":     prefixes(&c.PodCIDRs),
		"serviceCIDRs": prefixes(&c.ServiceCIDRs),
		"nodes":        number(&c.Nodes),
		"podsPerNode":  number(&c.PodsPerNode),
		"mtu":          number(&c.MTU),
		"nat": func(path string, n *yaml.Node) {
			if d.scalar(path, n, "!!bool", "true or false") {
				c.NAT = strings.EqualFold(n.Value, "true")
			}
		},
	})
	if c.Network == "" {
		c.Network = c.Name
	}
	return c
}

// resolve follows an alias to what its anchor names.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func (d *decoder) mapping(path string, n *yaml.Node, fields map[string]func(string, *yaml.Node)) {
	d.lines[path] = n.Line
	if n.Kind != yaml.MappingNode {
		d.complain(path, n, "want fields with values")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field := strings.TrimPrefix(path+"."+key.Value, ".")
		decode, known := fields[key.Value]
		switch {
		case !known:
			d.complain(field, key, "unknown field")
		case seen[key.Value]:
			d.complain(field, key, "given twice")
		default:
			seen[key.Value] = true
			d.lines[field] = key.Line
			decode(field, resolve(value))
		}
	}
}

func (d *decoder) sequence(path string, n *yaml.Node, item func(string, *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		d.complain(path, n, "want a list")
		return
	}
	for i, c := range n.Content {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.lines[field] = c.Line
		item(field, resolve(c))
	}
}

func (d *decoder) scalar(path string, n *yaml.Node, tag, want string) bool {
	if n.Kind != yaml.ScalarNode || n.Tag != tag {
		d.complain(path, n, "want %s", want)
		return false
	}
	return true
}
