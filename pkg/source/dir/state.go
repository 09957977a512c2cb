package dir

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// State is everything that a cluster folder says.
type State struct {
	Folder string
	// Cluster is what cluster.yaml declares, with the service ranges of the
	// ServiceCIDR objects where it declares none.
	Cluster mesh.Cluster
	// Objects are shared and must not be modified.
	Objects map[source.Key]runtime.Object
}

// Load reads a cluster folder once. Its error joins an Error for each thing that
// is wrong with the folder, up to a bound; where the folder or its cluster.yaml
// does not exist it is fs.ErrNotExist.
func Load(folder string) (State, error) {
	return newReader(folder, time.Now, func(string) {}).read(context.Background())
}

// Nodes returns the cluster's nodes, sorted.
func (s State) Nodes() ([]mesh.Node, error) {
	var out []mesh.Node
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(s.Objects), source.Key.Compare) {
		o, ok := s.Objects[key].(*corev1.Node)
		if !ok {
			continue
		}
		n, err := source.Node(s.Cluster, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %v: %w", s.Folder, key, err))
			continue
		}
		out = append(out, n)
	}
	return out, errors.Join(errs...)
}
