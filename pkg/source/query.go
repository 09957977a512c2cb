package source

import (
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Part returns what the cluster has of a service; false where it has no such
// Service, or none that can be served. It is shared and must not be modified.
func (x *Index) Part(name mesh.ServiceName) (mesh.ServicePart, bool) {
	s := x.find(name)
	if s == nil || s.part == nil {
		return mesh.ServicePart{}, false
	}
	return *s.part, true
}

// Services returns the names for which there is a Part, sorted.
func (x *Index) Services() []mesh.ServiceName {
	var out []mesh.ServiceName
	for _, ns := range x.namespaces {
		for _, s := range ns.services {
			if s.part != nil {
				out = append(out, s.name)
			}
		}
	}
	slices.SortFunc(out, mesh.ServiceName.Compare)
	return out
}

// Gateways returns the cluster's gateways, sorted by mesh.Gateway.Compare; none
// is Lost. They are shared and must not be modified.
func (x *Index) Gateways() []mesh.Gateway { return x.gateways }

// PodsOn returns the pods of a node, sorted: those that are scheduled to it and
// have not run to their end.
func (x *Index) PodsOn(node string) []mesh.Pod {
	list := x.onNode[node]
	out := make([]mesh.Pod, 0, len(list))
	for _, p := range list {
		out = append(out, *p)
	}
	slices.SortFunc(out, mesh.Pod.Compare)
	return out
}

// Pod returns a pod that has not run to its end. Its Node is empty until it is
// scheduled.
func (x *Index) Pod(namespace, name string) (mesh.Pod, bool) {
	ns := x.namespaces[namespace]
	if ns == nil || ns.pods[name] == nil || !ns.pods[name].known {
		return mesh.Pod{}, false
	}
	return ns.pods[name].Pod, true
}

// Problems returns what is wrong with the objects of a service: the Service, its
// slices and its export.
func (x *Index) Problems(name mesh.ServiceName) []Problem {
	s := x.find(name)
	if s == nil {
		return nil
	}
	return sortProblems(slices.Concat(s.problems, s.refused, s.lost))
}

// AllProblems returns what is wrong with all objects, sorted by object. It costs
// what there is, not what is wrong: it is for a status that someone asks for.
func (x *Index) AllProblems() []Problem {
	var out []Problem
	for _, ns := range x.namespaces {
		out = append(out, ns.problems...)
		for _, s := range ns.services {
			out = append(out, x.Problems(s.name)...)
		}
		for _, p := range ns.pods {
			out = append(out, p.problems...)
		}
	}
	return sortProblems(out)
}

func (x *Index) find(name mesh.ServiceName) *service {
	if ns := x.namespaces[name.Namespace]; ns != nil {
		return ns.services[name.Name]
	}
	return nil
}
