package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// AddService adds a service; zero fields take their defaults. Its pods are there
// already and stay what they are: in another namespace, with another service
// account or speaking plaintext where it wants mTLS, they are refused, and
// "flatmesh.io/tls" defaults to what they speak.
func (l *Lab) AddService(ctx context.Context, sv Service) error {
	return l.change(ctx, func(s *state) error {
		sv, err := s.fit(sv)
		if err != nil {
			return err
		}
		s.addService(sv)
		if err := s.topology().Validate(); err != nil {
			return err
		}
		return errors.Join(s.save(), s.writeClusters())
	})
}

// RemoveService removes a service, NAMESPACE/NAME or just NAME in the
// DefaultNamespace, from all clusters. Its pods stay.
func (l *Lab) RemoveService(ctx context.Context, name string) error {
	return l.change(ctx, func(s *state) error {
		id, err := mesh.ParseServiceName(name)
		if err != nil {
			id = mesh.ServiceName{Namespace: DefaultNamespace, Name: name}
		}
		n := len(s.Services)
		s.Services = slices.DeleteFunc(s.Services, func(sv serviceState) bool { return sv.id() == id })
		if len(s.Services) == n {
			return fmt.Errorf("there is no service %v in lab %s", id, s.Name)
		}
		errs := []error{s.save(), s.writeClusters()}
		for _, c := range s.Clusters {
			errs = append(errs, l.settle(ctx, s, c.Name))
		}
		return errors.Join(errs...)
	})
}

// SetReady says in the cluster's YAML whether a pod, CLUSTER/NODE/POD, is ready.
// Its process is left alone, and no other command changes it.
func (l *Lab) SetReady(ctx context.Context, name string, ready bool) error {
	return l.change(ctx, func(s *state) error {
		p, err := s.pod(name)
		if err != nil {
			return err
		}
		ps := p.state()
		ps.Unready = !ready
		p.node.cluster.Pods[p.kubeName()] = ps
		return errors.Join(s.save(), s.writeObjects(p.node.cluster))
	})
}

// Services lists the lab's services, completed.
func (l *Lab) Services() ([]Service, error) {
	s, err := loadState(l.name)
	if err != nil {
		return nil, err
	}
	return s.topology().Services, nil
}

// writeClusters writes the objects of every cluster.
func (s *state) writeClusters() error {
	var errs []error
	for i := range s.Clusters {
		errs = append(errs, s.writeObjects(&s.Clusters[i]))
	}
	return errors.Join(errs...)
}
