package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/wg"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/relay"
)

const (
	callTimeout = 10 * time.Second
	backoffMin  = 500 * time.Millisecond
	backoffMax  = 10 * time.Second
	// maxMessage bounds what the control plane sends at once: 5,000 peers are
	// about 1 MB.
	maxMessage = 64 << 20
	// addressCheck is how often the node's own underlay address is looked at.
	addressCheck = 5 * time.Second
)

// conversation keeps the agent connected to the control plane: it joins,
// registers, receives resources into the mirror and reports, and begins anew
// whenever that ends. What the node does needs none of it to go on.
type conversation struct {
	opts     Options
	log      *slog.Logger
	key      wg.PrivateKey
	kind     wg.Kind
	identity *identity
	mirror   *mirror
	reports  *reports
	// relay and workloads are for the node's pods.
	relay     *relay.Relay
	workloads *workloads

	mu    sync.Mutex
	state ControlPlaneStatus
	// peers asks the control plane, while there is a connection.
	peers *peering.Agent
	// addrs are the control plane's own: nothing may be routed over them.
	addrs []netip.Addr
}

// run converses until ctx ends.
func (c *conversation) run(ctx context.Context) {
	wait, again := backoffMin, 0
	for ctx.Err() == nil {
		begin := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > 3*backoffMax {
			wait, again = backoffMin, 0
		}
		if time.Since(begin) > time.Second {
			again = 0 // no loop
		}
		// A new certificate that is over at once, because a clock is wrong, must not
		// become a loop.
		if again++; errors.Is(err, errAgain) && again < 3 {
			continue
		}
		c.ended(err)
		// Half of the wait is drawn, so that the agents of a mesh do not come back
		// in step.
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait = min(2*wait, backoffMax)
	}
}

