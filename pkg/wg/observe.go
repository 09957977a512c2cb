package wg

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Observe reads what the device holds. ErrGone says that it has to be opened
// again.
func (d *Device) Observe(ctx context.Context) (Actual, error) {
	link, err := findLink(d.name)
	if err != nil {
		return Actual{}, err
	}
	if link == nil {
		return Actual{}, fmt.Errorf("observe %s: %w: no such interface", d.name, ErrGone)
	}
	device, err := d.read(ctx)
	if err != nil {
		return Actual{}, fmt.Errorf("observe %s: %w", d.name, err)
	}
	a := Actual{
		Kind:         d.kind,
		HasKey:       device.PrivateKey != wgtypes.Key{},
		ListenPort:   uint16(device.ListenPort),
		FirewallMark: uint32(device.FirewallMark),
		MTU:          link.Attrs().MTU,
		Up:           link.Attrs().RawFlags&unix.IFF_UP != 0,
		At:           d.now(),
	}
	if a.HasKey {
		a.PublicKey = mesh.PublicKey(device.PublicKey)
	}
	for _, p := range device.Peers {
		peer := actualPeer(p)
		if s := d.set[peer.Key]; s.endpoint == peer.Endpoint {
			peer.EndpointSince = s.at
		}
		a.Peers = append(a.Peers, peer)
	}
	slices.SortFunc(a.Peers, func(p, q ActualPeer) int { return compareKey(p.Key, q.Key) })
	return a, nil
}

func actualPeer(p wgtypes.Peer) ActualPeer {
	out := ActualPeer{
		Key:           mesh.PublicKey(p.PublicKey),
		LastHandshake: p.LastHandshakeTime,
		RxBytes:       uint64(p.ReceiveBytes),
		TxBytes:       uint64(p.TransmitBytes),
		Keepalive:     p.PersistentKeepaliveInterval,
	}
	if p.Endpoint != nil {
		e := p.Endpoint.AddrPort()
		out.Endpoint = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
	}
	for _, n := range p.AllowedIPs {
		if q, ok := prefixFrom(n); ok {
			out.AllowedIPs = append(out.AllowedIPs, q)
		}
	}
	slices.SortFunc(out.AllowedIPs, mesh.ComparePrefix)
	return out
}

func prefixFrom(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), ok && a.BitLen() == bits
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
