package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Gateway is the process of a gateway, for Kill and Restart.
const Gateway = "gateway"

// systemNamespace is flatmesh's own in Kubernetes.
const systemNamespace = "flatmesh-system"

// The ports of gateways.
var (
	gatewayPorts = []uint16{15443, 15444, 15445, 15446}
	standbyPorts = []uint16{15447, 15448, 15449, 15450}
)

// firstGateway is the offset of the gateways' addresses in the range of the
// nodes', beyond all of those.
const firstGateway = 0xf000

const gatewayStatePath = "/var/lib/flatmesh/gateway"

// gatewayHost is one gateway of a cluster, a host beside its nodes.
type gatewayHost struct {
	cluster *clusterState
	number  int
}

func (c *clusterState) gateways() []gatewayHost {
	gs := make([]gatewayHost, len(c.GatewayNumbers))
	for i, k := range c.GatewayNumbers {
		gs[i] = gatewayHost{c, k}
	}
	return gs
}

func (g gatewayHost) name() string { return "gw" + strconv.Itoa(g.number) }

// host is the name of the gateway's host.
func (g gatewayHost) host() string {
	return fmt.Sprintf("%s/%s/%s", KindGateway, g.cluster.Name, g.name())
}

// link is the name of the router's interface towards the gateway.
func (g gatewayHost) link() string { return fmt.Sprintf("c%dg%d", g.cluster.Index, g.number) }

func (g gatewayHost) addrs() []netip.Addr {
	var as []netip.Addr
	for _, r := range g.cluster.nodeRanges() {
		as = append(as, shift(r.Addr(), uint64(firstGateway+g.number), 0))
	}
	return as
}

func (s *state) gatewayHost(g gatewayHost) Host {
	return s.newHost(KindGateway, g.cluster.Name, g.host(), g.addrs()...)
}

// gateway finds a gateway by its host name, gateway/CLUSTER/NAME, or CLUSTER/NAME.
func (s *state) gateway(name string) (gatewayHost, error) {
	cluster, short, _ := strings.Cut(strings.TrimPrefix(name, string(KindGateway)+"/"), "/")
	c, err := s.cluster(cluster)
	if err != nil {
		return gatewayHost{}, err
	}
	for _, g := range c.gateways() {
		if g.name() == short {
			return g, nil
		}
	}
	return gatewayHost{}, fmt.Errorf("there is no gateway %s in lab %s (see `lab ls`)", name, s.Name)
}

// newGateway makes up a cluster's next gateway, or the one of that name.
func (s *state) newGateway(name string) (gatewayHost, error) {
	cluster, short, named := strings.Cut(strings.TrimPrefix(name, string(KindGateway)+"/"), "/")
	c, err := s.cluster(cluster)
	if err != nil {
		return gatewayHost{}, err
	}
	g := gatewayHost{c, 1}
	for slices.Contains(c.GatewayNumbers, g.number) {
		g.number++
	}
	if named {
		k, err := strconv.Atoi(strings.TrimPrefix(short, "gw"))
		if err != nil || k < 1 || k > maxGateways || short != "gw"+strconv.Itoa(k) {
			return gatewayHost{}, fmt.Errorf("gateway %q: a lab's gateways are called gw1, gw2, … up to gw%d", short, maxGateways)
		}
		if slices.Contains(c.GatewayNumbers, k) {
			return gatewayHost{}, fmt.Errorf("there is a gateway %s/%s already", c.Name, short)
		}
		g.number = k
	}
	return g, nil
}

// buildGateway joins a gateway's host with its cluster's router, as a node is.
func (s *state) buildGateway(g gatewayHost) error {
	router, err := openNamespace(s.router(g.cluster).Namespace)
	if err != nil {
		return err
	}
	defer router.close()
	host, err := s.makeHost(s.gatewayHost(g))
	if err != nil {
		return err
	}
	defer host.close()
	inner, outer, err := veth(host, "eth0", router, g.link(), g.cluster.MTU)
	if err != nil {
		return err
	}
	return attach(host, inner, router, outer, g.addrs(), nodeGateway)
}

