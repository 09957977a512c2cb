package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// cleanTime bounds the removal of what was made.
const cleanTime = 30 * time.Second

// AddClusters adds those clusters of t that the lab does not have, and returns
// their names. Services must be those of the lab: AddService comes first.
func (l *Lab) AddClusters(ctx context.Context, t Topology) (added []string, err error) {
	return added, l.change(ctx, func(s *state) error {
		for _, sv := range t.complete().Services {
			if !slices.ContainsFunc(s.Services, func(o serviceState) bool { return o.id() == sv.id() }) {
				return fmt.Errorf("the lab has no service %v: add it before the cluster (see `lab add service`)", sv.id())
			}
		}
		for _, c := range t.Clusters {
			if _, err := s.cluster(c.Name); err != nil {
				if err := s.add(c); err != nil {
					return err
				}
				added = append(added, c.Name)
			}
		}
		err := s.topology().Validate()
		if err == nil {
			err = errors.Join(checkIPv6(s.topology()), checkPrograms(s.topology(), s.Bin, s.NoAgents))
		}
		if err == nil {
			err = s.save()
		}
		if err != nil {
			added = nil
			return err
		}
		for _, name := range added {
			c, _ := s.cluster(name)
			if err = s.writeCluster(c); err != nil {
				break
			}
		}
		if err == nil {
			err = l.raise(ctx, s, added)
		}
		if err != nil {
			err = errors.Join(err, l.undo(ctx, func(ctx context.Context) error { return l.dropClusters(ctx, s, added) }))
			added = nil
		}
		return err
	})
}

// undo removes what a failed command has made, also when its ctx has ended.
func (l *Lab) undo(ctx context.Context, remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	return remove(ctx)
}

// RemoveCluster removes a cluster and all in it.
func (l *Lab) RemoveCluster(ctx context.Context, name string) error {
	return l.change(ctx, func(s *state) error {
		if _, err := s.cluster(name); err != nil {
			return err
		}
		return l.dropClusters(ctx, s, []string{name})
	})
}

func (l *Lab) dropClusters(ctx context.Context, s *state, names []string) error {
	var errs []error
	for _, name := range names {
		c, err := s.cluster(name)
		if err != nil {
			return err
		}
		errs = append(errs, os.RemoveAll(clusterDir(s.Name, name)))
		for _, g := range c.gateways() {
			errs = append(errs, s.dropGateway(ctx, g))
		}
		for _, n := range c.nodes() {
			errs = append(errs, s.dropNode(ctx, n))
		}
		errs = append(errs, s.dropNetwork(ctx, c), os.RemoveAll(hostDir(s.Name, name)), os.RemoveAll(tokenPath(s.Name, name)))
		s.remove(name)
		errs = append(errs, s.save(), l.settle(ctx, s, name))
	}
	return errors.Join(errs...)
}

// dropNetwork removes the cluster from the underlay, and its router if no other
// cluster needs it.
func (s *state) dropNetwork(ctx context.Context, c *clusterState) error {
	h := s.router(c)
	if !slices.ContainsFunc(s.Clusters, func(o clusterState) bool { return o.Network == c.Network && o.Name != c.Name }) {
		return dropHost(ctx, h)
	}
	var errs []error
	for _, name := range []string{h.Namespace, s.core().Namespace} {
		ns, err := openNamespace(name)
		if err != nil {
			return err
		}
		for _, r := range c.nodeRanges() {
			errs = append(errs, ns.dropRoutes(r))
		}
		ns.close()
	}
	return errors.Join(errs...)
}

// AddNode adds a node, CLUSTER/NODE or just CLUSTER for its next one, and
// returns its host name.
func (l *Lab) AddNode(ctx context.Context, name string) (host string, err error) {
	return host, l.change(ctx, func(s *state) error {
		n, err := s.newNode(name)
		if err != nil {
			return err
		}
		c := n.cluster
		c.Numbers = append(c.Numbers, n.number)
		slices.Sort(c.Numbers)
		s.addPods(n)
		if err = s.save(); err == nil {
			err = s.writeObjects(c)
		}
		if err == nil {
			err = l.raiseNodes(ctx, s, []node{n})
		}
		if err != nil {
			return errors.Join(err, l.undo(ctx, func(ctx context.Context) error { return l.forgetNode(ctx, s, n) }))
		}
		host = n.id().String()
		return nil
	})
}

// newNode checks that the cluster has room for a node of that name.
func (s *state) newNode(name string) (node, error) {
	id := mesh.NodeID{Cluster: name}
	if _, err := s.cluster(name); err != nil {
		if id, err = mesh.ParseNodeID(name); err != nil {
			return node{}, err
		}
	}
	c, err := s.cluster(id.Cluster)
	if err != nil {
		return node{}, err
	}
	k := 1
	if id.Name == "" {
		for slices.Contains(c.Numbers, k) {
			k++
		}
	} else if k, err = nodeNumber(id.Name); err != nil {
		return node{}, err
	}
	if slices.Contains(c.Numbers, k) {
		return node{}, fmt.Errorf("there is a node %s/n%d already", c.Name, k)
	}
	if k > maxNodes {
		return node{}, fmt.Errorf("cluster %s is full: a lab's cluster has at most %d nodes", c.Name, maxNodes)
	}
	for i, r := range c.PodCIDRs {
		if _, err := cut(r, c.NodeBits[i], k); err != nil {
			return node{}, fmt.Errorf("add a node to %s: %w", c.Name, err)
		}
	}
	return node{c, k}, nil
}

// RemoveNode removes a node, CLUSTER/NODE, its pods and the cuts that concern it.
func (l *Lab) RemoveNode(ctx context.Context, name string) error {
	return l.change(ctx, func(s *state) error {
		n, err := s.node(name)
		if err != nil {
			return err
		}
		return l.forgetNode(ctx, s, n)
	})
}

func (l *Lab) forgetNode(ctx context.Context, s *state, n node) error {
	c := n.cluster
	c.Numbers = slices.DeleteFunc(slices.Clone(c.Numbers), func(k int) bool { return k == n.number })
	s.dropPods(n)
	return errors.Join(s.writeObjects(c), s.dropNode(ctx, n), os.RemoveAll(hostDir(s.Name, n.id().String())),
		s.save(), l.settle(ctx, s, c.Name))
}

// dropNode removes a node and its pods from the machine.
func (s *state) dropNode(ctx context.Context, n node) error {
	errs := []error{s.healAll(n.id().String())}
	hs := s.nodeHosts(n)
	slices.Reverse(hs)
	for _, h := range hs {
		errs = append(errs, dropHost(ctx, h))
	}
	return errors.Join(errs...)
}

// dropHost ends all in a host, and removes its links with it: a namespace may
// live on for as long as anyone else holds it, but must not go on routing.
func dropHost(ctx context.Context, h Host) error {
	if _, err := endAll(ctx, []string{h.Namespace}); err != nil {
		return err
	}
	ns, err := openNamespace(h.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = ns.dropLinks()
		ns.close()
	}
	return errors.Join(err, deleteNamespace(h.Namespace))
}
