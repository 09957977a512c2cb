package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// makers is how many namespaces are made at once: most of the time goes into the
// kernel, some of it under a lock.
const makers = 4

// coreMTU lets nothing but the clusters' own links limit the size of packets.
const coreMTU = maxMTU

// gateway returns the gateway of nodes, or what stands for it in IPv6.
func gateway(a netip.Addr, v4 netip.Addr) netip.Addr {
	if a.Is4() {
		return v4
	}
	return gateway6
}

// families leaves out IPv6 addresses on a machine without IPv6.
func families(as []netip.Addr) []netip.Addr {
	if hasIPv6() {
		return as
	}
	return as[:1]
}

// buildCore makes the core and the control plane's host.
func (s *state) buildCore() error {
	core, err := s.makeHost(s.core())
	if err != nil {
		return err
	}
	defer core.close()
	cp, err := s.makeHost(s.controlPlane())
	if err != nil {
		return err
	}
	defer cp.close()
	lo, err := core.up("lo")
	if err != nil {
		return err
	}
	if err := core.addr(lo, mesh.HostPrefix(coreGateway)); err != nil {
		return err
	}
	inner, outer, err := veth(cp, "eth0", core, "controlplane", coreMTU)
	if err != nil {
		return err
	}
	return attach(cp, inner, core, outer, families(controlPlaneAddrs), coreGateway)
}

// attach gives a host its addresses on link inner and its default routes, and
// its router, at the other end outer, the routes to it.
func attach(host *namespace, inner netlink.Link, router *namespace, outer netlink.Link, addrs []netip.Addr, gw4 netip.Addr) error {
	for _, a := range addrs {
		p := mesh.HostPrefix(a)
		if err := host.addr(inner, p); err != nil {
			return err
		}
		if a.Is6() {
			if err := router.addr(outer, netip.PrefixFrom(gateway6, 64)); err != nil {
				return err
			}
		}
		if err := host.route(defaultOf(a), gateway(a, gw4), inner); err != nil {
			return err
		}
		if err := router.route(p, netip.Addr{}, outer); err != nil {
			return err
		}
	}
	return nil
}

// buildRouter makes the router of c's network and joins it with the core.
func (s *state) buildRouter(c *clusterState) error {
	core, err := openNamespace(s.core().Namespace)
	if err != nil {
		return err
	}
	defer core.close()
	router, err := s.makeHost(s.router(c))
	if err != nil {
		return err
	}
	defer router.close()
	lo, err := router.up("lo")
	if err != nil {
		return err
	}
	if err := router.addr(lo, mesh.HostPrefix(nodeGateway)); err != nil {
		return err
	}
	up, down, err := veth(router, "core", core, s.coreLink(c), coreMTU)
	if err != nil {
		return err
	}
	for _, a := range families(routerAddrs(c.Router)) {
		p := mesh.HostPrefix(a)
		via := coreGateway
		if a.Is6() {
			via = gateway6
			if err := router.addr(up, netip.PrefixFrom(router6, 64)); err != nil {
				return err
			}
			if err := core.addr(down, netip.PrefixFrom(gateway6, 64)); err != nil {
				return err
			}
		}
		// On the link itself, so that masquerade takes this address.
		if err := router.addr(up, p); err != nil {
			return err
		}
		if err := router.route(defaultOf(a), via, up); err != nil {
			return err
		}
		if err := core.route(p, netip.Addr{}, down); err != nil {
			return err
		}
	}
	if c.NAT {
		return masquerade(router)
	}
	return nil
}

func (s *state) coreLink(c *clusterState) string { return fmt.Sprintf("r%d", c.Router) }

// routeCluster makes the cluster's nodes known to the core, unless they are
// behind a NAT. Pod ranges the core never learns.
func (s *state) routeCluster(c *clusterState) error {
	core, err := openNamespace(s.core().Namespace)
	if err != nil {
		return err
	}
	defer core.close()
	router, err := openNamespace(s.router(c).Namespace)
	if err != nil {
		return err
	}
	defer router.close()
	down, err := core.up(s.coreLink(c))
	if err != nil {
		return err
	}
	for _, r := range c.nodeRanges() {
		if err := router.unreachable(r); err != nil {
			return err
		}
		if c.NAT {
			continue
		}
		via := routerAddrs(c.Router)[0]
		if r.Addr().Is6() {
			via = router6
		}
		if err := core.route(r, via, down); err != nil {
			return err
		}
	}
	return nil
}

// buildNode makes a node and its pods, and the routes to them in its network.
func (s *state) buildNode(n node) error {
	router, err := openNamespace(s.router(n.cluster).Namespace)
	if err != nil {
		return err
	}
	defer router.close()
	host, err := s.makeHost(s.nodeHosts(n)[0])
	if err != nil {
		return err
	}
	defer host.close()
	inner, outer, err := veth(host, "eth0", router, n.link(), n.cluster.MTU)
	if err != nil {
		return err
	}
	if err := attach(host, inner, router, outer, n.addrs(), nodeGateway); err != nil {
		return err
	}
	for _, p := range n.prefixes() {
		if err := router.route(p, n.gatewayFor(p), outer); err != nil {
			return err
		}
	}
	lo, err := host.up("lo")
	if err != nil {
		return err
	}
	if err := host.addr(lo, mesh.HostPrefix(podGateway)); err != nil {
		return err
	}
	if err := masqueradePods(host, n.prefixes()); err != nil {
		return err
	}
	for i, p := range n.pods() {
		if err := s.buildPod(host, p, s.nodeHosts(n)[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) buildPod(host *namespace, p pod, h Host) error {
	ns, err := s.makeHost(h)
	if err != nil {
		return err
	}
	defer ns.close()
	inner, outer, err := veth(ns, "eth0", host, p.link(), p.node.cluster.MTU)
	if err != nil {
		return err
	}
	return attach(ns, inner, host, outer, p.addrs(), podGateway)
}

// buildNodes makes many nodes, several at a time.
func (s *state) buildNodes(ctx context.Context, nodes []node) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(makers)
	for _, n := range nodes {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return s.buildNode(n)
		})
	}
	return g.Wait()
}
