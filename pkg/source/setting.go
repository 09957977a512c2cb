package source

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// What users set on a Service (and export on a Namespace too), as annotations or
// as labels.
const (
	settingTLS    = "flatmesh.io/tls"
	settingExport = "flatmesh.io/export"
	settingPrefer = "flatmesh.io/prefer"
	settingRetry  = "flatmesh.io/retry"
)

var (
	booleans    = map[string]bool{"true": true, "false": false}
	tlsValues   = map[string]bool{"mesh": true, "true": true, "none": false, "false": false}
	preferences = map[string]mesh.Preference{"none": mesh.PreferNone, "cluster": mesh.PreferCluster, "zone": mesh.PreferZone}
)

// setting returns what an object says under a key, and whether it says anything
// that is understood. An annotation comes before a label, also where it is not
// understood: what was meant by it is not known.
func setting[T any](m metav1.Object, key string, values map[string]T, errs *problems) (T, bool) {
	field := "metadata.annotations[%s]"
	s, ok := m.GetAnnotations()[key]
	if !ok {
		field = "metadata.labels[%s]"
		s, ok = m.GetLabels()[key]
	}
	v, known := values[s]
	if ok && !known {
		errs.add(fmt.Errorf("%q: want one of %s; the default holds", s, strings.Join(slices.Sorted(maps.Keys(values)), ", ")), field, key)
	}
	return v, ok && known
}
