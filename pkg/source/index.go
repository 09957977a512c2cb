package source

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Options are what the whole mesh decides on its services.
type Options struct {
	// MCS exports only the services for which there is a ServiceExport. What
	// withholds a service otherwise still does.
	MCS bool
	// DefaultTLS is for the ports of Services that do not say.
	DefaultTLS TLSDefault
}

// Index is what the objects of one cluster say of its services, gateways and
// pods. It is a function of the objects in force, whatever the order in which
// they came; a change costs what it concerns. It is for one goroutine.
//
// Objects are taken as they are: those that Validate refuses do no harm.
type Index struct {
	cluster    mesh.Cluster
	options    Options
	namespaces map[string]*namespace
	sliceOf    map[Key]*service       // EndpointSlices that name a service
	onNode     map[string][]*mesh.Pod // by node; unsorted
	gatewaysOf map[*service]struct{}  // Services that declare gateways
	gateways   []mesh.Gateway
}

// namespace is what is known of one namespace; the Namespace itself may be absent.
type namespace struct {
	object   bool // there is a Namespace
	withheld bool // by default its services are not exported
	problems []Problem
	services map[string]*service
	pods     map[string]*pod
}

// pod is a Pod and who refers to it; it may be known from slices alone.
type pod struct {
	mesh.Pod
	known    bool // there is such a Pod and it has not run to its end
	problems []Problem
	users    map[*service]int // how many candidates of each refer to it
}

// Dirty is what changes have changed. Each list is sorted and holds nothing
// twice.
type Dirty struct {
	// Services whose Part is another, is new or is gone.
	Services []mesh.ServiceName
	// Nodes whose pods changed.
	Nodes []string
	// Gateways changed.
	Gateways bool
}

// NewIndex makes an Index of a cluster without objects.
func NewIndex(c mesh.Cluster, o Options) *Index {
	return &Index{
		cluster: c, options: o, namespaces: map[string]*namespace{}, sliceOf: map[Key]*service{},
		onNode: map[string][]*mesh.Pod{}, gatewaysOf: map[*service]struct{}{},
	}
}

// touched is what is to be looked at once all changes are in.
type touched struct {
	services map[*service]struct{}
	nodes    map[string]struct{}
}

// Apply takes in changes, such as those of an Update that is not Full, and says
// what follows from them. Of an object that changes twice the last change holds.
func (x *Index) Apply(changes []Change) Dirty {
	t := touched{services: map[*service]struct{}{}, nodes: map[string]struct{}{}}
	for _, c := range changes {
		switch c.Key.Kind {
		case KindNamespace:
			o, _ := c.Object.(*corev1.Namespace)
			x.takeNamespace(c.Key, o, &t)
		case KindService:
			o, _ := c.Object.(*corev1.Service)
			s := x.service(c.Key.Namespace, c.Key.Name)
			s.object = o
			t.services[s] = struct{}{}
		case KindServiceExport:
			s := x.service(c.Key.Namespace, c.Key.Name)
			s.exported = c.Object != nil
			t.services[s] = struct{}{}
		case KindEndpointSlice:
			o, _ := c.Object.(*discoveryv1.EndpointSlice)
			x.takeSlice(c.Key, o, &t)
		case KindPod:
			o, _ := c.Object.(*corev1.Pod)
			x.takePod(c.Key, o, &t)
		case KindNode, KindServiceCIDR:
		}
	}
	return x.settle(&t)
}

// Replace takes in everything there is, as an Update that is Full has it: what
// is not in it is gone.
func (x *Index) Replace(objects []Change) Dirty {
	gone := map[Key]struct{}{}
	for key := range x.sliceOf {
		gone[key] = struct{}{}
	}
	for name, ns := range x.namespaces {
		gone[Key{Kind: KindNamespace, Name: name}] = struct{}{}
		for s := range ns.services {
			gone[Key{Kind: KindService, Namespace: name, Name: s}] = struct{}{}
			gone[Key{Kind: KindServiceExport, Namespace: name, Name: s}] = struct{}{}
		}
		for p := range ns.pods {
			gone[Key{Kind: KindPod, Namespace: name, Name: p}] = struct{}{}
		}
	}
	for _, c := range objects {
		delete(gone, c.Key)
	}
	changes := make([]Change, 0, len(gone)+len(objects))
	for key := range gone {
		changes = append(changes, Change{Key: key})
	}
	return x.Apply(append(changes, objects...))
}

// SetCluster takes in another declaration of the same cluster.
func (x *Index) SetCluster(c mesh.Cluster) Dirty {
	x.cluster = c
	t := touched{services: map[*service]struct{}{}}
	for s := range x.gatewaysOf {
		t.services[s] = struct{}{}
	}
	return x.settle(&t)
}

// settle makes anew what was touched.
func (x *Index) settle(t *touched) Dirty {
	var d Dirty
	gateways := false
	for s := range t.services {
		ns := x.namespaces[s.name.Namespace]
		part, problems := x.build(s, ns)
		s.problems = problems
		if !samePart(s.part, part) {
			s.part = part
			d.Services = append(d.Services, s.name)
		}
		_, was := x.gatewaysOf[s]
		gateways = x.declareGateways(s) || was || gateways
		if !s.known() {
			delete(ns.services, s.name.Name)
			x.forgetNamespace(s.name.Namespace)
		}
	}
	if gateways {
		merged := mergeGateways(slices.Collect(maps.Keys(x.gatewaysOf)))
		d.Gateways = !slices.EqualFunc(x.gateways, merged, mesh.Gateway.Equal)
		x.gateways = merged
	}
	slices.SortFunc(d.Services, mesh.ServiceName.Compare)
	d.Nodes = slices.Sorted(maps.Keys(t.nodes))
	return d
}

