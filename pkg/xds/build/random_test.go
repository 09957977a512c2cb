package build

import (
	"fmt"
	"net/netip"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// choices turns a fuzzer's bytes into small numbers; where they end all are 0.
type choices struct{ b []byte }

func (c *choices) next(n int) int {
	if len(c.b) == 0 {
		return 0
	}
	v := int(c.b[0]) % n
	c.b = c.b[1:]
	return v
}

func pick[T any](c *choices, from ...T) T { return from[c.next(len(from))] }

// addr picks from few, so that they meet.
func (c *choices) addr() netip.AddrPort {
	ip := pick(c,
		netip.AddrFrom4([4]byte{10, 0, 0, byte(c.next(24))}), netip.AddrFrom4([4]byte{10, 0, 0, byte(c.next(24))}),
		netip.MustParseAddr(fmt.Sprintf("fd00::%x", c.next(16))), netip.MustParseAddr(fmt.Sprintf("::ffff:10.0.0.%d", c.next(8))),
		netip.IPv4Unspecified(), netip.Addr{}, netip.MustParseAddr("fe80::1%eth0"), netip.IPv6Unspecified(),
	)
	return netip.AddrPortFrom(ip, pick[uint16](c, 80, 80, 8080, 65535, 0))
}

func (c *choices) addrs() (out []netip.AddrPort) {
	for range c.next(6) {
		out = append(out, c.addr())
	}
	return out
}

// assignment makes one that a caller could get wrong in any way: doubles,
// addresses of no use, gaps between levels, contradictions.
func (c *choices) assignment() Assignment {
	a := Assignment{Name: "outbound|80||echo.demo.svc.cluster.local", GatewayPriority: pick[uint8](c, 0, 0, 1, 2, 255)}
	for range c.next(24) {
		a.Direct = append(a.Direct, Direct{
			Addr: c.addr(), Node: mesh.NodeID{Cluster: pick(c, "east", "west", "north"), Name: pick(c, "n1", "n2", "n3", "")},
			Region: pick(c, "", "r1", "r2"), Zone: pick(c, "", "z1", "z2"),
			Reason:   pick(c, mesh.ReasonTunnel, mesh.ReasonTunnel, mesh.ReasonLocal, mesh.ReasonNative),
			Priority: pick[uint8](c, 0, 0, 0, 1, 2, 200, 255),
		})
	}
	for _, cluster := range []string{"west", "south", "north", "east"} {
		if c.next(3) == 0 {
			continue
		}
		a.Remote = append(a.Remote, Remote{
			Cluster: cluster, Pods: pick(c, 0, 0, 1, 2, 3, 7, 100_000, -1, 1<<40), Standby: c.next(2) == 1,
			Serving: c.addrs(), StandbyAddrs: c.addrs(), Reason: pick(c, "", mesh.ReasonNoTLS, mesh.ReasonGatewayUnroutable),
		})
	}
	return a
}
