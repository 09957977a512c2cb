package view

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// departure is a Catalog, those it tells, and what a client of east has of demo/echo.
type departure struct {
	*testing.T
	c *Catalog
	a *audience
}

func depart(t *testing.T, s *mesh.Service) *departure {
	d := &departure{T: t, c: begun(t, false, s)}
	d.a = attend(t, d.c)
	d.c.SetServices(map[mesh.ServiceName]*mesh.Service{s.Name: s}) // so that they know its names
	for _, v := range views() {
		for _, typeURL := range types {
			d.a.look(v, typeURL, d.a.subscribed(typeURL))
		}
	}
	d.a.since()
	return d
}

// has reads "CDS EDS LDS RDS" of what clients on a node have of a port.
func (d *departure) has(on string, port int) string {
	cluster, listener := fmt.Sprintf("outbound|%d||echo.demo.svc.cluster.local", port), fmt.Sprintf("echo.demo:%d", port)
	var out []string
	for _, x := range [][3]string{
		{"CDS", resource.ClusterType, cluster}, {"EDS", resource.EndpointType, cluster}, {"LDS", resource.ListenerType, listener}, {"RDS", resource.RouteType, cluster},
	} {
		if _, answer := d.c.Lookup(grpcOn(on), x[1], x[2]); answer == xds.Found {
			out = append(out, x[0])
		}
	}
	return strings.Join(out, " ")
}

func (d *departure) expect(what, on string, port int, want string) {
	d.Helper()
	synctest.Wait()
	if got := d.has(on, port); got != want {
		d.Errorf("%s: clients on %s have %q of port %d, want %q", what, on, got, port, want)
	}
}

// types of what was told since it was last called, in order.
func (d *departure) told() string {
	synctest.Wait()
	short := map[string]string{resource.ClusterType: "CDS", resource.EndpointType: "EDS", resource.ListenerType: "LDS", resource.RouteType: "RDS"}
	var out []string
	for _, x := range d.a.since() {
		out = append(out, short[x.typeURL])
	}
	return strings.Join(out, " ")
}

// wait lets time pass.
func wait(d time.Duration) { <-time.NewTimer(d).C }

const everythingOf = "CDS EDS LDS RDS"

// What refers goes first, and what it refers to when clients have acknowledged
// that, or after 30 s.
func TestRemoval(t *testing.T) {
	later := everywhere("echo")
	for i := range later.Parts {
		later.Parts[i] = withPort(later.Parts[i], 81, nil)
	}
	kept := everywhere("echo")
	for i := range kept.Parts {
		kept.Parts[i].Exported = false
	}
	udp := aService("echo", withPort(aPart("east", 1), 81, func(p *mesh.ServicePort) { p.Protocol = mesh.UDP }), later.Parts[1])
	for _, c := range []struct {
		name  string
		next  *mesh.Service // after later; nil: removed
		on    string        // those for whom something goes
		port  int
		other string // what they have of the other port, meanwhile and then
	}{
		{"the service", nil, "east/n1", 81, ""},
		{"a port", everywhere("echo"), "east/n1", 81, everythingOf},
		{"a part, and others stay", aService("echo", later.Parts[0]), "east/n1", 0, everythingOf},
		{"another protocol", udp, "east/n1", 81, everythingOf},
	} {
		for _, patient := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s patient=%t", c.name, patient), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := depart(t, later)
					d.expect("before", c.on, 81, everythingOf)
					settle := d.a.hold()
					begin := time.Now()
					d.c.SetServices(map[mesh.ServiceName]*mesh.Service{name("echo"): c.next})
					if c.port == 0 { // nothing goes
						d.expect("after", c.on, 81, everythingOf)
						return
					}
					d.expect("at once", c.on, c.port, "CDS EDS")
					d.expect("at once, of the other port", c.on, 80, map[bool]string{true: c.other, false: "CDS EDS"}[c.next != nil])
					switch got := d.told(); {
					case c.next == nil && got != "LDS RDS", c.next != nil && got != "CDS EDS LDS RDS":
						t.Errorf("told %s", got)
					}
					if patient {
						settle()
						synctest.Wait()
					} else {
						wait(29 * time.Second)
						d.expect("not yet", c.on, c.port, "CDS EDS")
						wait(2 * time.Second)
					}
					d.expect("then", c.on, c.port, goneOr(c.next, c.port, c.on))
					d.expect("then, of the other port", c.on, 80, c.other)
					if got := d.told(); got != "EDS CDS" {
						t.Errorf("told %s", got)
					}
					if took := time.Since(begin); patient && took != 0 {
						t.Errorf("took %v", took)
					}
					if missed := d.a.missed(); len(d.c.leaving) > 0 || missed != nil {
						t.Errorf("still there: %v; not told of %v", d.c.leaving, missed)
					}
					settle()
				})
			})
		}
	}
}

// goneOr is what is left of a port: nothing, or where its protocol is not TCP any
// more the assignment, which agents can use.
func goneOr(next *mesh.Service, port int, on string) string {
	if next != nil {
		if def := next.Definition(node(on).Cluster, mesh.ScopeMesh, uint16(port)); def != nil {
			return "EDS"
		}
	}
	return ""
}

