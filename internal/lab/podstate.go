package lab

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"time"
)

// podState is what of a pod does not follow from its number. The services that
// were there first decided what it is: like a Kubernetes pod it does not change.
type podState struct {
	Namespace      string    `json:"namespace"`
	ServiceAccount string    `json:"serviceAccount"`
	UID            string    `json:"uid"`
	Created        time.Time `json:"created"`
	// MTLS: gRPC speaks the mesh's mTLS and nothing else.
	MTLS bool `json:"mtls,omitempty"`
	// Unready: Kubernetes would send it nothing.
	Unready bool `json:"unready,omitempty"`
}

// serviceState is a service with what must not change while it exists.
type serviceState struct {
	Service
	// Number, from 0, gives its address in each cluster.
	Number  int       `json:"number"`
	Created time.Time `json:"created"`
}

// addPods makes the pods of a new node known.
func (s *state) addPods(n node) {
	for _, p := range n.pods() {
		ps := podState{Namespace: DefaultNamespace, UID: newUID(), Created: now()}
		first := true
		for _, sv := range s.Services {
			if !sv.backedBy(p) {
				continue
			}
			ps.ServiceAccount = cmp.Or(sv.ServiceAccount, ps.ServiceAccount)
			mtls, _ := sv.wants()
			ps.MTLS = ps.MTLS || mtls
			if first {
				first = false
				ps.Namespace = sv.Namespace
				ps.ServiceAccount = cmp.Or(ps.ServiceAccount, sv.Name)
			}
		}
		ps.ServiceAccount = cmp.Or(ps.ServiceAccount, "default")
		n.cluster.Pods[p.kubeName()] = ps
	}
}

// dropPods forgets those of a node that goes.
func (s *state) dropPods(n node) {
	for _, p := range n.pods() {
		delete(n.cluster.Pods, p.kubeName())
	}
}

// addService takes up a service, valid with all others, for the pods that there
// will be.
func (s *state) addService(sv Service) {
	n := 0
	for slices.ContainsFunc(s.Services, func(o serviceState) bool { return o.Number == n }) {
		n++
	}
	s.Services = append(s.Services, serviceState{Service: sv, Number: n, Created: now()})
}

// fit fills in the defaults of a service for the pods that there are, and says
// why they cannot be behind it.
func (s *state) fit(sv Service) (Service, error) {
	sv = sv.complete()
	pods := s.podsOf(sv)
	if _, said := sv.Annotations[tlsAnnotation]; !said && slices.ContainsFunc(pods, func(p pod) bool { return !p.state().MTLS }) {
		sv.Annotations = maps.Clone(sv.Annotations)
		if sv.Annotations == nil {
			sv.Annotations = map[string]string{}
		}
		sv.Annotations[tlsAnnotation] = "false"
	}
	mtls, plaintext := sv.wants()
	for _, p := range pods {
		ps := p.state()
		refuse := func(what, has string) error {
			return fmt.Errorf("pod %s was made with %s %s: it cannot be behind service %v", p.name(), what, has, sv.id())
		}
		switch {
		case ps.Namespace != sv.Namespace:
			return sv, refuse("namespace", ps.Namespace)
		case sv.ServiceAccount != "" && ps.ServiceAccount != sv.ServiceAccount:
			return sv, refuse("serviceAccount", ps.ServiceAccount)
		case mtls && !ps.MTLS || plaintext && ps.MTLS:
			return sv, refuse("mTLS", fmt.Sprint(ps.MTLS))
		}
	}
	return sv, nil
}

// podsOf lists the pods behind a service, in all clusters.
func (s *state) podsOf(sv Service) []pod {
	var ps []pod
	for i := range s.Clusters {
		ps = append(ps, s.Clusters[i].podsOf(sv)...)
	}
	return ps
}

func (c *clusterState) podsOf(sv Service) []pod {
	var ps []pod
	for _, p := range c.pods() {
		if sv.backedBy(p) {
			ps = append(ps, p)
		}
	}
	return ps
}

func (c *clusterState) pods() []pod {
	var ps []pod
	for _, n := range c.nodes() {
		ps = append(ps, n.pods()...)
	}
	return ps
}

// newUID makes a random UUID (RFC 9562, version 4), as Kubernetes does.
func newUID() string {
	var b [16]byte
	// It never fails, see its documentation.
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// now is the time as Kubernetes writes it.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }
