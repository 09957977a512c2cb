package route

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	// filterPriority is that of the filter's chains in their hooks: after a
	// Service's address has become a pod's (-100), before the filters of others (0),
	// which may drop in silence.
	filterPriority = -10
	// filterBuffer holds a transaction of a hundred thousand prefixes, in bytes.
	filterBuffer = 8 << 20
	// elementsEach is how many elements of a set go into one message, whose
	// attributes are of 64 KiB at most.
	elementsEach = 512
)

// filterTable has the interface in its name, so that two agents in one network
// namespace have one each.
func filterTable(o Options) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: "flatmesh-" + o.Link}
}

func filterName(o Options) string { return "nftables table inet " + filterTable(o).Name }

// filterSet holds the refused prefixes of a family as intervals. The ID tells the
// sets of one transaction apart; for want of one the library takes it from a
// counter of the whole process, which nothing guards.
func filterSet(t *nftables.Table, f mesh.Family) *nftables.Set {
	if f == mesh.IPv6 {
		return &nftables.Set{Table: t, Name: "refused6", ID: 6, KeyType: nftables.TypeIP6Addr, Interval: true}
	}
	return &nftables.Set{Table: t, Name: "refused4", ID: 4, KeyType: nftables.TypeIPAddr, Interval: true}
}

// filterChain is a chain of the filter and its rules.
type filterChain struct {
	name  string
	hook  *nftables.ChainHook
	rules [][]expr.Any
}

// filterChains reads, in nft(8)'s language:
//
//	chain forward { type filter hook forward priority -10; oifname != "flatmesh0" return; REFUSE }
//	chain output  { type filter hook output  priority -10; meta mark 0x2030 return; REFUSE }
//
// where REFUSE is, for IPv4 and for IPv6,
//
//	ip daddr @refused4 meta l4proto tcp reject with tcp reset
//	ip daddr @refused4 reject with icmpx port-unreachable
//
// Of all that says "unreachable", "port" alone is an error for a UDP socket that
// has not asked for more (ECONNREFUSED, RFC 1122, section 4.1.3.3), and it is
// what pods know from Services without endpoints.
//
// The output hook shows the interface from before a Service's address became a
// pod's, which may be any. Local packets are told by the mark instead, as the
// rule does that leads them into the interface.
func filterChains(o Options) []filterChain {
	link := make([]byte, unix.IFNAMSIZ)
	copy(link, o.Link)
	mark := binary.NativeEndian.AppendUint32(nil, o.Mark)
	pass := &expr.Verdict{Kind: expr.VerdictReturn}
	forward := []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: link}, pass}
	output := []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark}, pass}
	return []filterChain{
		{"forward", nftables.ChainHookForward, append([][]expr.Any{forward}, refusals()...)},
		{"output", nftables.ChainHookOutput, append([][]expr.Any{output}, refusals()...)},
	}
}

func refusals() (rules [][]expr.Any) {
	for _, f := range mesh.Families {
		proto, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4) // RFC 791, section 3.1
		if f == mesh.IPv6 {
			proto, offset, size = unix.NFPROTO_IPV6, 24, 16 // RFC 8200, section 3
		}
		to := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Lookup{SourceRegister: 1, SetName: filterSet(nil, f).Name},
		}
		rules = append(rules, slices.Concat(to, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		}), slices.Concat(to, []expr.Any{
			&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
		}))
	}
	return rules
}

// nft runs f with nftables open in the calling thread's network namespace.
func nft(ctx context.Context, f func(*nftables.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(boundSocket))
	if err != nil {
		return fmt.Errorf("open nftables: %w", explain(err))
	}
	return errors.Join(f(c), c.CloseLasting())
}

// boundSocket makes room for large transactions, and an end to waiting for an
// answer that was lost.
func boundSocket[C interface {
	SetDeadline(time.Time) error
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
}](c C) error {
	return errors.Join(c.SetDeadline(time.Now().Add(answerTimeout)), c.SetReadBuffer(filterBuffer), c.SetWriteBuffer(filterBuffer))
}

// explain says of an error whether it is for want of a part of the kernel.
func explain(err error) error {
	for _, lack := range []error{
		unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, // no netfilter, no inet tables
		unix.EINVAL, // no nftables behind nfnetlink
		unix.ENOENT, // no such expression
	} {
		if errors.Is(err, lack) {
			return fmt.Errorf("%w: it needs nf_tables, nft_reject and nft_reject_inet (try: modprobe nft_reject_inet): %w", ErrCannotRefuse, err)
		}
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: refusing packets needs CAP_NET_ADMIN", err)
	}
	return err
}

func (t *Table) observeFilter(ctx context.Context) (f filter, err error) {
	err = nft(ctx, func(c *nftables.Conn) error {
		f, err = readFilter(c, t.o)
		return err
	})
	if err != nil {
		return filter{}, fmt.Errorf("read %s: %w", filterName(t.o), err)
	}
	return f, nil
}

