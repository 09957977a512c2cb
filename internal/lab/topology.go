package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Topology says which clusters a lab is made of, and which services they have.
type Topology struct {
	Clusters []Cluster
	Services []Service
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
	// Gateways counts gw1, gw2, …
	Gateways int `json:"gateways,omitempty"`
	// Zones are those of the nodes, in turn; none leaves nodes without.
	Zones []Zone `json:"zones,omitempty"`
}

// complete fills in the defaults of the services.
func (t Topology) complete() Topology {
	t.Services = slices.Clone(t.Services)
	for i := range t.Services {
		t.Services[i] = t.Services[i].complete()
	}
	return t
}

// Zone is a place of nodes, in a file REGION/ZONE.
type Zone struct {
	Region string `json:"region"`
	Zone   string `json:"zone"`
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
	d.mapping("", resolve(doc.Content[0]), map[string]field{
		"clusters": d.list(func(path string, n *yaml.Node) { t.Clusters = append(t.Clusters, d.cluster(path, n)) }),
		"services": d.list(func(path string, n *yaml.Node) { t.Services = append(t.Services, d.service(path, n)) }),
	})
	return t, nil
}

func (d *decoder) cluster(path string, n *yaml.Node) Cluster {
	c := Cluster{Nodes: 1, PodsPerNode: 1, MTU: 1500}
	d.mapping(path, n, map[string]field{
		"name":         d.text(&c.Name),
		"network":      d.text(&c.Network),
		"podCIDRs":     d.prefixes(&c.PodCIDRs),
		"serviceCIDRs": d.prefixes(&c.ServiceCIDRs),
		"nodes":        number(d, &c.Nodes),
		"podsPerNode":  number(d, &c.PodsPerNode),
		"mtu":          number(d, &c.MTU),
		"gateways":     number(d, &c.Gateways),
		"zones": d.list(func(path string, n *yaml.Node) {
			if !d.scalar(path, n, "!!str", "REGION/ZONE") {
				return
			}
			region, zone, ok := strings.Cut(n.Value, "/")
			if !ok {
				d.complain(path, n, "%q: want REGION/ZONE", n.Value)
				return
			}
			c.Zones = append(c.Zones, Zone{region, zone})
		}),
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

func (d *decoder) service(path string, n *yaml.Node) Service {
	var s Service
	d.mapping(path, n, map[string]field{
		"name":           d.text(&s.Name),
		"namespace":      d.text(&s.Namespace),
		"clusters":       d.texts(&s.Clusters),
		"pods":           d.texts(&s.Pods),
		"serviceAccount": d.text(&s.ServiceAccount),
		"annotations":    d.textMap(&s.Annotations),
		"ports": d.list(func(path string, n *yaml.Node) {
			var p ServicePort
			d.mapping(path, n, map[string]field{
				"name":        d.text(&p.Name),
				"port":        number(d, &p.Port),
				"targetPort":  number(d, &p.TargetPort),
				"appProtocol": d.text(&p.AppProtocol),
			})
			s.Ports = append(s.Ports, p)
		}),
	})
	return s.complete()
}
