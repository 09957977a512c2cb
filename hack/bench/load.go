package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// packet is the payload of small packets, in bytes.
const packet = 64

// rampUp is left out of a measurement of throughput: handshake and slow start.
const rampUp = 400 * time.Millisecond

// road is the way between two pods that is measured.
type road struct{ client, server lab.Host }

// tcp returns what all streams together carry in Gb/s, as the receiver counts.
func (r road) tcp(ctx context.Context, streams int, d time.Duration) (float64, error) {
	ln, err := listenTCP(ctx, r.server)
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	var load sync.WaitGroup
	defer load.Wait()
	var received atomic.Int64
	for range streams {
		out, err := dial(ctx, r.client, ln.Addr())
		if err != nil {
			return 0, err
		}
		defer out.Close()
		in, err := ln.Accept()
		if err != nil {
			return 0, err
		}
		defer in.Close()
		load.Go(func() {
			buf := make([]byte, 128<<10)
			for {
				if _, err := out.Write(buf); err != nil {
					return // closed when the time is over
				}
			}
		})
		load.Go(func() { count(in, 256<<10, func(n int) { received.Add(int64(n)) }) })
	}
	bytes, took, err := rate(ctx, &received, d)
	return 8 * bytes / took.Seconds() / 1e9, err
}

// flood sends small UDP packets as fast as it can and returns how many a second
// arrive.
func (r road) flood(ctx context.Context, d time.Duration) (float64, error) {
	in, err := listenUDP(r.server)
	if err != nil {
		return 0, err
	}
	out, err := dial(ctx, r.client, in.LocalAddr())
	if err != nil {
		in.Close()
		return 0, err
	}
	var load sync.WaitGroup
	defer load.Wait()
	defer out.Close()
	defer in.Close()
	var received atomic.Int64
	load.Go(func() { count(in, 2048, func(int) { received.Add(1) }) })
	load.Go(func() {
		buf := make([]byte, packet)
		for {
			// A full queue is what a flood is for.
			if _, err := out.Write(buf); isClosed(err) {
				return
			}
		}
	})
	packets, took, err := rate(ctx, &received, d)
	return packets / took.Seconds(), err
}

// count reads until the connection is closed.
func count(c net.Conn, size int, got func(n int)) {
	buf := make([]byte, size)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		got(n)
	}
}

// rate returns by how much a counter grows within d, after the ramp.
func rate(ctx context.Context, counter *atomic.Int64, d time.Duration) (float64, time.Duration, error) {
	if err := pause(ctx, rampUp); err != nil {
		return 0, d, err
	}
	began, before := time.Now(), counter.Load()
	err := pause(ctx, d)
	took := time.Since(began)
	grown := counter.Load() - before
	if err == nil && grown == 0 {
		err = errors.New("nothing arrived")
	}
	return float64(grown), took, err
}

// rtt sends one small UDP packet after another, each when the last one's echo has
// come back, and returns the round trips in microseconds.
func (r road) rtt(ctx context.Context, d time.Duration) (series, error) {
	in, err := listenUDP(r.server)
	if err != nil {
		return nil, err
	}
	var echo sync.WaitGroup
	defer echo.Wait()
	defer in.Close()
	echo.Go(func() { reflect(in) })
	out, err := dial(ctx, r.client, in.LocalAddr())
	if err != nil {
		return nil, err
	}
	defer out.Close()
	buf := make([]byte, packet)
	var trips series
	lost := 0
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; {
		began := time.Now()
		if err := out.SetDeadline(began.Add(time.Second)); err != nil {
			return nil, err
		}
		_, err := out.Write(buf)
		if err == nil {
			_, err = out.Read(buf)
		}
		if err != nil {
			lost++
			continue
		}
		trips = append(trips, float64(time.Since(began).Nanoseconds())/1e3)
	}
	if ctx.Err() == nil && (len(trips) == 0 || lost > 1) {
		return nil, fmt.Errorf("%d echoes came back, %d were lost", len(trips), lost)
	}
	return trips, context.Cause(ctx)
}

// reflect sends every packet back to where it came from, until c is closed.
func reflect(c *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		// An echo that is lost is its sender's to notice.
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
