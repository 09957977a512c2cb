package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/nftables"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// The ways from clients to pods, in the order of the table's columns.
const (
	byItself  = "direct"
	byGateway = "flatmesh"
	byHAProxy = "HAProxy"
)

// Ports of each proxy on the node, as many as a gateway has.
var proxyPorts = map[string][]uint16{byGateway: {15443, 15444, 15445, 15446}, byHAProxy: {16443, 16444, 16445, 16446}}

// proxied is one way from the clients to the pods.
type proxied struct {
	name string
	pids []int // of the proxy
	// bulk and brief are where to connect to for the two services.
	bulk, brief []string
}

// proxySet is all ways, and who takes them.
type proxySet struct {
	lab      *lab.Lab
	children []*child
	load     *child
	ways     []proxied
	// notes say what was left out, and why.
	notes []string
}

func (s *proxySet) end() {
	for _, c := range s.children {
		c.end()
	}
}

// start starts a program in a host of the lab.
func (s *proxySet) start(ctx context.Context, h lab.Host, argv ...string) (*child, error) {
	cmd, err := s.lab.Command(ctx, h.Name, argv...)
	if err != nil {
		return nil, err
	}
	c, err := startCommand(argv[0], cmd)
	if err != nil {
		return nil, err
	}
	s.children = append(s.children, c)
	return c, nil
}

// proxies starts everything and waits until all ways lead to the pods.
func (b *bench) proxies(ctx context.Context, l *lab.Lab) (s *proxySet, err error) {
	s = &proxySet{lab: l}
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	hosts, err := hostsOf(l)
	if err != nil {
		return nil, err
	}
	node, client, pods := hosts["west/n1"], hosts["west/n1/p1"], hosts["west/n1/p2"]
	for _, h := range []lab.Host{node, client, pods} {
		if err := manyConnections(h); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	ip := pods.Addresses[0]
	if _, err := s.start(ctx, pods, b.self, "tls-pods", "--address", ip.String()); err != nil {
		return nil, err
	}
	if s.load, err = s.start(ctx, client, b.self, "tls-load"); err != nil {
		return nil, err
	}
	s.ways = append(s.ways, proxied{name: byItself, bulk: addresses(ip, bulkPorts), brief: addresses(ip, briefPorts)})
	argv := []string{b.self, "fixed-gateway", "--pods", ip.String()}
	for _, a := range addresses(node.Addresses[0], proxyPorts[byGateway]) {
		argv = append(argv, "--listen", a)
	}
	if err := s.proxy(ctx, node, byGateway, argv...); err != nil {
		return nil, err
	}
	if err := s.haproxy(ctx, node, ip); err != nil {
		return nil, err
	}
	for _, w := range s.ways {
		for _, a := range append(w.bulk, w.brief...) {
			if err := listens(ctx, client, a); err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	return s, nil
}

// proxy starts a proxy on the node.
func (s *proxySet) proxy(ctx context.Context, node lab.Host, name string, argv ...string) error {
	c, err := s.start(ctx, node, argv...)
	if err != nil {
		return err
	}
	at := addresses(node.Addresses[0], proxyPorts[name])
	s.ways = append(s.ways, proxied{name: name, pids: []int{c.cmd.Process.Pid}, bulk: at, brief: at})
	return nil
}

// haproxy starts HAProxy where the machine has it.
func (s *proxySet) haproxy(ctx context.Context, node lab.Host, pods netip.Addr) error {
	version, err := haproxyVersion(ctx)
	if err != nil {
		s.notes = append(s.notes, fmt.Sprintf("HAProxy was not measured: %v.", err))
		return nil
	}
	s.notes = append(s.notes, version+".")
	file, err := writeHAProxyConfig(s.lab.Dir(), runtime.GOMAXPROCS(0), addresses(node.Addresses[0], proxyPorts[byHAProxy]), pods)
	if err != nil {
		return err
	}
	return s.proxy(ctx, node, byHAProxy, "haproxy", "-q", "-db", "-f", file)
}

func addresses(ip netip.Addr, ports []uint16) []string {
	var out []string
	for _, p := range ports {
		out = append(out, netip.AddrPortFrom(ip, p).String())
	}
	return out
}

// manyConnections lets a host make and end thousands of connections a second:
// those that have ended hold their ports for a minute, and two in the tables of a
// host that translates addresses, which is not needed here.
func manyConnections(h lab.Host) error {
	return inside(h, func() error {
		filter, err := nftables.New()
		if err != nil {
			return err
		}
		filter.FlushRuleset()
		errs := []error{filter.Flush()}
		for name, value := range map[string]string{"ip_local_port_range": "1024 65535", "tcp_tw_reuse": "1"} {
			errs = append(errs, os.WriteFile(filepath.Join("/proc/sys/net/ipv4", name), []byte(value), 0))
		}
		return errors.Join(errs...)
	})
}

// listens waits until somebody listens on an address.
func listens(ctx context.Context, from lab.Host, address string) error {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return err
	}
	return until(ctx, 50*time.Millisecond, 10*time.Second, "a listener on "+address, func() (bool, error) {
		c, err := dial(ctx, from, addr)
		if err != nil {
			return false, err
		}
		return true, c.Close()
	})
}
