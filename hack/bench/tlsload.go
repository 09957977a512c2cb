package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// loadOrder asks for one measurement.
type loadOrder struct {
	// Bulk receives on so many connections at once, or, at 0, Brief makes one
	// connection after the other on so many at once.
	Bulk  int `json:"bulk,omitempty"`
	Brief int `json:"brief,omitempty"`
	// To are the addresses to connect to, in turn.
	To  []string      `json:"to"`
	For time.Duration `json:"for"`
}

// loadAnswer says how much was carried in what time: bytes, or connections.
type loadAnswer struct {
	Amount float64       `json:"amount"`
	Took   time.Duration `json:"took"`
	Error  string        `json:"error,omitempty"`
}

// tlsLoadCommand is the clients of a gateway. It reads orders from standard input
// and answers each.
func tlsLoadCommand() *cobra.Command {
	return &cobra.Command{Use: "tls-load", Short: "Be clients of a gateway", Args: cobra.NoArgs, Hidden: true, RunE: func(cmd *cobra.Command, _ []string) error {
		in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
		hello, err := clientHello(cmd.Context(), briefName)
		if err != nil {
			return err
		}
		for {
			var o loadOrder
			if err := in.Decode(&o); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			var a loadAnswer
			if o.Bulk > 0 {
				a, err = receiveBulk(cmd.Context(), o)
			} else {
				a, err = connectBriefly(cmd.Context(), o, hello)
			}
			if err != nil {
				a.Error = err.Error()
			}
			if err := out.Encode(a); err != nil {
				return err
			}
		}
	}}
}

// receiveBulk shakes hands on each connection and counts what comes after.
func receiveBulk(ctx context.Context, o loadOrder) (loadAnswer, error) {
	var load sync.WaitGroup
	defer load.Wait()
	var received atomic.Int64
	for i := range o.Bulk {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", o.To[i%len(o.To)])
		if err != nil {
			return loadAnswer{}, err
		}
		defer c.Close()
		// The pod's certificate is made up, and not what is measured.
		if err := tls.Client(c, &tls.Config{ServerName: bulkName, InsecureSkipVerify: true}).HandshakeContext(ctx); err != nil {
			return loadAnswer{}, fmt.Errorf("handshake: %w", err)
		}
		load.Go(func() {
			buf := make([]byte, 256<<10)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return // closed when the time is over
				}
				received.Add(int64(n))
			}
		})
	}
	amount, took, err := rate(ctx, &received, o.For)
	return loadAnswer{Amount: amount, Took: took}, err
}

// connectBriefly counts connections on which a ClientHello was answered.
func connectBriefly(ctx context.Context, o loadOrder, hello []byte) (loadAnswer, error) {
	ctx, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	var made atomic.Int64
	failed := make(chan error, o.Brief)
	for i := range o.Brief {
		load.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				if err := brief(ctx, o.To[n%len(o.To)], hello); err != nil {
					if ctx.Err() == nil {
						failed <- err
					}
					return
				}
				made.Add(1)
			}
		})
	}
	amount, took, err := rate(ctx, &made, o.For)
	select {
	case first := <-failed:
		err = errors.Join(first, err)
	default:
	}
	return loadAnswer{Amount: amount, Took: took}, err
}

func brief(ctx context.Context, to string, hello []byte) error {
	c, err := (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}).DialContext(ctx, "tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, flight)); err != nil {
		return fmt.Errorf("the answer to a ClientHello: %w", err)
	}
	return nil
}
