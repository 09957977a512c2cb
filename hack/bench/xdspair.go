package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// xdsPair is an xDS server and its clients, each a process.
type xdsPair struct {
	system          string
	world           world
	crowd           crowd
	server, clients *child
	generation      int
	down            bool // the tunnel that is flipped
	// joined is what it took until all clients were ready.
	joined effort
}

// effort is what one thing took: until the clients in the middle and the last one
// had it, and CPU of the server.
type effort struct {
	p50, last, cpu time.Duration
	// took is how long the call that makes a change took to return.
	took time.Duration
}

// startPair starts a server and connects its clients.
func startPair(ctx context.Context, system string, w world, c crowd) (p *xdsPair, err error) {
	p = &xdsPair{system: system, world: w, crowd: c}
	defer func() {
		if err != nil {
			p.end()
			err = fmt.Errorf("%s: %w", system, err)
		}
	}()
	if p.server, err = startChild(ctx, "xds-server"); err != nil {
		return p, err
	}
	if p.clients, err = startChild(ctx, "xds-clients"); err != nil {
		return p, err
	}
	a, err := p.order(serverOrder{Begin: &serverBegin{System: system, World: w}})
	if err != nil {
		return p, err
	}
	before, err := p.usage(false)
	if err != nil {
		return p, err
	}
	c.Services = w.Services
	if err := p.clients.tell(clientsOrder{Address: a.Address, Crowd: c}); err != nil {
		return p, err
	}
	r, err := p.reached()
	if err != nil {
		return p, err
	}
	if err := pause(ctx, settleTime); err != nil {
		return p, err
	}
	after, err := p.usage(false)
	p.joined = effort{p50: r.P50.sub(r.Began), last: r.Last.sub(r.Began), cpu: after.CPU - before.CPU}
	return p, err
}

func (p *xdsPair) end() {
	for _, c := range []*child{p.clients, p.server} {
		if c != nil {
			c.end()
		}
	}
}

func (p *xdsPair) order(o serverOrder) (a serverAnswer, err error) {
	if err := p.server.tell(o); err != nil {
		return a, err
	}
	if err := p.server.hear(&a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (p *xdsPair) usage(collect bool) (serverUsage, error) {
	a, err := p.order(serverOrder{Usage: &usageOrder{Collect: collect}})
	if err != nil {
		return serverUsage{}, err
	}
	return *a.Usage, nil
}

func (p *xdsPair) reached() (a clientsAnswer, err error) {
	if err := p.clients.hear(&a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// settleTime is how long a server is left alone after the last client has what it
// waits for: the acknowledgements are part of what a change takes.
const settleTime = 150 * time.Millisecond

// push makes changes of a service that so many clients subscribe to, one after
// the other. The CPU is that of all, shared out.
func (p *xdsPair) push(ctx context.Context, service, concerned, times int) ([]effort, error) {
	return p.repeat(ctx, concerned, times, func() serverOrder {
		p.generation++
		return serverOrder{Change: &change{Service: service, Generation: p.generation}}
	})
}

// flip turns a client's tunnel, with so many of its services behind it.
func (p *xdsPair) flip(ctx context.Context, client, concerned, times int) ([]effort, error) {
	return p.repeat(ctx, concerned, times, func() serverOrder {
		p.down = !p.down
		return serverOrder{Flip: &flip{Client: client, Down: p.down}}
	})
}

func (p *xdsPair) repeat(ctx context.Context, concerned, times int, next func() serverOrder) (out []effort, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", p.system, err)
		}
	}()
	before, err := p.usage(false)
	if err != nil {
		return nil, err
	}
	for range times {
		if err := p.clients.tell(clientsOrder{Expect: concerned}); err != nil {
			return nil, err
		}
		if _, err := p.reached(); err != nil {
			return nil, err
		}
		a, err := p.order(next())
		if err != nil {
			return nil, err
		}
		r, err := p.reached()
		if err != nil {
			return nil, err
		}
		out = append(out, effort{p50: r.P50.sub(a.At), last: r.Last.sub(a.At), took: a.Took})
	}
	if err := pause(ctx, settleTime); err != nil {
		return nil, err
	}
	after, err := p.usage(false)
	for i := range out {
		out[i].cpu = (after.CPU - before.CPU) / time.Duration(times)
	}
	return out, err
}
