package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	echo "github.com/flatmesh/flatmesh/hack/meshecho/report"
	"github.com/flatmesh/flatmesh/internal/lab"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	// noticed is how long it may take until a client acts on what its node knows, or
	// hears that a connection has ended, on a machine that has much else to do.
	noticed = 200 * time.Millisecond
	// unflapped is how long after a cut a tunnel is no longer one that flaps.
	unflapped = 70 * time.Second
)

// trouble is a kind of thing that goes wrong, and how often in a quick run.
type trouble struct {
	name  string
	times int
	cause cause
}

// cause has something happen, and puts it right.
type cause func(*troubled, context.Context) (incident, error)

func troubles() []trouble {
	return []trouble{
		{"tunnel silent both ways, healed", 4, func(t *troubled, ctx context.Context) (incident, error) { return t.silence(ctx, false, t.while()) }},
		{"tunnel silent one way, healed", 2, func(t *troubled, ctx context.Context) (incident, error) { return t.silence(ctx, true, t.while()) }},
		{"tunnel silent while the control plane is away, healed", 2, (*troubled).alone},
		{"agent killed, started again", 2, served(kills(lab.Agent, lab.KindNode))},
		{"agent restarted", 2, served(restarts(lab.Agent, lab.KindNode))},
		{"control plane killed, started again", 2, kills(lab.ControlPlane, lab.KindControlPlane)},
		{"control plane restarted", 2, restarts(lab.ControlPlane, lab.KindControlPlane)},
		{"gateway of two killed, started again", 2, kills(lab.Gateway, lab.KindGateway)},
		{"gateway of two restarted", 2, restarts(lab.Gateway, lab.KindGateway)},
	}
}

// troubled is a mesh that trouble comes to. The seed makes the order the same in
// each run, what is hit and for how long.
type troubled struct {
	*underLoad
	rand *rand.Rand
	cuts map[pair]time.Time
}

func newTroubled(u *underLoad) *troubled {
	return &troubled{u, rand.New(rand.NewPCG(1, 1)), map[pair]time.Time{}}
}

// while is how long something stays wrong.
func (t *troubled) while() time.Duration {
	return time.Second + time.Duration(t.rand.Int64N(int64(5*time.Second)))
}

// incident is what was done, and what it excuses.
type incident struct {
	what string
	// began is before the first command.
	began time.Time
	// lost is, by client, what went with it.
	lost map[string]loss
	// silent is set where a tunnel was cut, a client each.
	silent []silence
	// served is how long after its start an agent served all of its clients again;
	// 0 where there are none.
	served time.Duration
}

// loss excuses calls that went to an address and began before a time.
type loss struct {
	addr   netip.Addr
	before time.Time
}

// excuses reports whether a failed call went down with what was done: it was on it,
// and nobody could know better when it began.
func (i incident) excuses(client string, c echo.Call) bool {
	l, ok := i.lost[client]
	return ok && peerOfCall(c) == l.addr && c.Start.Before(l.before) && endOfCall(c).After(i.began)
}

// silence is a tunnel that was cut, as a client on it saw it.
type silence struct {
	user
	// cut is when it was for certain; down, when the client's node judged so;
	// healed is before it was healed.
	cut, down, healed time.Time
}

// kills returns what kills a process of some host, and starts it again a while
// later.
func kills(process string, kind lab.Kind) cause {
	return func(t *troubled, ctx context.Context) (incident, error) {
		host := t.oneOf(kind)
		i := incident{what: host, began: time.Now()}
		if err := t.lab.Kill(ctx, process, host); err != nil {
			return i, err
		}
		if kind == lab.KindGateway {
			i.lost = map[string]loss{}
			for _, c := range t.callers {
				i.lost[c.host] = loss{t.hosts[host].Addresses[0], time.Now().Add(noticed)}
			}
		}
		if err := pause(ctx, t.while()); err != nil {
			return i, err
		}
		return i, t.lab.Restart(ctx, process, host)
	}
}

