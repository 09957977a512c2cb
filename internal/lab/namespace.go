package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where named network namespaces lie, see ip-netns(8).
const netnsDir = "/run/netns"

// namespace is an open network namespace.
type namespace struct {
	name string
	ns   netns.NsHandle
	// nl speaks rtnetlink in the namespace, from any goroutine.
	nl *netlink.Handle
}

// sysctls of every host. rp_filter is inherited from the machine and would drop
// what flatmesh routes on purpose; duplicate address detection would keep every
// new IPv6 address unusable for a second.
var (
	sysctls = map[string]string{
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
	}
	sysctls6 = map[string]string{
		"net/ipv6/conf/all/disable_ipv6":     "0",
		"net/ipv6/conf/default/disable_ipv6": "0",
		"net/ipv6/conf/default/accept_dad":   "0",
		"net/ipv6/conf/default/accept_ra":    "0",
	}
	forwarding  = map[string]string{"net/ipv4/ip_forward": "1"}
	forwarding6 = map[string]string{"net/ipv6/conf/all/forwarding": "1"}
)

// makeHost makes a host: its folders, and its network namespace with lo up.
func (s *state) makeHost(h Host) (*namespace, error) {
	if err := s.makeFolders(h); err != nil {
		return nil, err
	}
	settings := []map[string]string{sysctls}
	if hasIPv6() {
		settings = append(settings, sysctls6)
	}
	if h.Kind == KindNode || h.Kind == KindRouter || h.Kind == KindCore {
		settings = append(settings, forwarding)
		if hasIPv6() {
			settings = append(settings, forwarding6)
		}
	}
	var ns netns.NsHandle
	err := onThread(func() (err error) {
		if ns, err = netns.NewNamed(h.Namespace); err != nil {
			return fmt.Errorf("make network namespace %s: %w (the kernel needs CONFIG_NET_NS, and the lab CAP_SYS_ADMIN)", h.Namespace, err)
		}
		for _, group := range settings {
			for key, value := range group {
				if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
					return fmt.Errorf("set %s in %s: %w", key, h.Namespace, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	n, err := handleOf(h.Namespace, ns)
	if err != nil {
		return nil, err
	}
	if _, err := n.up("lo"); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func openNamespace(name string) (*namespace, error) {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	return handleOf(name, ns)
}

func handleOf(name string, ns netns.NsHandle) (*namespace, error) {
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", name, err)
	}
	return &namespace{name, ns, nl}, nil
}

func (n *namespace) close() {
	n.nl.Close()
	n.ns.Close()
}

// onThread runs f on a thread whose network namespace f may change.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace
		// that f leaves it in with it.
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// deleteNamespace removes the name; the namespace goes with its last process.
// One that is not there is no error.
func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	// EINVAL: a file that never became a mount, left by a killed command.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// namespacesOf lists the names of a lab's namespaces that the machine has.
func namespacesOf(lab string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), namespaces(lab)) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// veth joins interface an of a with interface bn of b and sets both up.
func veth(a *namespace, an string, b *namespace, bn string, mtu int) (la, lb netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = an, mtu, netlink.NsFd(a.ns)
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU, pair.PeerNamespace = bn, uint32(mtu), netlink.NsFd(b.ns)
	if err := a.nl.LinkAdd(pair); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = errors.New("the kernel has no veth devices (try: modprobe veth)")
		}
		return nil, nil, fmt.Errorf("join %s with %s: %w", a.name, b.name, err)
	}
	if la, err = a.up(an); err != nil {
		return nil, nil, err
	}
	lb, err = b.up(bn)
	return la, lb, err
}

func (n *namespace) up(link string) (netlink.Link, error) {
	l, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetUp(l)
	}
	if err != nil {
		return nil, fmt.Errorf("set %s up in %s: %w", link, n.name, err)
	}
	return l, nil
}

func (n *namespace) addr(l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if p.Addr().IsLinkLocalUnicast() {
		// Else a gateway's address on lo would become the source of packets.
		a.Scope = unix.RT_SCOPE_LINK
	}
	if err := n.nl.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add %v to %s in %s: %w", p, l.Attrs().Name, n.name, err)
	}
	return nil
}

// route adds a route to p through l, and through the gateway via where that is
// valid. The gateway needs no subnet.
func (n *namespace) route(p netip.Prefix, via netip.Addr, l netlink.Link) error {
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(p)}
	if via.IsValid() {
		r.Gw, r.Flags = via.AsSlice(), int(netlink.FLAG_ONLINK)
	} else if p.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return n.addRoute(r)
}

// unreachable answers for what of p has no route of its own, so that it does not
// circle between two routers.
func (n *namespace) unreachable(p netip.Prefix) error {
	return n.addRoute(&netlink.Route{Dst: ipNet(p), Type: unix.RTN_UNREACHABLE, Priority: 4096})
}

func (n *namespace) addRoute(r *netlink.Route) error {
	if err := n.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("add a route to %v in %s: %w", r.Dst, n.name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// defaultOf returns 0.0.0.0/0 or ::/0.
func defaultOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// dropLinks deletes all interfaces, and with them their far ends.
func (n *namespace) dropLinks() error {
	links, err := n.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list the links of %s: %w", n.name, err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "veth" {
			continue
		}
		if err := n.nl.LinkDel(l); err != nil {
			errs = append(errs, fmt.Errorf("delete %s in %s: %w", l.Attrs().Name, n.name, err))
		}
	}
	return errors.Join(errs...)
}

// dropRoutes deletes the routes to exactly p.
func (n *namespace) dropRoutes(p netip.Prefix) error {
	routes, err := n.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Dst: ipNet(p)}, netlink.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("list the routes of %s: %w", n.name, err)
	}
	var errs []error
	for _, r := range routes {
		if err := n.nl.RouteDel(&r); err != nil {
			errs = append(errs, fmt.Errorf("delete the route to %v in %s: %w", p, n.name, err))
		}
	}
	return errors.Join(errs...)
}
