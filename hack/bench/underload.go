package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	echo "github.com/flatmesh/flatmesh/hack/meshecho/report"
	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/agent"
	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/relay"
)

// A service in three clusters. The range of south lies in that of east, so that it
// is reached through its gateways alone, and reaches others so.
const (
	underLoadYAML = `clusters:
  - {name: east, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.101.0.0/16], nodes: 3, gateways: 2}
  - {name: west, podCIDRs: [10.2.0.0/16], serviceCIDRs: [10.102.0.0/16], nodes: 3, gateways: 2}
  - {name: south, podCIDRs: [10.1.128.0/17], serviceCIDRs: [10.103.0.0/16], nodes: 1, gateways: 2}
services:
  - {name: echo, ports: [{port: 80, name: grpc, appProtocol: grpc}]}
`
	overlapped = "south"
	loadTarget = "xds:///echo.demo:80"
)

// callingPods are where the clients are.
var callingPods = []string{"east/n1/p1", "east/n2/p1", "west/n1/p1", "south/n1/p1"}

const (
	// lookEvery is how often it is asked whether all is as it should be.
	lookEvery = 100 * time.Millisecond
	// wholeTime is how long that may take.
	wholeTime = callLimit + 30*time.Second
)

// underLoad is a lab whose service is called all the time.
type underLoad struct {
	lab     *lab.Lab
	hosts   map[string]lab.Host
	callers []*caller
	nacks   map[string]uint64
}

// pair is two nodes with a tunnel between them.
type pair struct{ a, b mesh.NodeID }

func (p pair) String() string { return p.a.String() + " – " + p.b.String() }

// underLoad makes the lab, and returns once all clients reach all pods.
func (b *bench) underLoad(ctx context.Context, suffix string, flags ...string) (*underLoad, func(), error) {
	l, down, err := b.up(ctx, suffix, underLoadYAML, lab.Options{Wait: 2 * time.Minute, AgentFlags: flags})
	if err != nil {
		return nil, nil, err
	}
	u := &underLoad{lab: l, nacks: map[string]uint64{}}
	end := func() {
		for _, c := range u.callers {
			c.stop()
		}
		down()
	}
	if err := u.start(ctx); err != nil {
		end()
		return nil, nil, err
	}
	return u, end, nil
}

func (u *underLoad) start(ctx context.Context) (err error) {
	if u.hosts, err = hostsOf(u.lab); err != nil {
		return err
	}
	for _, h := range callingPods {
		// Certificates and the pods' servers come a moment after the tunnels.
		if err := until(ctx, lookEvery, wholeTime, "answers to "+h, func() (bool, error) {
			_, err := u.lab.Exec(ctx, h, "meshecho", "call", loadTarget, "--count", "60")
			return err == nil, err
		}); err != nil {
			return err
		}
		c, err := startCaller(ctx, u.lab, h, loadTarget)
		if err != nil {
			return err
		}
		u.callers = append(u.callers, c)
	}
	from, err := u.whole(ctx)
	for _, c := range u.callers {
		c.take(from)
	}
	return err
}

// whole returns when the mesh and what the clients get are as they should be, and
// since when: no call of before is under way.
func (u *underLoad) whole(ctx context.Context) (from time.Time, err error) {
	if err := until(ctx, lookEvery, wholeTime, "the mesh to be whole", func() (bool, error) {
		err := u.meshWhole(ctx)
		return err == nil, err
	}); err != nil {
		return from, err
	}
	for _, c := range u.callers {
		from = time.Now()
		if err := until(ctx, lookEvery, wholeTime, c.host+" to reach all pods as it should", func() (bool, error) {
			if err := c.running(); err != nil {
				return false, err
			}
			err := u.servedWell(c, from)
			if errors.Is(err, errOldWay) {
				from = time.Now()
			}
			return err == nil, err
		}); err != nil {
			return from, err
		}
	}
	from = time.Now()
	for _, c := range u.callers {
		if err := until(ctx, lookEvery, wholeTime, "the calls of "+c.host+" to end", func() (bool, error) { return c.ended(from), nil }); err != nil {
			return from, err
		}
	}
	return from, nil
}

