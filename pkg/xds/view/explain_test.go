package view

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// explained reads "10.2.1.1:8080 Direct tunnel", a line an endpoint.
func explained(c *Catalog, from, target string) string {
	list, err := c.Explain(node(from), target)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range list {
		line := fmt.Sprintf("%s %v %v %s", e.Addr, e.Node, e.Path.Kind, e.Path.Reason)
		if len(e.Gateways) > 0 {
			line += fmt.Sprint(" ", e.Gateways)
		}
		if e.Terminating {
			line += " terminating"
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestExplain(t *testing.T) {
	kept := aPart("west", 2)
	kept.Exported = false
	home := aPart("east", 1)
	home.Exported = false
	plain := aPart("west", 1)
	plain.Ports[0].TLS = false
	ending := aPart("west", 2)
	ending.Ports[0].Backends[0].Terminating = true
	services := []*mesh.Service{
		everywhere("echo"), aService("kept", kept), aService("home", home, aPart("west", 2)), aService("mixed", aPart("east", 2), plain),
		aService("two", withPort(aPart("west", 1), 81, nil)), aService("ending", ending),
	}
	const local, tunnel = "10.1.1.1:8080 east/n1 Direct local", "10.2.1.1:8080 west/n1 Direct tunnel [203.0.113.2:15443]"
	echo := local + "\n" + tunnel
	for _, c := range []struct {
		from, target, want string
		mcs                bool
	}{
		{"east/n1", "demo/echo", echo, false},
		{"east/n1", "echo.demo", echo, false},
		{"east/n1", "echo.demo:80", echo, false},
		{"east/n1", "echo.demo.svc.clusterset.local:80", echo, false},
		{"east/n1", "outbound|80||echo.demo.svc.cluster.local", echo, false},
		{"west/n2", "demo/echo", "10.1.1.1:8080 east/n1 Direct tunnel [203.0.113.1:15443]\n10.2.1.1:8080 west/n1 Direct local", false},
		{"east/n2", "demo/echo", local + "\n10.2.1.1:8080 west/n1 Gateway probe-lost [203.0.113.2:15443]", false},
		{"east/n1", "demo/kept", "10.2.2.1:8080 west/n2 None not-exported", false},
		{"east/n1", "demo/mixed", "10.1.2.1:8080 east/n2 Direct local\n10.2.1.1:8080 west/n1 None port-mismatch", false},
		{"east/n1", "demo/ending", "10.2.2.1:8080 west/n2 Direct tunnel [203.0.113.2:15443] terminating", false},
		{"east/n1", "demo/two", tunnel + "\n" + tunnel, false},
		{"east/n1", "two.demo:81", tunnel, false},
		// By its address: as what it is of a service, or by itself.
		{"east/n1", "10.2.2.1", "10.2.2.1:8080 west/n2 Direct tunnel [203.0.113.2:15443] terminating\n10.2.2.1:8080 west/n2 Direct tunnel [203.0.113.2:15443]\n10.2.2.1:8080 west/n2 None not-exported", false},
		{"east/n1", "::ffff:10.2.2.77", "10.2.2.77:0 west/n2 Direct tunnel", false},
		{"east/n2", "10.2.1.77", "10.2.1.77:0 west/n1 None no-tls", false},
		{"east/n1", "192.168.2.1", "192.168.2.1:0 west/n1 None no-tls", false},
		{"east/n1", "10.9.9.9", "", false},
		// Under the MCS API a name stands for some of them.
		{"east/n1", "home.demo:80", local, true},
		{"east/n1", "home.demo.svc.clusterset.local:80", "10.1.1.1:8080 east/n1 None not-exported\n10.2.2.1:8080 west/n2 Direct tunnel [203.0.113.2:15443]", true},
		{"east/n1", "demo/nobody", "no cluster has a service demo/nobody that can be served", false},
		{"east/n1", "echo.demo:81", "service demo/echo has no port 81: it has [80]", false},
		{"east/n9", "demo/echo", "there is no node east/n9 in the mesh", false},
	} {
		cat := begun(t, c.mcs, services...)
		cat.SetReport(node("east/n2"), but(allUp(node("east/n2")), "west/n1", mesh.Down))
		if got := explained(cat, c.from, c.target); got != c.want {
			t.Errorf("from %s to %s, mcs=%t:\n%s\nwant\n%s", c.from, c.target, c.mcs, got, c.want)
		}
	}
	for _, strange := range []string{"", "echo", "a/b/c", "echo.demo:x", "outbound|80||", "[::x", strings.Repeat("x", 1000)} {
		if got, err := begun(t, false, services...).Explain(node("east/n1"), strange); err == nil {
			t.Errorf("%.50q: %v", strange, got)
		}
	}
}