// declareGateways notes what a Service declares as a gateway, if it is one.
func (x *Index) declareGateways(s *service) bool {
	s.gateways, s.refused, s.lost = nil, nil, nil
	if !isGateway(s.object) {
		delete(x.gatewaysOf, s)
		return false
	}
	x.gatewaysOf[s] = struct{}{}
	s.gateways, s.refused = declaredGateways(x.cluster, s.key(), s.object)
	return true
}

func (x *Index) takeNamespace(key Key, o *corev1.Namespace, t *touched) {
	ns := x.namespace(key.Name)
	errs := problems{object: key}
	was := ns.withheld
	ns.object, ns.withheld = o != nil, false
	if o != nil {
		exported, said := setting(o, settingExport, booleans, &errs)
		ns.withheld = said && !exported
	}
	ns.problems = errs.list()
	if ns.withheld != was {
		for _, s := range ns.services {
			t.services[s] = struct{}{}
		}
	}
	x.forgetNamespace(key.Name)
}

func (x *Index) takeSlice(key Key, o *discoveryv1.EndpointSlice, t *touched) {
	ns := x.namespace(key.Namespace)
	// The new one takes hold of its pods before the old one lets go of them.
	var now *service
	if o != nil && o.Labels[discoveryv1.LabelServiceName] != "" {
		now = x.service(key.Namespace, o.Labels[discoveryv1.LabelServiceName])
	}
	was := x.sliceOf[key]
	var old *slice
	if was != nil {
		old = was.slices[key.Name]
		delete(was.slices, key.Name)
		delete(x.sliceOf, key)
		t.services[was] = struct{}{}
	}
	if now != nil {
		x.sliceOf[key] = now
		now.slices[key.Name] = decodeSlice(key, o, func(name string) *pod {
			p := ns.pod(name)
			p.users[now]++
			return p
		})
		t.services[now] = struct{}{}
	}
	if old != nil {
		ns.release(was, old)
	}
	x.forgetNamespace(key.Namespace)
}

// release lets go of the pods that a service's slice refers to.
func (ns *namespace) release(s *service, old *slice) {
	for i := range old.candidates {
		p := old.candidates[i].pod
		if p == nil {
			continue
		}
		if p.users[s]--; p.users[s] == 0 {
			delete(p.users, s)
		}
		ns.forgetPod(p)
	}
}

func (x *Index) takePod(key Key, o *corev1.Pod, t *touched) {
	ns := x.namespace(key.Namespace)
	p := ns.pod(key.Name)
	was, known := p.Pod, p.known
	p.Pod, p.known, p.problems = mesh.Pod{Namespace: key.Namespace, Name: key.Name}, false, nil
	if o != nil && !over(o) {
		var err error
		p.known = true
		p.Pod, err = Pod(o)
		p.Namespace, p.Name = key.Namespace, key.Name
		p.problems = podProblems(key, err)
	}
	if known != p.known || !was.Equal(p.Pod) {
		x.moveTo(p, was.Node, known, t)
	}
	if known != p.known || was.UID != p.UID || was.Node != p.Node || was.ServiceAccount != p.ServiceAccount {
		for s := range p.users {
			t.services[s] = struct{}{}
		}
	}
	ns.forgetPod(p)
	x.forgetNamespace(key.Namespace)
}

func podProblems(key Key, err error) []Problem {
	var all fields
	all.join(err)
	var out []Problem
	for _, e := range all {
		out = append(out, Problem{Object: key, Err: e})
	}
	return out
}

// moveTo puts a pod that has changed onto its node.
func (x *Index) moveTo(p *pod, from string, was bool, t *touched) {
	if was && from != "" {
		list := slices.DeleteFunc(x.onNode[from], func(q *mesh.Pod) bool { return q == &p.Pod })
		if x.onNode[from] = list; len(list) == 0 {
			delete(x.onNode, from)
		}
		t.nodes[from] = struct{}{}
	}
	if p.known && p.Node != "" {
		x.onNode[p.Node] = append(x.onNode[p.Node], &p.Pod)
		t.nodes[p.Node] = struct{}{}
	}
}

// namespace returns the entry of a namespace, and makes it where there is none.
func (x *Index) namespace(name string) *namespace {
	ns := x.namespaces[name]
	if ns == nil {
		ns = &namespace{services: map[string]*service{}, pods: map[string]*pod{}}
		x.namespaces[name] = ns
	}
	return ns
}

func (x *Index) forgetNamespace(name string) {
	if ns := x.namespaces[name]; ns != nil && !ns.object && len(ns.services) == 0 && len(ns.pods) == 0 {
		delete(x.namespaces, name)
	}
}

// service returns the entry of a service, and makes it where there is none. Who
// calls it touches the entry, so that it goes again if nothing speaks of it.
func (x *Index) service(ns, name string) *service {
	in := x.namespace(ns)
	s := in.services[name]
	if s == nil {
		s = &service{name: mesh.ServiceName{Namespace: ns, Name: name}, slices: map[string]*slice{}}
		in.services[name] = s
	}
	return s
}

// pod returns the entry of a pod, and makes it where there is none.
func (ns *namespace) pod(name string) *pod {
	p := ns.pods[name]
	if p == nil {
		p = &pod{Pod: mesh.Pod{Name: name}, users: map[*service]int{}}
		ns.pods[name] = p
	}
	return p
}

func (ns *namespace) forgetPod(p *pod) {
	if !p.known && len(p.users) == 0 {
		delete(ns.pods, p.Name)
	}
}
