package credentials

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flatmesh/flatmesh/pkg/pki"
)

// The clock in a bubble stands still while anything runs.
func TestRenewAtHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newControlPlane(t)
		o := options(t, t.TempDir(), p.tokenFile(gw))
		c := p.joined(o)
		first := key(c)
		p.answer(nil)

		done := make(chan error, 1)
		go func() { done <- c.Renew(t.Context(), p.renew) }()
		wait(life/2 - time.Second)
		if p.answer(nil) != 0 {
			t.Error("renewed before half of the life was over")
		}
		wait(2 * time.Second)
		if err, calls := <-done, p.answer(nil); err != nil || calls != 1 {
			t.Errorf("asked %d times: %v", calls, err)
		}
		if same(first, key(c)) {
			t.Error("renewed with the old key")
		}
		p.expect(c, gw)
		if !same(key(c), key(open(t, o))) {
			t.Error("the new certificate is not on disk")
		}
	})
}

// Certificates begin some minutes before they are made, which is longer than a
// short one lasts.
func TestShortLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newControlPlane(t)
		p.life = time.Minute
		o := options(t, t.TempDir(), p.tokenFile(gw))
		c := p.joined(o)
		p.answer(nil)
		done := make(chan error, 1)
		go func() { done <- c.Renew(t.Context(), p.renew) }()
		wait(p.life/2 - time.Second)
		if p.answer(nil) != 0 {
			t.Error("renewed before half of the life was over")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.expect(c, gw)
		// After a restart it may come early, and then goes on as before.
		c = open(t, o)
		for range 3 {
			if err := c.Renew(t.Context(), p.renew); err != nil {
				t.Error(err)
			}
		}
		if left := time.Until(c.good().NotAfter()); left > p.life || left < p.life-time.Second {
			t.Errorf("the newest has %v to live", left)
		}
		if calls := p.answer(nil); calls != 4 {
			t.Errorf("renewed %d times", calls)
		}
		start := time.Now()
		if err := c.Renew(t.Context(), p.renew); err != nil || time.Since(start) < p.life/3 {
			t.Errorf("renewed after %v: %v", time.Since(start), err)
		}
	})
}

func TestRenewGoesOnWhileItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newControlPlane(t)
		c := p.joined(options(t, t.TempDir(), p.tokenFile(gw)))
		first := key(c)
		p.answer(errors.New("disk full"))
		done := make(chan error, 1)
		go func() { done <- c.Renew(t.Context(), p.renew) }()
		wait(life * 3 / 4)
		if calls := p.answer(errors.New("disk full")); calls < 5 || calls > 100 {
			t.Errorf("asked %d times in a quarter of the life", calls)
		}
		if !same(first, key(c)) {
			t.Error("the certificate went though there is no other")
		}
		p.expect(c, gw)
		p.answer(nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if same(first, key(c)) {
			t.Error("not renewed in the end")
		}

		// One that ends meanwhile is no longer shown.
		p.answer(errors.New("disk full"))
		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- c.Renew(ctx, p.renew) }()
		wait(2 * life)
		p.expect(c, pki.Identity{})
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// A control plane that never answers holds nothing up.
func TestRenewIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newControlPlane(t)
		c := p.joined(options(t, t.TempDir(), p.tokenFile(gw)))
		calls := 0
		done := make(chan error, 1)
		go func() {
			done <- c.Renew(t.Context(), func(ctx context.Context, csr []byte) ([][]byte, [][]byte, error) {
				if calls++; calls == 1 {
					<-ctx.Done()
					return nil, nil, ctx.Err()
				}
				return p.renew(ctx, csr)
			})
		}()
		if err := <-done; err != nil || calls != 2 {
			t.Errorf("asked %d times: %v", calls, err)
		}
	})
}

// wait lets the bubble's clock go on.
func wait(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}
