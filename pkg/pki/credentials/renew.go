package credentials

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// longestWait bounds a wait, since a host that sleeps stops the clock of timers
	// and not that of certificates.
	longestWait = time.Minute
	// renewTimeout bounds one try to renew.
	renewTimeout = 10 * time.Second
)

// RenewFunc asks the control plane for the next certificate, over a connection
// that shows the present one. It returns what JoinFunc does.
type RenewFunc func(ctx context.Context, csr []byte) (chain, roots [][]byte, err error)

// Renew waits for half of the certificate's life with its holder to be over, and
// replaces it by one of a new key. It tries again while that fails, since the present one is still
// good and so is what it is used for: its only error is that of ctx. Connections
// made before go on with the old certificate.
func (c *Credentials) Renew(ctx context.Context, renew RenewFunc) error {
	for {
		wait := c.due().Sub(c.o.Now())
		if wait <= 0 {
			err := c.renewOnce(ctx, renew)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c.o.Log.Warn("the certificate could not be renewed; trying again", "identity", c.o.Identity, "err", err)
			wait = c.pause()
		}
		timer := time.NewTimer(min(wait, longestWait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (c *Credentials) renewOnce(ctx context.Context, renew RenewFunc) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return c.replace("certificate renewed", func(csr []byte) ([][]byte, [][]byte, error) { return renew(ctx, csr) })
}

// due returns when to renew.
func (c *Credentials) due() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bundle == nil {
		return c.o.Now()
	}
	return c.renewAt
}

// pause returns how long to wait after a try that failed: some ten tries fit into
// what is left of the certificate's life. Half of it is drawn, so that the members
// of a mesh do not come in step.
func (c *Credentials) pause() time.Duration {
	left := time.Duration(0)
	if until, ok := c.Until(); ok {
		left = until.Sub(c.o.Now())
	}
	pause := min(max(left/10, time.Second), longestWait)
	return pause/2 + rand.N(pause/2)
}
