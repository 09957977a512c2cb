package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// What a tunnel by hand has in common with flatmesh's.
const (
	handInterface = "wg0"
	handPort      = 51820
	tunnelMTU     = 1420
)

// end is one end of a tunnel that is set up by hand.
type end struct {
	node lab.Host
	pods netip.Prefix
	addr netip.Addr // inside the tunnel
	key  wgtypes.Key
}

// tunnelByHand joins the two nodes of a lab that has no agents, the way a person
// would with a few commands: a device each, one peer, a route in the main table.
// It returns the processes of the devices.
func tunnelByHand(ctx context.Context, l *lab.Lab, hosts map[string]lab.Host, device ...string) ([]int, error) {
	ends := [2]end{
		{node: hosts["east/n1"], pods: netip.MustParsePrefix("10.1.0.0/24"), addr: netip.MustParseAddr("198.19.0.1")},
		{node: hosts["west/n1"], pods: netip.MustParsePrefix("10.2.0.0/24"), addr: netip.MustParseAddr("198.19.0.2")},
	}
	for i := range ends {
		var err error
		if ends[i].key, err = wgtypes.GeneratePrivateKey(); err != nil {
			return nil, err
		}
	}
	var pids []int
	for i := range ends {
		own, far := &ends[i], &ends[1-i]
		cmd, err := l.Command(ctx, own.node.Name, device...)
		if err != nil {
			return nil, err
		}
		// A session of its own, as flatmesh's device has: the kernel shares CPUs out
		// by session first (sched_autogroup, see sched(7)).
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("start %s in %s: %w", device[0], own.node.Name, err)
		}
		go cmd.Wait() //nolint:errcheck // it ends when the lab is removed
		pids = append(pids, cmd.Process.Pid)
		socket := filepath.Join(l.Dir(), "hosts", own.node.Name, "run/wireguard", handInterface+".sock")
		if err := configure(ctx, socket, own, far); err != nil {
			return nil, fmt.Errorf("configure %s in %s: %w", device[0], own.node.Name, err)
		}
		if err := plug(own, far); err != nil {
			return nil, fmt.Errorf("set up %s in %s: %w", handInterface, own.node.Name, err)
		}
	}
	return pids, nil
}

// configure sets key, port and peer by UAPI
// (https://www.wireguard.com/xplatform/#configuration-protocol), which is what
// wgctrl and wg(8) speak; those look in one folder alone, and each host of a lab
// has its own.
func configure(ctx context.Context, socket string, own, far *end) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := dialSoon(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	farKey := far.key.PublicKey()
	if _, err := fmt.Fprintf(conn, "set=1\nprivate_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%v\nallowed_ip=%v\nallowed_ip=%v/32\n\n",
		hex.EncodeToString(own.key[:]), handPort, hex.EncodeToString(farKey[:]),
		netip.AddrPortFrom(far.node.Addresses[0], handPort), far.pods, far.addr); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(answer) != "errno=0" {
		return fmt.Errorf("the device answered %q", strings.TrimSpace(answer))
	}
	return nil
}

// dialSoon connects to a socket that a process just started is about to open.
func dialSoon(ctx context.Context, socket string) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		if perr := pause(ctx, 20*time.Millisecond); perr != nil {
			return nil, errors.Join(perr, err)
		}
	}
}

// plug gives the interface its address and the route to the far pods.
func plug(own, far *end) error {
	return withNetlink(own.node, func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(handInterface)
		if err != nil {
			return err
		}
		return errors.Join(
			nl.LinkSetMTU(link, tunnelMTU),
			nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(own.addr, 32))}),
			nl.LinkSetUp(link),
			nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(far.pods), Scope: unix.RT_SCOPE_LINK}),
		)
	})
}

// routePlainly teaches the core of a lab the pod ranges, so that pods reach each
// other with no tunnel.
func routePlainly(hosts map[string]lab.Host) error {
	return withNetlink(hosts["core"], func(nl *netlink.Handle) error {
		for cluster, pods := range map[string]string{"east": "10.1.0.0/24", "west": "10.2.0.0/24"} {
			via := hosts["router/"+cluster].Addresses[0].AsSlice()
			found, err := nl.RouteGet(via)
			if err != nil || len(found) == 0 {
				return errors.Join(fmt.Errorf("find the router of %s", cluster), err)
			}
			r := &netlink.Route{LinkIndex: found[0].LinkIndex, Dst: ipNet(netip.MustParsePrefix(pods)), Gw: via, Flags: int(netlink.FLAG_ONLINK)}
			if err := nl.RouteAdd(r); err != nil {
				return fmt.Errorf("route %s at the core: %w", pods, err)
			}
		}
		return nil
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// mtuOf returns the MTU of a host's interface.
func mtuOf(h lab.Host, name string) (mtu int, err error) {
	err = withNetlink(h, func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("interface %s of %s: %w", name, h.Name, err)
		}
		mtu = link.Attrs().MTU
		return nil
	})
	return mtu, err
}
