package wg

import (
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Diff returns the operations that make a device that holds actual hold
// desired, in the order in which they are to be applied. Desired must be valid.
//
// What is equal is not touched: setting a key or a port again would reset
// sessions or sockets. Peers are added and updated before others are removed.
//
// WireGuard lets a prefix belong to one peer, and gives it to whoever asks
// last. Diff builds on that: a prefix that moves is taken over by its new peer,
// with no moment in between, and the old peer is not touched for it. Only a
// prefix that nobody takes over makes a peer's set be replaced, because there
// is no other way to be rid of it, and replacing drops packets to the rest of
// the set for an instant.
func Diff(actual Actual, desired Desired) []Op {
	var ops []Op
	if public := desired.PrivateKey.PublicKey(); !actual.HasKey || actual.PublicKey != public {
		ops = append(ops, Op{Kind: SetPrivateKey, PrivateKey: desired.PrivateKey})
	}
	// Before the port and the peers, so that no packet leaves unmarked.
	if actual.FirewallMark != desired.FirewallMark {
		ops = append(ops, Op{Kind: SetFirewallMark, FirewallMark: desired.FirewallMark})
	}
	if actual.ListenPort != desired.ListenPort {
		ops = append(ops, Op{Kind: SetListenPort, ListenPort: desired.ListenPort, WasListenPort: actual.ListenPort})
	}

	owner := map[netip.Prefix]mesh.PublicKey{}
	wanted := map[mesh.PublicKey]bool{}
	for _, p := range desired.Peers {
		wanted[p.Key] = true
		for _, q := range p.AllowedIPs {
			owner[q] = p.Key
		}
	}
	for _, p := range desired.Peers {
		have, ok := actual.Peer(p.Key)
		if !ok {
			ops = append(ops, addPeer(p))
			continue
		}
		if op, ok := updatePeer(p, *have, actual.At, owner); ok {
			ops = append(ops, op)
		}
	}
	for _, p := range actual.Peers {
		if !wanted[p.Key] {
			ops = append(ops, Op{Kind: RemovePeer, Key: p.Key})
		}
	}
	return ops
}

func addPeer(p Peer) Op {
	op := Op{
		Kind: AddPeer, Name: p.Name, Key: p.Key,
		AllowedIPs: p.AllowedIPs, ReplaceAllowedIPs: true, Keepalive: &p.Keepalive,
	}
	if len(p.Candidates) > 0 {
		op.Endpoint = p.Candidates[0]
	}
	return op
}

// updatePeer returns the operation that makes the peer as wanted, and whether
// one is needed.
func updatePeer(p Peer, have ActualPeer, now time.Time, owner map[netip.Prefix]mesh.PublicKey) (Op, bool) {
	op := Op{Kind: UpdatePeer, Name: p.Name, Key: p.Key}
	needed := false
	if e := chooseEndpoint(p, have, now); e != have.Endpoint {
		op.Endpoint, needed = e, true
	}
	if p.Keepalive != have.Keepalive {
		op.Keepalive, needed = &p.Keepalive, true
	}
	left := slices.ContainsFunc(have.AllowedIPs, func(q netip.Prefix) bool {
		_, owned := owner[q]
		return !owned // its next owner takes it, be it this peer or another
	})
	if left {
		op.AllowedIPs, op.ReplaceAllowedIPs = p.AllowedIPs, true
		return op, true
	}
	for _, q := range p.AllowedIPs {
		if !slices.Contains(have.AllowedIPs, q) {
			op.AllowedIPs, needed = append(op.AllowedIPs, q), true
		}
	}
	return op, needed
}
