package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Options says how a Proxy behaves. What is zero takes its default.
type Options struct {
	// Log takes what an operator should see. What clients cause is limited to a
	// line a minute for each reason. Default is no log.
	Log *slog.Logger

	// HelloTimeout is how long a client may take to send its ClientHello. Default
	// 5 s.
	HelloTimeout time.Duration
	// ConnectTimeout is how long one pod may take to accept. Default 2 s.
	ConnectTimeout time.Duration
	// ConnectBudget bounds all tries of one connection together. Default 5 s.
	ConnectBudget time.Duration
	// ConnectTries bounds the pods that are tried for one connection. Default 5.
	ConnectTries int
	// IdleTimeout ends a connection that carried no byte either way for so long,
	// or up to 15 s more. Default 1 h.
	IdleTimeout time.Duration
	// SilenceTimeout ends a connection when one end has sent no acknowledgement
	// for so long while it owes one. A reader that is merely slow acknowledges, and
	// is not concerned. Default 1 min.
	SilenceTimeout time.Duration

	// MaxConnections bounds the open connections; what comes beyond is refused.
	// Each takes two file descriptors, and up to four more while data moves.
	// Default 16384.
	MaxConnections int
	// MaxHellos bounds those of them that have not yet sent a ClientHello. When one
	// more comes the oldest has to go: clients that dally, by intent or not, cannot
	// keep out those that speak at once. Default 1024.
	MaxHellos int
	// MaxHello bounds a ClientHello, in bytes as they come over the wire with the
	// headers of its records. crypto/tls refuses a message of more than 64 KiB
	// whatever is set here. Default 64 KiB.
	MaxHello int

	// Dial connects to a pod, within the deadline of its context. Default is a
	// net.Dialer.
	Dial func(ctx context.Context, pod netip.AddrPort) (*net.TCPConn, error)
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	orElse(&o.HelloTimeout, 5*time.Second)
	orElse(&o.ConnectTimeout, 2*time.Second)
	orElse(&o.ConnectBudget, 5*time.Second)
	orElse(&o.ConnectTries, 5)
	orElse(&o.IdleTimeout, time.Hour)
	orElse(&o.SilenceTimeout, time.Minute)
	orElse(&o.MaxConnections, 16384)
	orElse(&o.MaxHellos, 1024)
	o.MaxHellos = min(o.MaxHellos, o.MaxConnections)
	orElse(&o.MaxHello, 64<<10)
	if o.Dial == nil {
		d := net.Dialer{KeepAliveConfig: keepAlive()}
		o.Dial = func(ctx context.Context, pod netip.AddrPort) (*net.TCPConn, error) {
			// DialTCP binds before it connects, so that all pods together could have
			// no more connections than there are local ports.
			c, err := d.DialContext(ctx, "tcp", pod.String())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		}
	}
	return o
}

func orElse[T int | time.Duration](v *T, fallback T) {
	if *v <= 0 {
		*v = fallback
	}
}
