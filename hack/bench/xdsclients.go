package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/spf13/cobra"
)

// Which services are for what. Each client subscribes to the common one, few to
// the rare one too, and all to some of the others.
const (
	commonService = 0
	rareService   = 1
	firstOther    = 2
)

// crowd is clients of one server, and what they subscribe to.
type crowd struct {
	Clients       int `json:"clients"`
	Subscriptions int `json:"subscriptions"` // of each
	Services      int `json:"services"`      // that there are
	// Rare clients, spread over all, subscribe to the rare service.
	Rare int `json:"rare"`
	// All is one more client, with all services; it is the last.
	All bool `json:"all"`
}

// names returns what client i subscribes to.
func (c crowd) names(i int) []string {
	if c.All && i == c.Clients {
		out := make([]string, c.Services)
		for s := range out {
			out[s] = assignmentName(s)
		}
		return out
	}
	out := []string{assignmentName(commonService)}
	if c.Rare > 0 && i%(c.Clients/c.Rare) == 0 && i/(c.Clients/c.Rare) < c.Rare {
		out = append(out, assignmentName(rareService))
	}
	for k := 0; len(out) < c.Subscriptions; k++ {
		out = append(out, assignmentName(firstOther+(37*i+k)%(c.Services-firstOther)))
	}
	return out
}

func (c crowd) size() int {
	if c.All {
		return c.Clients + 1
	}
	return c.Clients
}

// clientsOrder is what clients are told: first where to connect, then how many
// resources they will get.
type clientsOrder struct {
	Address string `json:"address,omitempty"`
	Crowd   crowd  `json:"crowd,omitzero"`
	Expect  int    `json:"expect,omitempty"`
}

// clientsAnswer comes when all clients have all that they subscribed to, with
// when they began and ended, then to each Expect at once, empty, and again when as
// many resources are there.
type clientsAnswer struct {
	Began moment `json:"began,omitempty"`
	P50   moment `json:"p50,omitempty"`
	Last  moment `json:"last,omitempty"`
	Error string `json:"error,omitempty"`
}

// xdsClientsCommand is many clients of one xDS server.
func xdsClientsCommand() *cobra.Command {
	return &cobra.Command{Use: "xds-clients", Short: "Be clients of an xDS server", Args: cobra.NoArgs, Hidden: true, RunE: func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
		var c *xdsClients
		for {
			var o clientsOrder
			if err := in.Decode(&o); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			var a clientsAnswer
			var err error
			if c == nil {
				c = newXDSClients(o.Crowd)
				a, err = c.gather(ctx, o.Address)
			} else {
				c.expect(o.Expect)
				if err := out.Encode(a); err != nil {
					return err
				}
				a, err = c.wait(ctx)
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

type xdsClients struct {
	crowd crowd

	mu       sync.Mutex
	expected int // resources that are still to come
	arrivals []arrival
	full     chan struct{}
	failed   chan error
}

func newXDSClients(c crowd) *xdsClients {
	return &xdsClients{crowd: c, full: make(chan struct{}, 1), failed: make(chan error, 1)}
}

type arrival struct {
	at        moment
	resources int
}

// connecting is how many clients connect at once, which bounds the memory that
// the first answers take.
const connecting = 256

// subscribeAtOnce is how many names a client asks for in one request: they fit
// into the window that a server opens first.
const subscribeAtOnce = 1000

// gather connects all and returns when each has all that it subscribed to.
func (c *xdsClients) gather(ctx context.Context, address string) (clientsAnswer, error) {
	turns := make(chan struct{}, connecting)
	ready := make(chan struct{}, c.crowd.size())
	a := clientsAnswer{Began: thisMoment()}
	for i := range c.crowd.size() {
		go func() {
			turns <- struct{}{}
			err := c.run(ctx, address, i, func() {
				<-turns
				ready <- struct{}{}
			})
			if err != nil && ctx.Err() == nil {
				select {
				case c.failed <- fmt.Errorf("client %d: %w", i, err):
				default: // one is enough to know
				}
			}
		}()
	}
	for n := range c.crowd.size() {
		select {
		case <-ready:
		case err := <-c.failed:
			return a, err
		case <-ctx.Done():
			return a, context.Cause(ctx)
		}
		if n == c.crowd.size()/2 {
			a.P50 = thisMoment()
		}
	}
	a.Last = thisMoment()
	return a, nil
}

// run is one client.
func (c *xdsClients) run(ctx context.Context, address string, i int, ready func()) error {
	conn, err := (&net.Dialer{Timeout: time.Minute, KeepAlive: -1}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := openDeltaStream(conn)
	if err != nil {
		return err
	}
	node := &core.Node{Id: nearNode(i).String()}
	var nonce []byte
	receive := func() (n int, at moment, err error) {
		if n, nonce, err = s.receive(nonce); err != nil {
			return 0, 0, err
		}
		at = thisMoment()
		return n, at, s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.EndpointType, ResponseNonce: string(nonce)})
	}
	for names := range slices.Chunk(c.crowd.names(i), subscribeAtOnce) {
		if err := s.send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: resource.EndpointType, ResourceNamesSubscribe: names}); err != nil {
			return err
		}
		for want := len(names); want > 0; {
			n, _, err := receive()
			if err != nil {
				return err
			}
			want -= n
		}
	}
	ready()
	for {
		n, at, err := receive()
		if err != nil {
			return err
		}
		c.arrived(at, n)
	}
}

func (c *xdsClients) arrived(at moment, resources int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrivals = append(c.arrivals, arrival{at, resources})
	before := c.expected
	c.expected -= resources
	if before > 0 && c.expected <= 0 {
		c.full <- struct{}{}
	}
}

func (c *xdsClients) expect(resources int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expected, c.arrivals = resources, c.arrivals[:0]
}

func (c *xdsClients) wait(ctx context.Context) (clientsAnswer, error) {
	select {
	case <-c.full:
	case err := <-c.failed:
		return clientsAnswer{}, err
	case <-ctx.Done():
		return clientsAnswer{}, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.arrivals, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
	n := len(c.arrivals)
	return clientsAnswer{P50: c.arrivals[(n-1)/2].at, Last: c.arrivals[n-1].at}, nil
}