// restarts returns what asks a process of some host to end, and starts it again.
func restarts(process string, kind lab.Kind) cause {
	return func(t *troubled, ctx context.Context) (incident, error) {
		i := incident{what: t.oneOf(kind), began: time.Now()}
		return i, t.lab.Restart(ctx, process, i.what)
	}
}

// served adds to what happens to an agent how long its clients do without it: they
// come back at turns of their own.
func served(f cause) cause {
	return func(t *troubled, ctx context.Context) (incident, error) {
		i, err := f(t, ctx)
		node := nodeID(i.what)
		if want := t.callersOn(node); err == nil && want > 0 {
			began := time.Now()
			err = until(ctx, askEvery, wholeTime, i.what+" to serve its clients", func() (bool, error) {
				s, err := agentStatus(ctx, t.lab, node)
				return err == nil && streams(s) >= want, err
			})
			i.served = time.Since(began)
		}
		return i, err
	}
}

func (t *troubled) oneOf(k lab.Kind) string {
	all := t.named(k)
	return all[t.rand.IntN(len(all))]
}

// silence cuts a tunnel that clients use, for at least so long as it takes them to
// go through the gateway.
func (t *troubled) silence(ctx context.Context, oneWay bool, long time.Duration) (i incident, err error) {
	p := t.pair()
	a, b := p.a.String(), p.b.String()
	if t.rand.IntN(2) == 0 {
		a, b = b, a
	}
	i = incident{what: p.String(), lost: map[string]loss{}, began: time.Now()}
	if err := t.lab.Cut(ctx, a, b, oneWay); err != nil {
		return i, err
	}
	cut := time.Now()
	for _, user := range t.over(p) {
		s := silence{user: user, cut: cut}
		if err := until(ctx, askEvery, tolerance, user.host+" to reach a pod by the gateway of "+user.far.Cluster, func() (bool, error) {
			return slices.ContainsFunc(user.since(cut), s.instead), nil
		}); err != nil {
			return i, err
		}
		if err := until(ctx, askEvery, tolerance, fmt.Sprintf("%v to judge its tunnel to %v", user.node, user.far), func() (bool, error) {
			st, err := agentStatus(ctx, t.lab, user.node)
			if err != nil {
				return false, err
			}
			peer, err := peerOf(st, user.far)
			s.down = peer.Since
			return err == nil && peer.State == mesh.Down, err
		}); err != nil {
			return i, err
		}
		i.silent = append(i.silent, s)
		i.lost[user.host] = loss{user.addr, s.down.Add(noticed)}
	}
	if err := pause(ctx, time.Until(i.began.Add(long))); err != nil {
		return i, err
	}
	for n := range i.silent {
		i.silent[n].healed = time.Now()
	}
	return i, t.lab.Heal(ctx, a, b, oneWay)
}

// alone cuts a tunnel while no control plane could say so.
func (t *troubled) alone(ctx context.Context) (incident, error) {
	if err := t.lab.Kill(ctx, lab.ControlPlane, ""); err != nil {
		return incident{}, err
	}
	i, err := t.silence(ctx, false, t.while())
	if err != nil {
		return i, err
	}
	return i, t.lab.Restart(ctx, lab.ControlPlane, "")
}

// instead reports whether a call was answered through the gateway that stands in
// for the tunnel.
func (s silence) instead(c echo.Call) bool {
	return c.OK && c.Via == echo.Gateway && c.Cluster == s.far.Cluster
}

// pair draws a tunnel. One that was cut lately would, by design, take longer to be
// Up again.
func (t *troubled) pair() pair {
	all := t.pairs()
	rested := slices.DeleteFunc(slices.Clone(all), func(p pair) bool { return time.Since(t.cuts[p]) < unflapped })
	if len(rested) == 0 {
		rested = []pair{slices.MinFunc(all, func(p, q pair) int { return t.cuts[p].Compare(t.cuts[q]) })}
	}
	p := rested[t.rand.IntN(len(rested))]
	t.cuts[p] = time.Now()
	return p
}
