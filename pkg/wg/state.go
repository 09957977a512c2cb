package wg

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Kind says what carries a device's packets.
type Kind uint8

// The kinds of device.
const (
	Kernel Kind = iota + 1
	Userspace
)

// String returns "kernel" or "userspace".
func (k Kind) String() string {
	switch k {
	case Kernel:
		return "kernel"
	case Userspace:
		return "userspace"
	default:
		return "unknown"
	}
}

// MarshalText writes the name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Desired is what the device should hold. Validate says what is asked of it.
type Desired struct {
	PrivateKey PrivateKey
	// ListenPort is the UDP port of both families.
	ListenPort uint16
	// FirewallMark is set on every packet that the device sends on the underlay;
	// 0 is none.
	FirewallMark uint32
	// Peers is sorted by Key and has no key twice.
	Peers []Peer
}

// Peer is what the device should hold of one peer.
type Peer struct {
	// Name is for people: the peer's node.
	Name string
	Key  mesh.PublicKey
	// Candidates are where the peer may be reached, best first. With none, the
	// peer is left to come to us.
	Candidates []netip.AddrPort
	// AllowedIPs is sorted with mesh.ComparePrefix, and overlaps no other peer's.
	AllowedIPs []netip.Prefix
	// Keepalive is the persistent keepalive in whole seconds; 0 is off.
	Keepalive time.Duration
	// Rotate says that the endpoint in use was tried and does not work, whatever
	// the handshake's age says.
	Rotate bool
}

// Actual is what a device holds, as it was observed.
type Actual struct {
	Kind Kind
	// PublicKey is zero while HasKey is false.
	PublicKey mesh.PublicKey
	HasKey    bool
	// ListenPort is 0 while the device has no socket.
	ListenPort   uint16
	FirewallMark uint32
	// MTU is the link's, in bytes; Up whether the link is administratively up.
	MTU int
	Up  bool
	// Peers is sorted by Key.
	Peers []ActualPeer
	// At is when it was observed.
	At time.Time
}

// ActualPeer is what a device holds of one peer.
type ActualPeer struct {
	Key mesh.PublicKey
	// Endpoint is where its packets go. It is invalid while none is known, and
	// WireGuard changes it by itself to where the last authentic packet came from.
	Endpoint netip.AddrPort
	// EndpointSince is when this Device set Endpoint; zero where another process
	// did, or the peer moved there by itself.
	EndpointSince time.Time
	// LastHandshake is zero where there was none.
	LastHandshake time.Time
	// RxBytes and TxBytes count since the peer was added.
	RxBytes, TxBytes uint64
	// AllowedIPs is sorted with mesh.ComparePrefix.
	AllowedIPs []netip.Prefix
	Keepalive  time.Duration
}

// Peer finds a peer by its key.
func (a *Actual) Peer(key mesh.PublicKey) (*ActualPeer, bool) {
	i, ok := slices.BinarySearchFunc(a.Peers, key, func(p ActualPeer, k mesh.PublicKey) int { return compareKey(p.Key, k) })
	if !ok {
		return nil, false
	}
	return &a.Peers[i], true
}

func compareKey(a, b mesh.PublicKey) int { return bytes.Compare(a[:], b[:]) }
