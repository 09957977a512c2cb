package lab

import (
	"errors"
	"fmt"

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