// once connects, and returns when that connection's conversation has ended.
func (c *conversation) once(ctx context.Context) error {
	if err := c.resolve(ctx); err != nil {
		return err
	}
	cfg, joined, err := c.identity.TLS()
	if err != nil {
		return err
	}
	cfg.ServerName = "controlplane"
	conn, err := grpc.NewClient("passthrough:///"+c.opts.ControlPlane,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithContextDialer(c.dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	if joined {
		return c.converse(ctx, conn)
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.identity.join(call, conn, prover{c.key}); err != nil {
		return err
	}
	// The certificate needs a connection of its own.
	return errAgain
}

// resolve looks the control plane's name up, since what its addresses are
// decides what may be routed and from where this node is reached.
func (c *conversation) resolve(ctx context.Context) error {
	host, _, err := net.SplitHostPort(c.opts.ControlPlane)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return fmt.Errorf("look up the control plane: %w", err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.addrs, addrs) {
		c.addrs = addrs
		mark(c.mirror.changed)
	}
	return nil
}

// errAgain ends a conversation so that the next one begins with a new
// certificate.
var errAgain = errors.New("the certificate is new")

func (c *conversation) converse(ctx context.Context, conn *grpc.ClientConn) error {
	peers := peering.NewAgent(conn, c.opts.Node, prover{c.key})
	candidates := c.candidates()
	if err := c.register(ctx, peers, candidates); err != nil {
		if status.Code(err) == codes.Unauthenticated && c.identity.Dismiss() {
			c.log.Warn("the certificate no longer counts; joining again", "err", err)
			return errAgain
		}
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		node := &core.Node{Id: c.opts.Node.String(), UserAgentName: "flatmesh-agent", UserAgentVersionType: &core.Node_UserAgentVersion{UserAgentVersion: c.opts.Version}}
		subs := append(c.mirror.subscriptions(), xds.Subscription{TypeURL: xds.PodsType, Names: []string{c.opts.Node.String()}})
		return xds.Subscribe(ctx, conn, node, subs, func(u xds.Update) error {
			if u.TypeURL == xds.PodsType {
				return c.workloads.apply(u)
			}
			return c.mirror.apply(u)
		})
	})
	g.Go(func() error { return c.relay.Run(ctx, conn) })
	g.Go(func() error { return c.workloads.run(ctx, peers.IssueWorkload) })
	c.setPeers(peers)
	defer c.setPeers(nil)
	g.Go(func() error { return peers.Report(ctx, c.reports) })
	g.Go(func() error {
		if err := c.identity.Renew(ctx, peers.Renew); err != nil {
			return err
		}
		return errAgain
	})
	g.Go(func() error {
		tick := time.NewTicker(addressCheck)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			if now := c.candidates(); !slices.Equal(now, candidates) {
				if err := c.register(ctx, peers, now); err != nil {
					return err
				}
				candidates = now
			}
		}
	})
	return g.Wait()
}

func (c *conversation) setPeers(p *peering.Agent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = p
}

// paths asks the control plane how this node reaches a target.
func (c *conversation) paths(ctx context.Context, target string) ([]peering.PathAnswer, error) {
	c.mu.Lock()
	peers := c.peers
	c.mu.Unlock()
	if peers == nil {
		return nil, errAway
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return peers.Paths(ctx, target)
}

// errAway: there is no connection to the control plane now.
var errAway = errors.New("the control plane is away")

func (c *conversation) register(ctx context.Context, peers *peering.Agent, candidates []netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	own, _ := c.mirror.own()
	addrs, version, refused, err := peers.Register(ctx, peering.Registration{
		Endpoints: candidates, ListenPort: c.opts.ListenPort, Device: c.kind.String(), Version: c.opts.Version, TunnelAddrs: own.TunnelAddrs,
	})
	if err != nil {
		return err
	}
	c.log.Info("registered", "controlPlane", c.opts.ControlPlane, "tunnelAddresses", addrs, "endpoints", candidates, "version", version)
	for _, r := range refused {
		c.log.Warn("endpoint candidate refused by the control plane", "detail", r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.Connected {
		now := time.Now()
		c.state.Connected, c.state.Since, c.state.Error = true, &now, ""
	}
	c.state.Version, c.state.RefusedEndpoints = version, refused
	return nil
}

// ended notes why a conversation ended; the same reason is logged once.
func (c *conversation) ended(err error) {
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Connected || c.state.Error != text {
		c.log.Warn("control plane away; tunnels stay as they are", "controlPlane", c.opts.ControlPlane, "err", text)
	}
	if c.state.Connected || c.state.Since == nil {
		now := time.Now()
		c.state.Since = &now
	}
	c.state.Connected, c.state.Error = false, text
}

// dial connects with the firewall mark, so that no route of ours, however wrong,
// carries the control plane's own packets.
func (c *conversation) dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: callTimeout, Control: c.marked}
	return d.DialContext(ctx, "tcp", addr)
}

func (c *conversation) marked(_, _ string, raw syscall.RawConn) error {
	var serr error
	err := raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(c.opts.Route.Mark))
	})
	return errors.Join(err, serr)
}

// controlPlaneAddrs returns the addresses that its name stands for.
func (c *conversation) controlPlaneAddrs() []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.addrs)
}

// candidates returns where others may reach this node: what the options say, or
// the addresses that it uses towards the control plane.
func (c *conversation) candidates() []netip.AddrPort {
	if len(c.opts.Endpoints) > 0 {
		return c.opts.Endpoints
	}
	var out []netip.AddrPort
	for _, a := range c.controlPlaneAddrs() {
		if src, err := c.sourceTowards(a); err == nil && mesh.ValidateAddr(src) == nil {
			if ap := netip.AddrPortFrom(src, c.opts.ListenPort); !slices.Contains(out, ap) {
				out = append(out, ap)
			}
		}
	}
	return out
}

// sourceTowards returns the address that this host would send from. Nothing is
// sent: connecting a UDP socket only asks the routing table.
func (c *conversation) sourceTowards(a netip.Addr) (netip.Addr, error) {
	d := net.Dialer{Control: c.marked}
	conn, err := d.Dial("udp", netip.AddrPortFrom(a, 9).String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("source address towards %v: %w", a, err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func (c *conversation) status() ControlPlaneStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	s.Address = c.opts.ControlPlane
	if until, ok := c.identity.Until(); ok {
		s.CertificateUntil = &until
	}
	return s
}
