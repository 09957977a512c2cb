package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/pki"
)

// Where a gateway keeps and shows things, unless told otherwise.
const (
	defaultStateDir = "/var/lib/flatmesh/gateway"
	defaultRunDir   = "/run/flatmesh/gateway"
)

const (
	// maxAddresses is how many the control plane takes.
	maxAddresses = 16
	// maxPorts bounds what one slip in a range of ports may open.
	maxPorts = 256
)

// options is how a gateway is started.
type options struct {
	cluster, name string
	// controlPlane is HOST:PORT of its gRPC address.
	controlPlane string
	// tokenFile holds a join token; needed until there is a certificate.
	tokenFile string
	// stateDir keeps the certificate and the last known routes, runDir the admin
	// socket (both 0700).
	stateDir, runDir string
	// addresses are where clients reach the gateway; none: behind something that
	// the control plane knows by another address.
	addresses []netip.Addr
	// listen are the addresses to listen on; none: all.
	listen []netip.Addr
	// ports serve; standby are those that clients use when all else fails. To the
	// gateway they are alike.
	ports, standby []uint16
	// http is the address for metrics and health; empty for none.
	http string
	// At the end the gateway goes on accepting for drainDelay, and then lets
	// connections end by themselves for drainTime.
	drainDelay, drainTime time.Duration

	maxConnections int
	helloTimeout   time.Duration
	connectTimeout time.Duration
	idleTimeout    time.Duration

	version string
	log     *slog.Logger
	// now is the clock by which certificates are good.
	now func() time.Time
	// dial connects to a pod; nil for the usual way.
	dial func(ctx context.Context, pod netip.AddrPort) (*net.TCPConn, error)
}

// validate reports what is wrong, and what is wanted.
func (o options) validate() error {
	var errs []error
	if err := o.identity().Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--cluster, --name: %w", err))
	}
	host, port, err := net.SplitHostPort(o.controlPlane)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || host == "" || n == 0 {
		errs = append(errs, fmt.Errorf("--control-plane %q: want HOST:PORT", o.controlPlane))
	}
	for _, a := range o.addresses {
		if err := mesh.ValidateAddr(a); err != nil {
			errs = append(errs, fmt.Errorf("--address: %w: want an address at which clients of other clusters reach this gateway", err))
		}
	}
	if len(o.addresses) > maxAddresses {
		errs = append(errs, fmt.Errorf("--address: %d are given, %d is the limit", len(o.addresses), maxAddresses))
	}
	if len(o.ports) == 0 {
		errs = append(errs, errors.New("--ports: want at least one"))
	}
	if n := len(o.ports) + len(o.standby); n > maxPorts {
		errs = append(errs, fmt.Errorf("--ports, --standby-ports: %d ports, %d is the limit", n, maxPorts))
	}
	for _, p := range o.standby {
		if slices.Contains(o.ports, p) {
			errs = append(errs, fmt.Errorf("--standby-ports: %d is in --ports too", p))
		}
	}
	if o.drainDelay < 0 || o.drainTime < 0 {
		errs = append(errs, errors.New("--drain-delay, --drain-time: want no negative durations"))
	}
	if o.maxConnections < 1 {
		errs = append(errs, fmt.Errorf("--max-connections %d: want at least 1", o.maxConnections))
	}
	if o.helloTimeout <= 0 || o.connectTimeout <= 0 || o.idleTimeout <= 0 {
		errs = append(errs, errors.New("--hello-timeout, --connect-timeout, --idle-timeout: want more than 0"))
	}
	return errors.Join(errs...)
}

func (o options) identity() pki.Identity { return pki.GatewayOf(o.cluster, o.name) }

func (o options) routesFile() string { return filepath.Join(o.stateDir, "routes.json") }
func (o options) lockFile() string   { return filepath.Join(o.stateDir, "gateway.lock") }

// adminSocket is where a gateway listens for its CLI.
func adminSocket(runDir string) string { return filepath.Join(runDir, "gateway.sock") }

// endpoints returns what to listen on. One listener on an unspecified address, or
// on none, takes connections to all addresses of both families.
func (o options) endpoints() []string {
	hosts := []string{""}
	if len(o.listen) > 0 && !slices.ContainsFunc(o.listen, netip.Addr.IsUnspecified) {
		hosts = nil
		for _, a := range o.listen {
			hosts = append(hosts, a.String())
		}
	}
	var out []string
	for _, h := range hosts {
		for _, p := range slices.Concat(o.ports, o.standby) {
			out = append(out, net.JoinHostPort(h, strconv.Itoa(int(p))))
		}
	}
	return out
}

// parsePorts reads ports and ranges of them, such as "15443-15446,16000". Empty
// is none.
func parsePorts(text string) ([]uint16, error) {
	var out []uint16
	for part := range strings.SplitSeq(text, ",") {
		if part == "" && text == "" {
			return nil, nil
		}
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, ferr := strconv.ParseUint(first, 10, 16)
		to, terr := strconv.ParseUint(last, 10, 16)
		if ferr != nil || terr != nil || from == 0 || from > to {
			return nil, fmt.Errorf("%q: want ports and ranges such as 15443-15446,16000", text)
		}
		for p := from; p <= to; p++ {
			if slices.Contains(out, uint16(p)) {
				return nil, fmt.Errorf("%q: %d occurs twice", text, p)
			}
			out = append(out, uint16(p))
		}
	}
	return out, nil
}

// parseAddrs reads IP addresses, each once.
func parseAddrs(texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%q: want an IP address", text)
		}
		if a = a.Unmap(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}