// A service that is not exported any more leaves the other clusters alone.
func TestRemovalByExport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := depart(t, aService("echo", aPart("west", 1)))
		settle := d.a.hold()
		own := aPart("west", 1)
		own.Exported = false
		sni := fmt.Sprintf(ofGateways, "echo")
		set(d.c, aService("echo", own))
		d.expect("meanwhile", "east/n1", 80, "CDS EDS")
		d.expect("at home", "west/n1", 80, everythingOf)
		if _, answer := d.c.Lookup(gatewayOf("west"), resource.EndpointType, sni); answer != xds.Found {
			t.Errorf("the gateway has %v before its clients are away", answer)
		}
		settle()
		d.expect("then", "east/n1", 80, "")
		d.expect("at home", "west/n1", 80, everythingOf)
		if _, answer := d.c.Lookup(gatewayOf("west"), resource.EndpointType, sni); answer != xds.Missing {
			t.Errorf("the gateway has %v", answer)
		}
		if missed := d.a.missed(); missed != nil {
			t.Errorf("not told of %v", missed)
		}
	})
}

// Gateways admit connections to pods that no longer speak mTLS until their clients
// know it.
func TestRemovalByTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := depart(t, aService("echo", aPart("west", 1)))
		settle := d.a.hold()
		plain := aPart("west", 1)
		plain.Ports = slices.Clone(plain.Ports)
		plain.Ports[0].TLS = false
		set(d.c, aService("echo", plain))
		for _, want := range []xds.Answer{xds.Found, xds.Missing} {
			synctest.Wait()
			for _, typeURL := range []string{resource.ClusterType, resource.EndpointType} {
				if _, answer := d.c.Lookup(gatewayOf("west"), typeURL, fmt.Sprintf(ofGateways, "echo")); answer != want {
					t.Errorf("the gateway has %v, want %v", answer, want)
				}
			}
			settle()
		}
		d.expect("in the end", "east/n1", 80, everythingOf)
	})
}

// A service that comes back while it leaves stays, but for what it had before.
func TestRemovalTakenBack(t *testing.T) {
	two := func() *mesh.Service { return aService("echo", withPort(aPart("east", 1), 81, nil)) }
	for _, c := range []struct {
		name string
		next *mesh.Service
		want string // of port 81, in the end
	}{
		{"the same", two(), everythingOf},
		{"with fewer ports", aService("echo", aPart("east", 1)), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := depart(t, two())
				settle := d.a.hold()
				remove(d.c, "echo")
				d.expect("gone", "east/n1", 80, "CDS EDS")
				set(d.c, c.next)
				d.expect("back", "east/n1", 80, everythingOf)
				d.expect("back", "east/n1", 81, map[bool]string{true: everythingOf, false: "CDS EDS"}[c.want != ""])
				settle()
				d.expect("settled", "east/n1", 80, everythingOf)
				d.expect("settled", "east/n1", 81, c.want)
				if missed := d.a.missed(); missed != nil {
					t.Errorf("not told of %v", missed)
				}
				// And for good.
				remove(d.c, "echo")
				d.expect("removed", "east/n1", 80, "")
				if len(d.c.leaving)+len(d.c.services)+len(d.c.byNode)+len(d.c.byCluster) > 0 {
					t.Errorf("left: %v %v %v", d.c.leaving, d.c.byNode, d.c.byCluster)
				}
			})
		})
	}
}

// Until its clients are away a service follows the mesh.
func TestLeavingFollowsTunnels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := depart(t, everywhere("echo"))
		defer d.a.hold()()
		remove(d.c, "echo")
		k := key{grpcOn("east/n1"), resource.EndpointType, fmt.Sprintf(ofClients, "echo")}
		direct := look(d.c, k)
		d.c.SetReport(node("east/n1"), but(allUp(node("east/n1")), "west/n1", mesh.Down))
		if got := look(d.c, k); got == direct || got.is != xds.Found {
			t.Errorf("still %v", got)
		}
		top := twoClusters()
		top.Gateways = top.Gateways[:1]
		through := look(d.c, k)
		d.c.SetTopology(top)
		if got := look(d.c, k); got == through || got.is != xds.Found {
			t.Errorf("still %v", got)
		}
		if missed := d.a.missed(); missed != nil {
			t.Errorf("not told of %v", missed)
		}
	})
}

// The end of the control plane is not the end of what it serves.
func TestNothingLeavesAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		c := New(ctx, options(false))
		tell(c, everywhere("echo"))
		c.Begin(nil)
		n := &notes{}
		n.gate = make(chan struct{})
		c.Attach(n)
		remove(c, "echo")
		synctest.Wait()
		end()
		synctest.Wait()
		if got := n.take(); slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "LDS") && !strings.HasPrefix(s, "RDS") }) {
			t.Errorf("told %v", got)
		}
	})
}

// Services of a batch leave together: each client is told once of each type.
func TestLeavingTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var services []*mesh.Service
		gone := map[mesh.ServiceName]*mesh.Service{}
		for i := range 50 {
			s := everywhere(fmt.Sprint("s", i))
			services = append(services, s)
			gone[s.Name] = nil
		}
		c := begun(t, false, services...)
		n := &notes{}
		c.Attach(n)
		c.SetServices(gone)
		synctest.Wait()
		if got := n.take(); len(got) != 4 {
			t.Errorf("told %d times", len(got))
		}
		if len(c.leaving)+len(c.services)+len(c.byNode) > 0 {
			t.Error("some are left")
		}
	})
}
