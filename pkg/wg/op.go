package wg

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// OpKind says what an Op does.
type OpKind uint8

// The kinds of operation.
const (
	SetPrivateKey OpKind = iota + 1
	SetFirewallMark
	SetListenPort
	AddPeer
	UpdatePeer
	RemovePeer
)

// Op is one change to a device. It can be applied twice with the same outcome.
type Op struct {
	Kind OpKind

	PrivateKey   PrivateKey // SetPrivateKey
	FirewallMark uint32     // SetFirewallMark
	// ListenPort is for SetListenPort; WasListenPort is what the device goes back
	// to when the port cannot be had.
	ListenPort, WasListenPort uint16

	// Name and Key name the peer of the operations on one. Name may be empty.
	Name string
	Key  mesh.PublicKey
	// Endpoint is set where it is valid.
	Endpoint netip.AddrPort
	// AllowedIPs are added to what the peer has, and taken from whoever has them.
	// With ReplaceAllowedIPs they are all that it has afterwards.
	AllowedIPs        []netip.Prefix
	ReplaceAllowedIPs bool
	// Keepalive is set where it is not nil.
	Keepalive *time.Duration
}

// String says what the operation does, for logs and dry runs. It shows public
// keys, never a private one.
func (o Op) String() string {
	switch o.Kind {
	case SetPrivateKey:
		return fmt.Sprintf("set private key (public key %v)", o.PrivateKey.PublicKey())
	case SetFirewallMark:
		return fmt.Sprintf("set firewall mark %#x", o.FirewallMark)
	case SetListenPort:
		return fmt.Sprintf("set listen port %d (was %d)", o.ListenPort, o.WasListenPort)
	case AddPeer:
		return "add " + o.peer() + o.changes()
	case UpdatePeer:
		return "update " + o.peer() + o.changes()
	case RemovePeer:
		return "remove " + o.peer()
	default:
		return fmt.Sprintf("unknown operation %d", o.Kind)
	}
}

func (o Op) peer() string {
	if o.Name == "" {
		return fmt.Sprintf("peer %v", o.Key)
	}
	return fmt.Sprintf("peer %s (%v)", o.Name, o.Key)
}

func (o Op) changes() string {
	var b strings.Builder
	if o.Endpoint.IsValid() {
		fmt.Fprintf(&b, " endpoint %v", o.Endpoint)
	}
	switch {
	case o.ReplaceAllowedIPs:
		fmt.Fprintf(&b, " allowed IPs %v", o.AllowedIPs)
	case len(o.AllowedIPs) > 0:
		fmt.Fprintf(&b, " more allowed IPs %v", o.AllowedIPs)
	}
	if o.Keepalive != nil {
		fmt.Fprintf(&b, " keepalive %v", *o.Keepalive)
	}
	return b.String()
}
