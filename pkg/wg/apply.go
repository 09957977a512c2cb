package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// maxPeers and maxPrefixes bound one request. wgctrl splits a larger one by
// itself, into a message a peer.
const (
	maxPeers    = 32
	maxPrefixes = 256
)

// Apply applies the operations in order. One that fails does not stop the
// others, except where the device is gone or does not answer; the errors are
// joined, and each names the device and the peer.
func (d *Device) Apply(ctx context.Context, ops []Op) error {
	var errs []error
	for len(ops) > 0 {
		n := group(ops)
		err := d.applyGroup(ctx, ops[:n])
		if err != nil {
			errs = append(errs, err)
		}
		if errors.Is(err, ErrGone) || ctx.Err() != nil {
			break
		}
		ops = ops[n:]
	}
	return errors.Join(errs...)
}

// group returns how many of the first operations make one request. Those on the
// device itself go alone, so that an error is clearly theirs.
func group(ops []Op) int {
	prefixes := 0
	for n, op := range ops {
		prefixes += len(op.AllowedIPs)
		switch {
		case n == 0 && !op.onPeer():
			return 1
		case n > 0 && (!op.onPeer() || n == maxPeers || prefixes > maxPrefixes):
			return n
		}
	}
	return len(ops)
}

func (o Op) onPeer() bool { return o.Kind >= AddPeer }

func (d *Device) applyGroup(ctx context.Context, ops []Op) error {
	err := d.configure(ctx, ops)
	switch {
	case err == nil:
		d.remember(ops)
		return nil
	case len(ops) == 1 && ops[0].Kind == SetListenPort:
		return d.portFailed(ctx, ops[0], err)
	case len(ops) == 1 || errors.Is(err, ErrGone) || ctx.Err() != nil:
		return fmt.Errorf("%s: %v: %w", d.name, ops[0], err)
	}
	// Neither kind of device says which peer it refused, or what it had done by
	// then. An operation can be applied twice, so each is tried for itself.
	var errs []error
	for _, op := range ops {
		err := d.configure(ctx, []Op{op})
		if err == nil {
			d.remember([]Op{op})
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %v: %w", d.name, op, err))
		if errors.Is(err, ErrGone) || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (d *Device) configure(ctx context.Context, ops []Op) error {
	var config wgtypes.Config
	for _, op := range ops {
		op.addTo(&config)
	}
	return d.call(ctx, func(c *wgctrl.Client) error { return c.ConfigureDevice(d.name, config) })
}

// portFailed explains why the port could not be had and gives the device its
// old one back: a userspace device has closed its sockets by then.
func (d *Device) portFailed(ctx context.Context, op Op, err error) error {
	// The errno of a userspace device reaches us as text only.
	inUse := errors.Is(err, unix.EADDRINUSE) || strings.Contains(err.Error(), fmt.Sprintf("errno=-%d", unix.EADDRINUSE))
	if !inUse {
		return fmt.Errorf("%s: %v: %w", d.name, op, err)
	}
	err = fmt.Errorf("%s: listen on UDP port %d: %w: stop what holds it (ss -ulpn 'sport = :%d' shows what does), or choose another port", d.name, op.ListenPort, unix.EADDRINUSE, op.ListenPort)
	if op.WasListenPort == 0 {
		return err
	}
	back := Op{Kind: SetListenPort, ListenPort: op.WasListenPort}
	if backErr := d.configure(ctx, []Op{back}); backErr != nil {
		return errors.Join(err, fmt.Errorf("%s: go back to UDP port %d: %w", d.name, op.WasListenPort, backErr))
	}
	return err
}

// remember keeps what EndpointSince is told from.
func (d *Device) remember(ops []Op) {
	for _, op := range ops {
		switch {
		case op.Kind == RemovePeer:
			delete(d.set, op.Key)
		case op.Endpoint.IsValid():
			d.set[op.Key] = endpointSet{op.Endpoint, d.now()}
		}
	}
}

// addTo adds the operation to a request.
func (o Op) addTo(c *wgtypes.Config) {
	switch o.Kind {
	case SetPrivateKey:
		key := wgtypes.Key(o.PrivateKey)
		c.PrivateKey = &key
	case SetFirewallMark:
		mark := int(o.FirewallMark)
		c.FirewallMark = &mark
	case SetListenPort:
		port := int(o.ListenPort)
		c.ListenPort = &port
	case AddPeer, UpdatePeer, RemovePeer:
		p := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(o.Key),
			Remove:    o.Kind == RemovePeer,
			// A peer that has gone since it was observed must not come back in part.
			UpdateOnly:                  o.Kind == UpdatePeer,
			ReplaceAllowedIPs:           o.ReplaceAllowedIPs,
			PersistentKeepaliveInterval: o.Keepalive,
		}
		if o.Endpoint.IsValid() {
			p.Endpoint = net.UDPAddrFromAddrPort(o.Endpoint)
		}
		for _, q := range o.AllowedIPs {
			p.AllowedIPs = append(p.AllowedIPs, ipNet(q))
		}
		c.Peers = append(c.Peers, p)
	}
}
