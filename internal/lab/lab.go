package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// DefaultName is the name of a lab that was given none.
const DefaultName = "lab"

// Options of a lab.
type Options struct {
	// Name tells labs on one machine apart. Default: DefaultName.
	Name string
	// Bin is the folder with the programs agent, controlplane, lab, meshecho and,
	// where there are gateways, gateway.
	Bin string
	// NoAgents leaves out control plane and agents: hosts and pods alone.
	NoAgents bool
	// AgentFlags are further flags of every agent, also when it is started again.
	AgentFlags []string
	// Wait is how long Up waits until all agents are registered and all tunnels
	// up; 0 does not wait.
	Wait time.Duration
	// Keep leaves the lab running when Wait has passed in vain.
	Keep bool
	// Log receives a line now and then about what is going on. Default: nowhere.
	Log func(format string, args ...any)
}

// Lab is a lab that was made, by this process or another.
type Lab struct {
	name string
	log  func(format string, args ...any)
}

func newLab(name string, log func(string, ...any)) *Lab {
	if log == nil {
		log = func(string, ...any) {}
	}
	return &Lab{name, log}
}

// Open finds a lab that runs. Log may be nil.
func Open(name string, log func(format string, args ...any)) (*Lab, error) {
	if _, err := loadState(name); err != nil {
		return nil, err
	}
	return newLab(name, log), nil
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.name }

// Dir returns the folder in which all that the lab keeps lies. Of interest to
// tests are clusters/NAME, which the control plane reads, and hosts/HOST, which
// holds what the host sees under /run/wireguard, /run/flatmesh, /var/lib/flatmesh
// and /run/secrets/flatmesh.io.
func (l *Lab) Dir() string { return labDir(l.name) }

// Up makes a lab and, with Wait, returns when all is up. If it fails or ctx ends
// it leaves nothing behind.
func Up(ctx context.Context, t Topology, o Options) (*Lab, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	t = t.complete()
	if err := errors.Join(validateName(o.Name), t.Validate()); err != nil {
		return nil, err
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	if err := checkMachine(t, bin, o.NoAgents); err != nil {
		return nil, err
	}
	l := newLab(o.Name, o.Log)
	s := &state{Version: stateVersion, Name: o.Name, Bin: bin, NoAgents: o.NoAgents, AgentFlags: o.AgentFlags}
	for _, sv := range t.Services {
		s.addService(sv)
	}
	for _, c := range t.Clusters {
		if err := s.add(c); err != nil {
			return nil, err
		}
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	err = l.build(ctx, s)
	if err == nil && o.Wait > 0 {
		patience, cancel := context.WithTimeoutCause(ctx, o.Wait, fmt.Errorf("after %v of waiting", o.Wait))
		defer cancel()
		if err = l.AwaitUp(patience); err != nil && o.Keep && ctx.Err() == nil {
			return l, err
		}
	}
	if err != nil {
		// What was made must go also when the caller is in a hurry.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		_, downErr := Down(clean, o.Name)
		return nil, errors.Join(err, downErr)
	}
	return l, nil
}

// claim takes the lab's name.
func (l *Lab) claim() error {
	left, err := namespacesOf(l.name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	err = os.Mkdir(labDir(l.name), 0o700)
	if err == nil && len(left) > 0 {
		err = errors.Join(os.ErrExist, os.Remove(labDir(l.name)))
	}
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("there is a lab %s, or what is left of one: run `lab down --name %s`, or take another --name", l.name, l.name)
	}
	return err
}

// build makes the lab that s describes and starts everything in it.
func (l *Lab) build(ctx context.Context, s *state) error {
	return l.locked(ctx, func() error {
		if err := makeMountPoints(ctx); err != nil {
			return err
		}
		if err := s.save(); err != nil {
			return err
		}
		began := time.Now()
		if err := s.buildCore(); err != nil {
			return err
		}
		var names []string
		for _, c := range s.Clusters {
			names = append(names, c.Name)
			if err := s.writeCluster(&c); err != nil {
				return err
			}
		}
		if !s.NoAgents {
			if err := s.startControlPlane(); err != nil {
				return err
			}
		}
		if err := l.raise(ctx, s, names); err != nil {
			return err
		}
		l.log("%d hosts made in %v", len(s.hosts()), time.Since(began).Round(time.Millisecond))
		return nil
	})
}

// raise builds clusters, which s and their folders hold already, and starts what
// runs in them.
func (l *Lab) raise(ctx context.Context, s *state, names []string) error {
	var nodes []node
	var gateways []gatewayHost
	for _, name := range names {
		c, err := s.cluster(name)
		if err != nil {
			return err
		}
		// Another cluster of the network may have had it built.
		if _, err := idOf(filepath.Join(netnsDir, s.router(c).Namespace)); err != nil {
			if err := s.buildRouter(c); err != nil {
				return err
			}
		}
		if err := s.routeCluster(c); err != nil {
			return err
		}
		nodes = append(nodes, c.nodes()...)
		gateways = append(gateways, c.gateways()...)
	}
	if err := l.raiseGateways(ctx, s, gateways); err != nil {
		return err
	}
	return l.raiseNodes(ctx, s, nodes)
}

// raiseNodes makes nodes with their pods and starts what runs in them.
func (l *Lab) raiseNodes(ctx context.Context, s *state, nodes []node) error {
	if err := s.buildNodes(ctx, nodes); err != nil {
		return err
	}
	tokens := map[string]bool{}
	for _, n := range nodes {
		if !s.NoAgents && !tokens[n.cluster.Name] {
			tokens[n.cluster.Name] = true
			if err := l.makeToken(ctx, s, tokenPath(s.Name, n.cluster.Name), "--cluster", n.cluster.Name); err != nil {
				return err
			}
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(makers)
	for _, n := range nodes {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return s.populate(n)
		})
	}
	return g.Wait()
}

// populate starts a node's pods and its agent.
func (s *state) populate(n node) error {
	for _, p := range n.pods() {
		if err := s.startPod(p); err != nil {
			return err
		}
	}
	if s.NoAgents {
		return nil
	}
	return s.startAgent(n)
}

// locked runs f while no other command changes the lab.
func (l *Lab) locked(ctx context.Context, f func() error) error {
	unlock, err := lockDir(ctx, labDir(l.name))
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// change runs f on the lab's state while no other command changes the lab. f
// saves what it changes.
func (l *Lab) change(ctx context.Context, f func(*state) error) error {
	// A lab that is not there must not be made by locking it.
	if _, err := loadState(l.name); err != nil {
		return err
	}
	return l.locked(ctx, func() error {
		s, err := loadState(l.name)
		if err != nil {
			return err
		}
		return f(s)
	})
}

// Hosts lists the lab's hosts with the processes in them.
func (l *Lab) Hosts() ([]Host, error) {
	s, err := loadState(l.name)
	if err != nil {
		return nil, err
	}
	return s.withProcesses(s.hosts())
}
