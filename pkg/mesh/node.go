package mesh

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// NodeID names a Kubernetes node of one Cluster. Its text form is
// "cluster/name"; neither part holds a slash.
type NodeID struct {
	Cluster string
	Name    string
}

// ParseNodeID reads the text form, "cluster/name".
func ParseNodeID(s string) (NodeID, error) {
	cluster, name, ok := strings.Cut(s, "/")
	if !ok {
		return NodeID{}, fmt.Errorf("node %q: want CLUSTER/NODE", s)
	}
	id := NodeID{Cluster: cluster, Name: name}
	if err := id.Validate(); err != nil {
		return NodeID{}, err
	}
	return id, nil
}

// Validate reports whether both parts are names that Kubernetes would accept:
// the cluster a DNS label (RFC 1123), the node a DNS subdomain.
func (id NodeID) Validate() error {
	if err := ValidateClusterName(id.Cluster); err != nil {
		return err
	}
	return ValidateNodeName(id.Name)
}

// String returns "cluster/name".
func (id NodeID) String() string { return id.Cluster + "/" + id.Name }

// Compare orders by cluster, then by name.
func (id NodeID) Compare(o NodeID) int {
	return cmp.Or(cmp.Compare(id.Cluster, o.Cluster), cmp.Compare(id.Name, o.Name))
}

// MarshalText makes a NodeID usable as a JSON value and key.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *NodeID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseNodeID(string(b))
	return err
}

// PublicKey is a WireGuard public key (Curve25519, RFC 7748). The zero value
// stands for a node on which no agent has registered.
type PublicKey [32]byte

// ParsePublicKey reads base64 as wg(8) prints it.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key %q: %w", s, err)
	}
	return PublicKeyFrom(b)
}

// PublicKeyFrom reads 32 raw bytes and refuses the zero key.
func PublicKeyFrom(b []byte) (PublicKey, error) {
	var k PublicKey
	if len(b) != len(k) {
		return PublicKey{}, fmt.Errorf("public key has %d bytes, want %d", len(b), len(k))
	}
	copy(k[:], b)
	if k.IsZero() {
		return PublicKey{}, errors.New("public key is all zeros")
	}
	return k, nil
}

// IsZero reports whether no key is set.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// String returns base64 as wg(8) prints it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText writes base64; the zero key becomes the empty string.
func (k PublicKey) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return nil, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (k *PublicKey) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*k = PublicKey{}
		return nil
	}
	*k, err = ParsePublicKey(string(b))
	return err
}

// Node is a Kubernetes node together with what its agent registered.
type Node struct {
	ID NodeID
	// PodCIDRs are the prefixes that the cluster says its pods have, as given.
	PodCIDRs []netip.Prefix
	// Addresses are the node's own, internal before external.
	Addresses []netip.Addr
	// Region and Zone are the node's topology labels; empty where it has none.
	Region, Zone string

	// Prefixes are those of PodCIDRs that the node may hold: inside the declared
	// range and held by no earlier node of the cluster. Refused says why not.
	Prefixes []netip.Prefix
	Refused  []RefusedPrefix

	// Key is zero until an agent has registered.
	Key PublicKey
	// Endpoints are where the node's WireGuard may be reached, best first.
	Endpoints []netip.AddrPort
	// TunnelAddrs holds at most one address of each family.
	TunnelAddrs []netip.Addr
}

// RefusedPrefix is a node's prefix that never reaches a device, and why.
type RefusedPrefix struct {
	Prefix netip.Prefix `json:"prefix"`
	Reason Reason       `json:"reason"`
	// Detail names the range or the node that stands in the way.
	Detail string `json:"detail"`
}

// Registered reports whether an agent has registered on the node.
func (n *Node) Registered() bool { return !n.Key.IsZero() }
