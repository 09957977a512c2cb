package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// Options is how an agent is started.
type Options struct {
	Node mesh.NodeID
	// ControlPlane is HOST:PORT of its gRPC address.
	ControlPlane string
	// TokenFile holds a join token; needed until the node has a certificate.
	TokenFile string
	// StateDir keeps the key, the certificate and the peers (0700). RunDir holds
	// the admin socket.
	StateDir string
	RunDir   string
	// HTTP is the address for metrics and health; empty for none.
	HTTP string

	Interface  string
	DeviceMode wg.Mode
	ListenPort uint16
	// MTU of the interface; 0 takes the underlay's less WireGuard's overhead.
	MTU int
	// Endpoints are where others reach this node's WireGuard, best first; empty
	// for the address from which the control plane is reached.
	Endpoints []netip.AddrPort
	Route     route.Options

	// ResetAfter is how long a tunnel is down before packets into it are refused,
	// so that connections over it end; negative for never.
	ResetAfter time.Duration
	// Resync is how often the kernel is observed though nothing happened.
	Resync  time.Duration
	Version string
	// Executable is the agent's own binary, for the device process.
	Executable string
	Log        *slog.Logger
}

// Validate reports what is wrong, and what to do.
func (o Options) Validate() error {
	var errs []error
	if err := o.Node.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--cluster, --node: %w", err))
	}
	host, port, err := net.SplitHostPort(o.ControlPlane)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || host == "" || n == 0 {
		errs = append(errs, fmt.Errorf("--control-plane %q: want HOST:PORT", o.ControlPlane))
	}
	if o.ListenPort == 0 {
		errs = append(errs, errors.New("--listen-port: want 1 to 65535"))
	}
	if n := len(o.Interface); n == 0 || n > 15 {
		errs = append(errs, fmt.Errorf("--interface %q: want 1 to 15 characters", o.Interface))
	}
	if o.MTU != 0 && (o.MTU < 576 || o.MTU > 65535) {
		errs = append(errs, fmt.Errorf("--mtu %d: want 576 to 65535, or 0 to derive it", o.MTU))
	}
	for _, e := range o.Endpoints {
		if err := mesh.ValidateAddr(e.Addr()); err != nil || e.Port() == 0 {
			errs = append(errs, fmt.Errorf("--endpoint %v: want an address and port that other nodes can reach", e))
		}
	}
	return errors.Join(errs...)
}

// AdminSocket is where the agent listens for the CLI.
func (o Options) AdminSocket() string { return filepath.Join(o.RunDir, "agent.sock") }

// XDSDir is the folder that pods see: the relay's socket, and how to use it.
func (o Options) XDSDir() string { return filepath.Join(o.RunDir, "xds") }

// WorkloadDir holds a folder for each pod of the node, with its certificate.
func (o Options) WorkloadDir() string { return filepath.Join(o.StateDir, "workloads") }

func (o Options) relayFile() string { return filepath.Join(o.StateDir, "relay.json") }
func (o Options) keyFile() string   { return filepath.Join(o.StateDir, "wg.key") }
func (o Options) peersFile() string { return filepath.Join(o.StateDir, "peers.json") }
func (o Options) lockFile() string  { return filepath.Join(o.StateDir, "agent.lock") }
