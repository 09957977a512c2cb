package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/flatmesh/flatmesh/internal/lab"
)

// streamEvery is the pause between the packets of a stream.
const streamEvery = 20 * time.Millisecond

// stream sends small packets from one pod to another, which echoes them, until
// it is stopped.
func stream(ctx context.Context, from, to lab.Host) (stop func(), err error) {
	in, err := listenUDP(to)
	if err != nil {
		return nil, err
	}
	out, err := dial(ctx, from, in.LocalAddr())
	if err != nil {
		in.Close()
		return nil, err
	}
	var load sync.WaitGroup
	load.Go(func() { reflect(in) })
	load.Go(func() { drain(out) })
	ctx, cancel := context.WithCancel(ctx)
	load.Go(func() {
		tick := time.NewTicker(streamEvery)
		defer tick.Stop()
		buf := make([]byte, packet)
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				// While the path is cut, sends may fail: the stream goes on.
				_, _ = out.Write(buf)
			}
		}
	})
	return func() {
		cancel()
		in.Close()
		out.Close()
		load.Wait()
	}, nil
}

// drain reads what comes back until the connection is closed. What a read
// reports of an earlier send, such as an unreachable host, does not end it.
func drain(c net.Conn) {
	buf := make([]byte, 2048)
	for {
		if _, err := c.Read(buf); err != nil && isClosed(err) {
			return
		}
	}
}
