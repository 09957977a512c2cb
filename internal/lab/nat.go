package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rulesTable is the nftables table that the lab keeps in its routers.
const rulesTable = "lab"

// nft opens nftables in the namespace.
func (n *namespace) nft() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(n.ns)))
	if err != nil {
		return nil, fmt.Errorf("open nftables in %s: %w", n.name, err)
	}
	return c, nil
}

// nftError explains an error of a kernel without nftables.
func nftError(what, ns string, err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s in %s: %w (does the kernel have nftables, with nft_masq and nft_chain_nat? try: modprobe nf_tables)", what, ns, err)
	}
	return fmt.Errorf("%s in %s: %w", what, ns, err)
}

func table(c *nftables.Conn) *nftables.Table {
	return c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: rulesTable})
}

// masquerade hides what is behind the router from the core.
func masquerade(router *namespace) error {
	c, err := router.nft()
	if err != nil {
		return err
	}
	t := table(c)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname("core")},
		&expr.Masq{},
	}})
	if err := c.Flush(); err != nil {
		return nftError("set up NAT", router.name, err)
	}
	return nil
}

// masqueradePods gives what pods send to hosts of the underlay the node's own
// address, as every CNI does: the underlay could not answer a pod.
func masqueradePods(node *namespace, pods []netip.Prefix) error {
	c, err := node.nft()
	if err != nil {
		return err
	}
	t := table(c)
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, p := range pods {
		i := slices.IndexFunc(underlay, func(u netip.Prefix) bool { return u.Addr().Is4() == p.Addr().Is4() })
		l := layoutOf(p.Addr())
		exprs := family(l.proto)
		exprs = append(exprs, within(l.source, p)...)
		exprs = append(exprs, within(l.destination, underlay[i])...)
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(exprs, &expr.Masq{})})
	}
	if err := c.Flush(); err != nil {
		return nftError("set up the pods' NAT", node.name, err)
	}
	return nil
}

// layout is where the addresses lie in a packet of a family.
type layout struct {
	proto               byte
	source, destination uint32
}

func layoutOf(a netip.Addr) layout {
	if a.Is4() {
		return layout{unix.NFPROTO_IPV4, 12, 16} // RFC 791, section 3.1
	}
	return layout{unix.NFPROTO_IPV6, 8, 24} // RFC 8200, section 3
}

// within matches an address at an offset that lies in a range.
func within(offset uint32, p netip.Prefix) []expr.Any {
	size := p.Addr().BitLen() / 8
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// ifname pads an interface's name as the kernel compares it.
func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// l4proto matches a transport protocol in both families.
func l4proto(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

// family matches IPv4 or IPv6, which an inet table's offsets depend on.
func family(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}
