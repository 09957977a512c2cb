package dir

import (
	"cmp"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// clusterFile is the file, at the top of a cluster folder, that declares it.
const clusterFile = "cluster.yaml"

// declaration is cluster.yaml.
type declaration struct {
	Name         string   `json:"name"`
	Network      string   `json:"network"`
	PodCIDRs     []string `json:"podCIDRs"`
	ServiceCIDRs []string `json:"serviceCIDRs"`
	NodeCIDRs    []string `json:"nodeCIDRs"`
}

// decodeCluster decodes cluster.yaml.
func decodeCluster(name string, data []byte, types map[reflect.Type]structFields) file {
	f := newFileDecoder(name, types)
	count := f.documents(data, func(n *yaml.Node) {
		if f.cluster == nil {
			f.cluster = f.declaration(n)
		}
	})
	switch {
	case len(f.errs) > 0:
	case count == 0:
		f.fail(0, "", errors.New("is empty; it wants at least the cluster's name, as in: name: east"))
	case count > 1:
		f.fail(0, "", errors.New("holds several documents; it declares one cluster, and objects lie in other files"))
	}
	return f.file
}

func (f *fileDecoder) declaration(n *yaml.Node) *mesh.Cluster {
	var d declaration
	f.value(n, reflect.ValueOf(&d).Elem(), nil)
	if len(f.errs) > 0 {
		return &mesh.Cluster{}
	}
	c := mesh.Cluster{Name: d.Name, Network: cmp.Or(d.Network, d.Name)}
	if err := mesh.ValidateClusterName(c.Name); err != nil {
		f.fail(lineOf(n, "name"), "name", err)
	} else if err := mesh.ValidateClusterName(c.Network); err != nil {
		f.fail(lineOf(n, "network"), "network", err)
	}
	for _, r := range []struct {
		field string
		texts []string
		to    *[]netip.Prefix
	}{
		{"podCIDRs", d.PodCIDRs, &c.PodCIDRs}, {"serviceCIDRs", d.ServiceCIDRs, &c.ServiceCIDRs}, {"nodeCIDRs", d.NodeCIDRs, &c.NodeCIDRs},
	} {
		for i, text := range r.texts {
			p, err := source.ParsePrefix(text)
			if err != nil {
				field := (&path{up: &path{name: r.field}, index: i}).String()
				f.fail(lineOf(n, field), field, err)
				continue
			}
			*r.to = append(*r.to, p)
		}
	}
	if len(f.errs) == 0 {
		f.validate(n, c.Validate())
	}
	return &c
}

// validate adds what a declaration as a whole has against it. Each text begins
// with its field.
func (f *fileDecoder) validate(n *yaml.Node, err error) {
	j, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return
	}
	for _, err := range j.Unwrap() {
		field, rest, _ := strings.Cut(err.Error(), ": ")
		f.fail(lineOf(n, field), field, errors.New(rest))
	}
}

// withServiceCIDRs completes a declaration that names no service ranges with
// those of the cluster's ServiceCIDR objects. These may overlap, and a range
// within another adds nothing.
func withServiceCIDRs(c mesh.Cluster, objects map[source.Key]runtime.Object) (mesh.Cluster, error) {
	if len(c.ServiceCIDRs) > 0 {
		return c, nil
	}
	var all []netip.Prefix
	for _, o := range objects {
		if s, ok := o.(*networkingv1.ServiceCIDR); ok {
			prefixes, err := source.ServiceCIDRs(s)
			if err != nil {
				return c, err
			}
			all = append(all, prefixes...)
		}
	}
	// The order of prefixes puts a range ahead of those within it.
	slices.SortFunc(all, mesh.ComparePrefix)
	for _, p := range all {
		if last := len(c.ServiceCIDRs) - 1; last < 0 || !c.ServiceCIDRs[last].Overlaps(p) {
			c.ServiceCIDRs = append(c.ServiceCIDRs, p)
		}
	}
	return c, nil
}
