package relay

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// A service is explained by any of its names, a pod by its address, and what this
// node demoted is told from what the control plane decided.
func TestExplain(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	addr := netip.MustParseAddrPort
	a := acrossTunnel(addr("127.0.1.1:8080"), addr("127.0.1.2:15443"))
	a.Direct = append(a.Direct, build.Direct{Addr: addr("127.0.1.3:8080"), Node: self, Zone: "z1", Reason: mesh.ReasonLocal})
	a.Remote[0].Pods = 2
	c.service("echo", a)
	c.service("other", build.Assignment{})
	r := n.start(c)
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, echoName, otherName, build.ClusterName(81, "echo.demo.svc.cluster.local"))
	s.recv()

	show := func(target string) string {
		t.Helper()
		x, err := r.Explain(target)
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		b, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const (
		head   = `{"kind":"grpc","name":"outbound|80||echo.demo.svc.cluster.local","service":"demo/echo","port":80,"clients":1,"answer":"found","endpoints":[`
		local  = `{"address":"127.0.1.3:8080","node":"east/n1","zone":"z1","reason":"local","demoted":false}`
		remote = `{"address":"127.0.1.1:8080","node":"west/w1","reason":"tunnel","demoted":`
		direct = head + remote + `false},` + local + `],"gateways":[{"cluster":"west","pods":2,"serving":["127.0.1.2:15443"],"standby":false,"standbyAddresses":null}]}`
		moved  = head + remote + `true},` + local + `],"gateways":[{"cluster":"west","pods":3,"serving":["127.0.1.2:15443"],"standby":false,"standbyAddresses":null}]}`
		absent = `{"kind":"grpc","name":"outbound|81||echo.demo.svc.cluster.local","service":"demo/echo","port":81,"clients":1,"answer":"missing","endpoints":[],"gateways":[]}`
	)
	for target, want := range map[string]string{
		"demo/echo":                      "[" + direct + "," + absent + "]",
		"echo.demo":                      "[" + direct + "," + absent + "]",
		"echo.demo:80":                   "[" + direct + "]",
		"echo.demo.svc.clusterset.local": "[" + direct + "," + absent + "]",
		echoName:                         "[" + direct + "]",
		"127.0.1.1":                      "[" + direct + "]",
		"127.0.1.9":                      "[]",
		"demo/nobody-asked":              "null",
	} {
		if got := show(target); got != want {
			t.Errorf("%s:\n got %s\nwant %s", target, got, want)
		}
	}
	r.SetDown(map[mesh.NodeID]bool{west: true})
	if got := show("echo.demo:80"); got != "["+moved+"]" {
		t.Errorf("demoted:\n got %s\nwant %s", got, "["+moved+"]")
	}
	for _, bad := range []string{"", "echo", "a/b/c", "echo.demo:0"} {
		if x, err := r.Explain(bad); err == nil {
			t.Errorf("%q: %v", bad, x)
		}
	}
}
