package agent

import (
	"net/netip"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/relay"
)

// Status is what `agent status` shows. Its JSON fields are stable.
type Status struct {
	Node    mesh.NodeID `json:"node"`
	Version string      `json:"version"`
	// At is when it was read.
	At           time.Time          `json:"at"`
	Started      time.Time          `json:"started"`
	Device       DeviceStatus       `json:"device"`
	ControlPlane ControlPlaneStatus `json:"controlPlane"`
	// Complete is false until the agent has been told all of its peers once;
	// until then it changes nothing on the node.
	Complete bool         `json:"complete"`
	Peers    []PeerStatus `json:"peers"`
	// Prefixes are the node's own that others route to it.
	Prefixes []netip.Prefix       `json:"prefixes"`
	Refused  []mesh.RefusedPrefix `json:"refused"`
	Barriers []mesh.Barrier       `json:"barriers"`
	// Unrouted are prefixes of others that are not routed here, and why.
	Unrouted  []Unrouted      `json:"unrouted"`
	Conflicts []mesh.Conflict `json:"conflicts"`
	// Relay serves this node's workloads; Workloads are their certificates.
	Relay     relay.Status     `json:"relay"`
	Workloads []WorkloadStatus `json:"workloads"`
	// Problems are what the agent could not do, in words.
	Problems []string `json:"problems"`
}

// Healthy reports whether every tunnel that should be up is.
func (s Status) Healthy() bool {
	for _, p := range s.Peers {
		if p.State != mesh.Up {
			return false
		}
	}
	return s.Complete && len(s.Problems) == 0
}

// DeviceStatus is the WireGuard device.
type DeviceStatus struct {
	Interface string `json:"interface"`
	// Kind is "kernel" or "userspace".
	Kind        string         `json:"kind"`
	PublicKey   mesh.PublicKey `json:"publicKey"`
	ListenPort  uint16         `json:"listenPort"`
	MTU         int            `json:"mtu"`
	TunnelAddrs []netip.Addr   `json:"tunnelAddresses"`
}

// ControlPlaneStatus is the connection to the control plane.
type ControlPlaneStatus struct {
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	// Since is when the connection was made or lost; nil before the first try
	// has ended.
	Since   *time.Time `json:"since,omitempty"`
	Version string     `json:"version,omitempty"`
	Error   string     `json:"error,omitempty"`
	// RefusedEndpoints are candidates of this node that the control plane did not
	// take, with why.
	RefusedEndpoints []string   `json:"refusedEndpoints,omitempty"`
	CertificateUntil *time.Time `json:"certificateUntil,omitempty"`
}

// PeerStatus is one tunnel.
type PeerStatus struct {
	Node   mesh.NodeID      `json:"node"`
	State  mesh.TunnelState `json:"state"`
	Reason mesh.Reason      `json:"reason"`
	// Since is when the tunnel got into its state.
	Since    time.Time      `json:"since"`
	Endpoint netip.AddrPort `json:"endpoint"`
	// Handshake is when WireGuard last shook hands; nil if it never did.
	Handshake *time.Time `json:"lastHandshake,omitempty"`
	// RTT is the smoothed round trip of echoes through the tunnel, in seconds.
	RTT float64 `json:"rttSeconds"`
	// Loss is the share of the last echoes that were lost, 0 to 1.
	Loss float64 `json:"loss"`
	// Active: the tunnel has carried traffic of others than the echo lately.
	Active      bool             `json:"active"`
	RxBytes     uint64           `json:"rxBytes"`
	TxBytes     uint64           `json:"txBytes"`
	AllowedIPs  []netip.Prefix   `json:"allowedIPs"`
	Key         mesh.PublicKey   `json:"publicKey"`
	Candidates  []netip.AddrPort `json:"candidates"`
	TunnelAddrs []netip.Addr     `json:"tunnelAddresses"`
}

// Unrouted is a prefix of another node, or a remote range (Node empty), that is
// not routed here.
type Unrouted struct {
	Node   string       `json:"node,omitempty"`
	Prefix netip.Prefix `json:"prefix"`
	Reason mesh.Reason  `json:"reason"`
	Detail string       `json:"detail"`
}
