package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Direction is a way through the underlay from one node or gateway to another.
type Direction struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// comment marks the rules of a cut; they are found again by it alone.
func (d Direction) comment() string { return "cut " + d.From + " " + d.To }

func (d Direction) back() Direction { return Direction{d.To, d.From} }

func parseComment(s string) (Direction, bool) {
	f := strings.Fields(s)
	if len(f) != 3 || f[0] != "cut" {
		return Direction{}, false
	}
	return Direction{f[1], f[2]}, true
}

// site is a host of the underlay between which cuts are.
type site struct {
	name    string
	cluster *clusterState
	addrs   []netip.Addr
	gateway bool
}

func (n node) site() site { return site{n.id().String(), n.cluster, n.addrs(), false} }

func (s *state) site(name string) (site, error) {
	if strings.HasPrefix(name, string(KindGateway)+"/") {
		g, err := s.gateway(name)
		if err != nil {
			return site{}, err
		}
		return site{g.host(), g.cluster, g.addrs(), true}, nil
	}
	n, err := s.node(name)
	if err != nil {
		return site{}, err
	}
	return n.site(), nil
}

// Cut drops packets between a and b in the underlay; with oneWay only those from
// a to b. Between two nodes (CLUSTER/NODE) it drops UDP, and so their tunnel; with
// a gateway (gateway/CLUSTER/NAME), everything. What is cut already stays cut. The
// rules are in a router, so they outlive agents.
func (l *Lab) Cut(ctx context.Context, a, b string, oneWay bool) error {
	return l.faults(ctx, a, b, oneWay, func(f *forward, d Direction, from, to site) {
		if len(f.rules[d]) == 0 {
			f.drop(d, from, to)
		}
	})
}

// Heal takes back what Cut did between a and b, with oneWay only from a to b.
// Healing what is not cut is no error.
func (l *Lab) Heal(ctx context.Context, a, b string, oneWay bool) error {
	return l.faults(ctx, a, b, oneWay, func(f *forward, d Direction, _, _ site) { f.restore(d) })
}

func (l *Lab) faults(ctx context.Context, a, b string, oneWay bool, change func(*forward, Direction, site, site)) error {
	return l.change(ctx, func(s *state) error {
		from, err := s.site(a)
		if err != nil {
			return err
		}
		to, err := s.site(b)
		if err != nil {
			return err
		}
		router, err := cutAt(from, to)
		if err != nil {
			return err
		}
		f, err := openForward(s.router(router.cluster).Namespace)
		if err != nil {
			return err
		}
		defer f.ns.close()
		d := Direction{from.name, to.name}
		change(f, d, from, to)
		if !oneWay {
			change(f, d.back(), to, from)
		}
		return f.flush()
	})
}

// cutAt says in whose router to drop, the same for both directions, so that heal
// finds what cut did. All packets between the two pass both routers, but beyond
// a NAT a node's own address is not to be seen.
func cutAt(a, b site) (site, error) {
	switch {
	case a.name == b.name:
		return site{}, fmt.Errorf("%s and %s are the same host", a.name, b.name)
	case a.cluster.NAT && b.cluster.NAT && a.cluster != b.cluster:
		return site{}, fmt.Errorf("%s and %s are each behind a NAT: no router sees the addresses of both, so there is no telling which packets are theirs", a.name, b.name)
	case a.cluster.NAT:
		return a, nil
	case b.cluster.NAT || b.name < a.name:
		return b, nil
	default:
		return a, nil
	}
}

// forward is the forward chain of a router with the cuts in it.
type forward struct {
	ns    *namespace
	conn  *nftables.Conn
	chain *nftables.Chain
	rules map[Direction][]*nftables.Rule
}

func openForward(router string) (*forward, error) {
	ns, err := openNamespace(router)
	if err != nil {
		return nil, err
	}
	f := &forward{ns: ns, rules: map[Direction][]*nftables.Rule{}}
	if f.conn, err = ns.nft(); err != nil {
		ns.close()
		return nil, err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: rulesTable}
	f.chain = &nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	}
	rules, err := f.conn.GetRules(t, f.chain)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		ns.close()
		return nil, nftError("read the cuts", router, err)
	}
	for _, r := range rules {
		if s, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok {
			if d, ok := parseComment(s); ok {
				f.rules[d] = append(f.rules[d], r)
			}
		}
	}
	return f, nil
}

// drop adds a rule for each family that the two share.
func (f *forward) drop(d Direction, from, to site) {
	table(f.conn)
	f.conn.AddChain(f.chain)
	for _, src := range from.addrs {
		i := slices.IndexFunc(to.addrs, func(a netip.Addr) bool { return a.Is4() == src.Is4() })
		if i < 0 {
			continue
		}
		l := layoutOf(src)
		exprs := family(l.proto)
		if !from.gateway && !to.gateway {
			exprs = append(exprs, l4proto(unix.IPPROTO_UDP)...)
		}
		exprs = append(exprs, within(l.source, mesh.HostPrefix(src))...)
		exprs = append(exprs, within(l.destination, mesh.HostPrefix(to.addrs[i]))...)
		exprs = append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
		f.conn.AddRule(&nftables.Rule{
			Table: f.chain.Table, Chain: f.chain, Exprs: exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, d.comment()),
		})
	}
}

func (f *forward) restore(d Direction) {
	for _, r := range f.rules[d] {
		// It cannot fail for a rule that was read with its handle.
		_ = f.conn.DelRule(r)
	}
}

func (f *forward) flush() error {
	if err := f.conn.Flush(); err != nil {
		return nftError("change the cuts", f.ns.name, err)
	}
	return nil
}

// Cuts lists what is cut, sorted.
func (l *Lab) Cuts() ([]Direction, error) {
	s, err := loadState(l.name)
	if err != nil {
		return nil, err
	}
	var ds []Direction
	for _, h := range s.hosts() {
		if h.Kind != KindRouter {
			continue
		}
		f, err := openForward(h.Namespace)
		if err != nil {
			return nil, err
		}
		for d := range f.rules {
			ds = append(ds, d)
		}
		f.ns.close()
	}
	slices.SortFunc(ds, func(a, b Direction) int { return strings.Compare(a.comment(), b.comment()) })
	return ds, nil
}

// healAll takes back every cut of a node or gateway that is going: its successor
// of the same name starts whole.
func (s *state) healAll(name string) error {
	var errs []error
	for _, h := range s.hosts() {
		if h.Kind != KindRouter {
			continue
		}
		f, err := openForward(h.Namespace)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for d := range f.rules {
			if d.From == name || d.To == name {
				f.restore(d)
			}
		}
		errs = append(errs, f.flush())
		f.ns.close()
	}
	return errors.Join(errs...)
}
