package main

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/pki/credentials"
)

const (
	callTimeout = 10 * time.Second
	// A gateway that is away for two seconds is left out.
	backoffMin = 250 * time.Millisecond
	backoffMax = 10 * time.Second
	// maxMessage bounds what the control plane sends at once: 5,000 services of ten
	// pods are about 5 MB.
	maxMessage = 64 << 20
)

// A control plane whose host has gone is noticed within deadAfter: the kernel sends
// a packet a second. For one that hangs there is gRPC's own ping, every ten
// seconds, which is as often as gRPC allows.
const (
	tcpKeepalive = time.Second
	pingEvery    = 10 * time.Second
	deadAfter    = 3 * time.Second
)

// addressHeader tells the control plane where clients reach the gateway.
const addressHeader = "flatmesh-gateway-address"

// errAgain ends a conversation so that the next one begins with a new
// certificate.
var errAgain = errors.New("the certificate is new")

// conversation keeps the gateway connected to the control plane: it joins, feeds
// the feed, and begins anew whenever that ends. What the gateway does needs none of
// it to go on.
type conversation struct {
	o     options
	log   *slog.Logger
	creds *credentials.Credentials
	feed  *feed

	mu    sync.Mutex
	state controlPlaneStatus
}

// run converses until ctx ends; then the control plane knows that this gateway
// goes.
func (c *conversation) run(ctx context.Context) {
	defer c.left()
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
		if errors.Is(err, errAgain) {
			// By a clock that is ahead half of every new certificate's life is over, which
			// must not become a loop.
			if again++; again < 3 {
				continue
			}
			err = errors.New("a new certificate is too old at once: check this host's clock")
		}
		c.ended(err)
		// Half of the wait is drawn, so that gateways do not come back in step.
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
	cfg, joined, err := c.creds.TLS()
	if err != nil {
		return err
	}
	cfg.ServerName = "controlplane"
	conn, err := grpc.NewClient("passthrough:///"+c.o.controlPlane,
		grpc.WithTransportCredentials(grpccredentials.NewTLS(cfg)),
		grpc.WithContextDialer(dialControlPlane),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// By its timeout gRPC also bounds how long sent data may be unacknowledged
		// (gRFC A18), for which the kernel then gives up.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: deadAfter}),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	peers := peering.NewGateway(conn, c.o.cluster, c.o.name)
	if !joined {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := c.creds.Join(call, peers.Join); err != nil {
			return err
		}
		// The certificate needs a connection of its own.
		return errAgain
	}
	err = c.converse(ctx, conn, peers)
	if status.Code(err) == codes.Unauthenticated && c.creds.Dismiss() {
		c.log.Warn("the certificate no longer counts; joining again", "err", err)
		return errAgain
	}
	return err
}

func (c *conversation) converse(ctx context.Context, conn *grpc.ClientConn, peers *peering.Gateway) error {
	g, ctx := errgroup.WithContext(ctx)
	stream := ctx
	for _, a := range c.o.addresses {
		stream = metadata.AppendToOutgoingContext(stream, addressHeader, a.String())
	}
	g.Go(func() error {
		return c.feed.run(stream, conn, &core.Node{
			Id: "gateway/" + c.o.cluster + "/" + c.o.name, UserAgentName: "flatmesh-gateway",
			UserAgentVersionType: &core.Node_UserAgentVersion{UserAgentVersion: c.o.version},
		})
	})
	g.Go(func() error {
		if err := c.creds.Renew(ctx, peers.Renew); err != nil {
			return err
		}
		return errAgain
	})
	return g.Wait()
}

// dialControlPlane connects so that the end of the other host is noticed.
func dialControlPlane(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         callTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: tcpKeepalive, Interval: tcpKeepalive, Count: int(deadAfter / tcpKeepalive)},
	}
	return d.DialContext(ctx, "tcp", addr)
}

// heard notes that the control plane answers.
func (c *conversation) heard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Connected {
		return
	}
	now := time.Now().UTC()
	c.state.Connected, c.state.Since, c.state.Error = true, &now, ""
	c.log.Info("connected", "controlPlane", c.o.controlPlane, "addresses", c.o.addresses)
}

// left notes that the gateway has left for good.
func (c *conversation) left() {
	now := time.Now().UTC()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = controlPlaneStatus{Since: &now}
}

// ended notes why a conversation ended; the same reason is logged once.
func (c *conversation) ended(err error) {
	text := err.Error()
	var by interface{ GRPCStatus() *status.Status }
	if errors.As(err, &by) {
		// Without "rpc error: code = … desc = ".
		text = strings.Replace(text, by.GRPCStatus().Err().Error(), by.GRPCStatus().Message(), 1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Connected || c.state.Error != text {
		c.log.Warn("control plane away; routes stay as they are", "controlPlane", c.o.controlPlane, "err", text)
	}
	if c.state.Connected || c.state.Since == nil {
		now := time.Now().UTC()
		c.state.Since = &now
	}
	c.state.Connected, c.state.Error = false, text
}

func (c *conversation) status() controlPlaneStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	s.Address = c.o.controlPlane
	if until, ok := c.creds.Until(); ok {
		until = until.UTC()
		s.CertificateUntil = &until
	}
	return s
}
