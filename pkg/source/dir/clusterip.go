package dir

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/flatmesh/flatmesh/pkg/source"
)

// sharedClusterIPs finds Services that have a virtual address in common. An API
// server gives each address to one only.
func sharedClusterIPs(places map[source.Key]object) []*Error {
	var errs []*Error
	holders := map[netip.Addr]source.Key{}
	for _, key := range slices.SortedFunc(maps.Keys(places), source.Key.Compare) {
		o := places[key]
		s, ok := o.obj.(*corev1.Service)
		if !ok || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		list := s.Spec.ClusterIPs
		if len(list) == 0 {
			list = []string{s.Spec.ClusterIP}
		}
		for _, ip := range list {
			a, err := netip.ParseAddr(ip)
			if err != nil {
				continue // none, or said already
			}
			if first, ok := holders[a]; ok && first != key {
				errs = append(errs, &Error{File: o.file, Line: o.line, Object: key.String(), Field: "spec.clusterIPs",
					Err: fmt.Errorf("%v is that of %v in %s:%d too", a, first, places[first].file, places[first].line)})
				continue
			}
			holders[a] = key
		}
	}
	return errs
}