// raiseGateways makes gateways and starts what runs in them.
func (l *Lab) raiseGateways(ctx context.Context, s *state, gs []gatewayHost) error {
	for _, g := range gs {
		if err := s.buildGateway(g); err != nil {
			return err
		}
		if s.NoAgents {
			continue
		}
		if err := l.makeToken(ctx, s, gatewayTokenPath(s.Name, g), "--cluster", g.cluster.Name, "--gateway", g.name()); err != nil {
			return err
		}
		if err := s.startGateway(g); err != nil {
			return err
		}
	}
	return nil
}

func gatewayTokenPath(lab string, g gatewayHost) string {
	return filepath.Join(labDir(lab), "token", g.host())
}

func (s *state) startGateway(g gatewayHost) error {
	argv := []string{"gateway", "run", "--cluster", g.cluster.Name, "--name", g.name(),
		"--control-plane", controlPlaneFor(g.addrs()), "--token-file", gatewayTokenPath(s.Name, g),
		// With what it takes clients to go elsewhere, within the grace.
		"--state-dir", gatewayStatePath, "--drain-time", "5s"}
	for _, a := range g.addrs() {
		argv = append(argv, "--address", a.String())
	}
	return s.start(g.host(), Gateway, argv...)
}

// AddGateway adds a gateway, CLUSTER/NAME or just CLUSTER for its next one, and
// returns its host name.
func (l *Lab) AddGateway(ctx context.Context, name string) (host string, err error) {
	return host, l.change(ctx, func(s *state) error {
		g, err := s.newGateway(name)
		if err != nil {
			return err
		}
		c := g.cluster
		c.GatewayNumbers = append(c.GatewayNumbers, g.number)
		slices.Sort(c.GatewayNumbers)
		t := s.topology()
		if err := errors.Join(t.Validate(), checkPrograms(t, s.Bin, s.NoAgents)); err != nil {
			return err
		}
		if err = s.save(); err == nil {
			err = l.raiseGateways(ctx, s, []gatewayHost{g})
		}
		// Only now do clients hear of it.
		if err == nil {
			err = s.writeObjects(c)
		}
		if err != nil {
			return errors.Join(err, l.undo(ctx, func(ctx context.Context) error { return l.forgetGateway(ctx, s, g) }))
		}
		host = g.host()
		return nil
	})
}

// RemoveGateway takes a gateway, gateway/CLUSTER/NAME or CLUSTER/NAME, from the
// cluster's YAML, asks its process to end, and removes its host.
func (l *Lab) RemoveGateway(ctx context.Context, name string) error {
	return l.change(ctx, func(s *state) error {
		g, err := s.gateway(name)
		if err != nil {
			return err
		}
		return l.forgetGateway(ctx, s, g)
	})
}

func (l *Lab) forgetGateway(ctx context.Context, s *state, g gatewayHost) error {
	c, h := g.cluster, s.gatewayHost(g)
	c.GatewayNumbers = slices.DeleteFunc(slices.Clone(c.GatewayNumbers), func(k int) bool { return k == g.number })
	errs := []error{s.writeObjects(c)}
	if _, err := idOf(filepath.Join(netnsDir, h.Namespace)); err == nil {
		if err := end(ctx, h, Gateway, unix.SIGTERM); !errors.Is(err, errNotRunning) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.dropGateway(ctx, g), s.save(), l.settle(ctx, s, c.Name))...)
}

// dropGateway removes a gateway from the machine.
func (s *state) dropGateway(ctx context.Context, g gatewayHost) error {
	return errors.Join(s.healAll(g.host()), dropHost(ctx, s.gatewayHost(g)),
		os.RemoveAll(hostDir(s.Name, g.host())), os.RemoveAll(gatewayTokenPath(s.Name, g)))
}