// meshWhole returns what of the mesh is not as it should be.
func (u *underLoad) meshWhole(ctx context.Context) error {
	s, err := controlPlaneStatus(ctx, u.lab)
	if err != nil {
		return err
	}
	if s.Nodes.Connected != s.Nodes.Total || s.Tunnels.Up != s.Tunnels.Expected {
		return fmt.Errorf("control plane: %+v, %+v", s.Nodes, s.Tunnels)
	}
	for _, c := range s.Clusters {
		for _, g := range c.Gateways {
			if g.Lost {
				return fmt.Errorf("control plane: gateway %v of %s is lost", g.Addr, c.Name)
			}
		}
	}
	for _, n := range s.NodeList {
		a, err := agentStatus(ctx, u.lab, n.Node)
		if err != nil {
			return err
		}
		if !a.Healthy() || !a.ControlPlane.Connected || len(a.Relay.Demoted) > 0 {
			return fmt.Errorf("%v: connected %v, demoted %v, problems %v", n.Node, a.ControlPlane.Connected, a.Relay.Demoted, a.Problems)
		}
		if have, want := streams(a), u.callersOn(n.Node); have < want {
			return fmt.Errorf("%v: %d of %d clients have their stream", n.Node, have, want)
		}
		for _, k := range a.Relay.Kinds {
			if k.Clients > 0 && k.Upstream.State != relay.UpstreamConnected {
				return fmt.Errorf("%v: upstream of %v is %v: %s", n.Node, k.Kind, k.Upstream.State, k.Upstream.Error)
			}
			for _, t := range k.Types {
				u.nacks[n.Node.String()] = max(u.nacks[n.Node.String()], t.NACKs)
			}
		}
	}
	return nil
}

// streams counts the clients that a node's agent serves now.
func streams(s agent.Status) int {
	n := 0
	for _, k := range s.Relay.Kinds {
		n += k.Clients
	}
	return n
}

// callersOn counts the clients on a node.
func (u *underLoad) callersOn(node mesh.NodeID) int {
	n := 0
	for _, c := range u.callers {
		if strings.HasPrefix(c.host, node.String()+"/") {
			n++
		}
	}
	return n
}

// errOldWay: a call reached a pod on another way than it should.
var errOldWay = errors.New("on its old way still")

// servedWell returns what is missing in the calls of a client that began after
// from: each pod on its way, and each gateway of clusters that have no tunnels.
func (u *underLoad) servedWell(c *caller, from time.Time) error {
	ways, peers := map[string]echo.Via{}, map[netip.Addr]bool{}
	for _, o := range c.since(from) {
		if !o.OK {
			continue
		}
		if want := u.way(c.host, o.Pod); o.Via != want {
			return fmt.Errorf("a call to %s went %s: %w", o.Pod, o.Via, errOldWay)
		}
		ways[o.Pod], peers[peerOfCall(o)] = o.Via, true
	}
	for _, h := range u.hosts {
		switch h.Kind {
		case lab.KindPod:
			if _, ok := ways[h.Name]; !ok {
				return fmt.Errorf("no call has reached %s", h.Name)
			}
		case lab.KindGateway:
			if apart(c.host, h.Cluster) && !peers[h.Addresses[0]] {
				return fmt.Errorf("no call has passed %s", h.Name)
			}
		}
	}
	return nil
}

// way is how a client should reach a pod.
func (u *underLoad) way(from, pod string) echo.Via {
	if apart(from, u.hosts[pod].Cluster) {
		return echo.Gateway
	}
	return echo.Direct
}

// apart reports whether there are no tunnels between a pod and a cluster.
func apart(pod, cluster string) bool {
	own, _, _ := strings.Cut(pod, "/")
	return own != cluster && (own == overlapped || cluster == overlapped)
}

// named lists the hosts of a kind.
func (u *underLoad) named(k lab.Kind) []string {
	var out []string
	for _, h := range u.hosts {
		if h.Kind == k {
			out = append(out, h.Name)
		}
	}
	slices.Sort(out)
	return out
}

// pairs lists the tunnels that clients use.
func (u *underLoad) pairs() []pair {
	var out []pair
	nodes := u.named(lab.KindNode)
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			p := pair{nodeID(a), nodeID(b)}
			if p.a.Cluster == p.b.Cluster || p.a.Cluster == overlapped || p.b.Cluster == overlapped {
				continue
			}
			if len(u.over(p)) > 0 {
				out = append(out, p)
			}
		}
	}
	return out
}

func nodeID(name string) mesh.NodeID {
	cluster, node, _ := strings.Cut(name, "/")
	return mesh.NodeID{Cluster: cluster, Name: node}
}

// user is a client whose calls to a pod go over a tunnel.
type user struct {
	*caller
	node, far mesh.NodeID
	pod       string
	addr      netip.Addr
}

// over lists the clients that use a tunnel.
func (u *underLoad) over(p pair) []user {
	var out []user
	for _, way := range []pair{p, {p.b, p.a}} {
		for _, c := range u.callers {
			if strings.HasPrefix(c.host, way.a.String()+"/") {
				pod := way.b.String() + "/p1"
				out = append(out, user{caller: c, node: way.a, far: way.b, pod: pod, addr: u.hosts[pod].Addresses[0]})
			}
		}
	}
	return out
}