func readFilter(c *nftables.Conn, o Options) (filter, error) {
	table := filterTable(o)
	switch _, err := c.ListTableOfFamily(table.Name, table.Family); {
	case errors.Is(err, unix.ENOENT):
		return filter{}, nil
	case err != nil:
		return filter{}, explain(err)
	}
	f := filter{exists: true}
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return filter{}, fmt.Errorf("list chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(h *nftables.Chain) bool { return h.Table.Name != table.Name })
	sets, err := c.GetSets(table)
	if err != nil {
		return filter{}, fmt.Errorf("list sets: %w", err)
	}
	for _, w := range filterChains(o) {
		i := slices.IndexFunc(chains, func(h *nftables.Chain) bool { return h.Name == w.name })
		if i < 0 || !w.is(chains[i]) {
			return f, nil
		}
		rules, err := c.GetRules(table, chains[i])
		if err != nil {
			return filter{}, fmt.Errorf("list rules of chain %s: %w", w.name, err)
		}
		if !slices.EqualFunc(rules, w.rules, func(r *nftables.Rule, exprs []expr.Any) bool { return reflect.DeepEqual(r.Exprs, exprs) }) {
			return f, nil
		}
	}
	for _, family := range mesh.Families {
		w := filterSet(table, family)
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool {
			return s.Name == w.Name && s.KeyType.Name == w.KeyType.Name && s.Interval && !s.HasTimeout
		}) {
			return f, nil
		}
		elements, err := c.GetSetElements(w)
		if err != nil {
			return filter{}, fmt.Errorf("list set %s: %w", w.Name, err)
		}
		prefixes, ok := prefixesOf(elements)
		if !ok {
			return f, nil
		}
		f.refused = append(f.refused, prefixes...)
	}
	f.sound = true
	return f, nil
}

// is reports whether the kernel's chain is hooked as it should be.
func (w filterChain) is(h *nftables.Chain) bool {
	return h.Type == nftables.ChainTypeFilter && h.Hooknum != nil && *h.Hooknum == *w.hook &&
		h.Priority != nil && *h.Priority == filterPriority && h.Policy != nil && *h.Policy == nftables.ChainPolicyAccept
}

func (t *Table) applyFilter(ctx context.Context, change filterChange) error {
	if change.empty() {
		return nil
	}
	err := nft(ctx, func(c *nftables.Conn) error {
		table := filterTable(t.o)
		if change.drop {
			c.DelTable(table)
		}
		if change.create {
			if err := makeFilter(c, table, t.o); err != nil {
				return err
			}
		}
		for _, f := range mesh.Families {
			s := filterSet(table, f)
			for part := range slices.Chunk(elementsOf(change.allow, f), elementsEach) {
				if err := c.SetDeleteElements(s, part); err != nil {
					return err
				}
			}
			for part := range slices.Chunk(elementsOf(change.refuse, f), elementsEach) {
				if err := c.SetAddElements(s, part); err != nil {
					return err
				}
			}
		}
		return flush(c, change.create)
	})
	if err != nil {
		return fmt.Errorf("%v (%s): %w", change, filterName(t.o), err)
	}
	return nil
}

// dropFilter removes the filter, sound or not, and reports whether there was one.
func (t *Table) dropFilter(ctx context.Context) (bool, error) {
	f, err := t.observeFilter(ctx)
	if errors.Is(err, ErrCannotRefuse) || err == nil && !f.exists {
		return false, nil
	}
	if err == nil {
		err = t.applyFilter(ctx, filterChange{drop: true})
	}
	return err == nil, err
}

// tryFilter makes a table like the filter and removes it in the same
// transaction, so that nobody ever sees it.
func (t *Table) tryFilter(ctx context.Context) error {
	table := filterTable(t.o)
	table.Name += "-try"
	err := nft(ctx, func(c *nftables.Conn) error {
		if err := makeFilter(c, table, t.o); err != nil {
			return err
		}
		c.DelTable(table)
		return flush(c, true)
	})
	if err != nil {
		return fmt.Errorf("try to make %s: %w", filterName(t.o), err)
	}
	return nil
}

func makeFilter(c *nftables.Conn, table *nftables.Table, o Options) error {
	c.CreateTable(table)
	for _, f := range mesh.Families {
		if err := c.AddSet(filterSet(table, f), nil); err != nil {
			return err
		}
	}
	for _, w := range filterChains(o) {
		h := c.AddChain(&nftables.Chain{
			Name: w.name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: w.hook, Priority: nftables.ChainPriorityRef(filterPriority),
		})
		for _, exprs := range w.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: h, Exprs: exprs})
		}
	}
	return nil
}

// flush sends the transaction. Only where the filter is made does an error tell
// of what the kernel lacks.
func flush(c *nftables.Conn, made bool) error {
	err := c.Flush()
	if made {
		return explain(err)
	}
	return err
}
