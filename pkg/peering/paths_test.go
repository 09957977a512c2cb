package peering

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

var answers = []PathAnswer{
	{
		Service: "demo/echo", Port: 80, Address: netip.MustParseAddrPort("10.1.0.5:8080"), Node: "east/n1", Cluster: "east",
		Path: mesh.Direct, Reason: mesh.ReasonLocal, Ready: true,
	},
	{
		Service: "demo/echo", Port: 80, Address: netip.MustParseAddrPort("[fd00::5]:8080"), Node: "west/n1", Cluster: "west",
		Path: mesh.ViaGateway, Reason: mesh.ReasonProbeLost, Detail: "for 3s", Ready: true,
		Gateways: []netip.AddrPort{netip.MustParseAddrPort("192.168.2.9:15443"), netip.MustParseAddrPort("[fd00::9]:15443")},
	},
	{Address: netip.MustParseAddrPort("10.9.0.5:0"), Cluster: "north", Path: mesh.None, Reason: mesh.ReasonNoGateway},
}

func TestPaths(t *testing.T) {
	b := &backend{paths: answers}
	conn, _ := serve(t, authority{}, b)
	got, err := NewAgent(conn, n1, prover{}).Paths(as(t.Context(), n1), "echo.demo:80")
	if err != nil || !reflect.DeepEqual(got, answers) {
		t.Errorf("got %+v, %v", got, err)
	}
	if want := []string{"east/n1 to echo.demo:80"}; !slices.Equal(b.asked, want) {
		t.Errorf("the backend was asked %v", b.asked)
	}
	b.paths = nil
	if got, err := NewAgent(conn, n1, prover{}).Paths(as(t.Context(), n1), "echo.demo"); err != nil || got == nil || len(got) != 0 {
		t.Errorf("no endpoints: %v, %v", got, err)
	}
}

// The text that agent path -o json prints.
func TestPathAnswerJSON(t *testing.T) {
	got, err := json.Marshal(answers)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"service":"demo/echo","port":80,"address":"10.1.0.5:8080","node":"east/n1","cluster":"east","path":"Direct","reason":"local","ready":true},` +
		`{"service":"demo/echo","port":80,"address":"[fd00::5]:8080","node":"west/n1","cluster":"west","path":"Gateway","reason":"probe-lost","detail":"for 3s","gateways":["192.168.2.9:15443","[fd00::9]:15443"],"ready":true},` +
		`{"service":"","port":0,"address":"10.9.0.5:0","node":"","cluster":"north","path":"None","reason":"no-gateway","ready":false}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var again []PathAnswer
	if err := json.Unmarshal(got, &again); err != nil || !reflect.DeepEqual(again, answers) {
		t.Errorf("read again: %+v, %v", again, err)
	}
}

func TestPathsRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		node   mesh.NodeID
		target string
		code   codes.Code
		says   string
	}{
		"nobody asks":             {target: "echo.demo", code: codes.Unauthenticated},
		"a node that has gone":    {node: w1, target: "echo.demo", code: codes.FailedPrecondition},
		"no target":               {node: n1, code: codes.InvalidArgument, says: "want a service, as in echo.demo:80, or a pod's address"},
		"a target without end":    {node: n1, target: strings.Repeat("a", maxTarget+1), code: codes.InvalidArgument, says: "513 bytes"},
		"a service of no cluster": {node: n1, target: "gone", code: codes.NotFound, says: "no cluster has a service gone"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := serve(t, authority{}, &backend{})
			ctx := t.Context()
			if c.node != (mesh.NodeID{}) {
				ctx = as(ctx, c.node)
			}
			got, err := NewAgent(conn, n1, prover{}).Paths(ctx, c.target)
			if got != nil || status.Code(errors.Unwrap(err)) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v, want %v: %s", got, err, c.code, c.says)
			}
		})
	}
}

// A service of many endpoints goes beyond what gRPC takes by default.
func TestPathsOfAHugeService(t *testing.T) {
	b := &backend{}
	for i := range 40_000 {
		a := answers[1]
		a.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 8080)
		a.Node = fmt.Sprintf("west/ip-10-0-%d.eu-central-1.compute.internal", i)
		b.paths = append(b.paths, a)
	}
	size := 0
	for _, a := range b.paths {
		size += proto.Size(a.message())
	}
	if size < 4<<20 {
		t.Fatalf("%d bytes are no test", size)
	}
	conn, _ := serve(t, authority{}, b)
	got, err := NewAgent(conn, n1, prover{}).Paths(as(t.Context(), n1), "echo.demo")
	if err != nil || len(got) != len(b.paths) || got[39_999].Address != b.paths[39_999].Address {
		t.Errorf("%d answers, %v", len(got), err)
	}
}

func TestParsePathAnswerRefuses(t *testing.T) {
	for name, change := range map[string]func(*peeringv1.PathAnswer){
		"a path of the future":    func(m *peeringv1.PathAnswer) { m.Path = "Teleport" },
		"no path":                 func(m *peeringv1.PathAnswer) { m.Path = "" },
		"an address with no port": func(m *peeringv1.PathAnswer) { m.Address = "10.0.0.1" },
		"a gateway with no port":  func(m *peeringv1.PathAnswer) { m.Gateways[0] = "10.0.0.1" },
		"a port that wraps":       func(m *peeringv1.PathAnswer) { m.Port = 65536 + 80 },
	} {
		m := answers[1].message()
		change(m)
		if a, err := parsePathAnswer(m); err == nil {
			t.Errorf("%s reads as %+v", name, a)
		}
	}
}

func FuzzParsePathAnswer(f *testing.F) {
	for _, a := range answers {
		b, err := proto.Marshal(a.message())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m peeringv1.PathAnswer
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		a, err := parsePathAnswer(&m)
		if err != nil {
			return
		}
		again, err := parsePathAnswer(a.message())
		if err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("%+v is read again as %+v (%v)", a, again, err)
		}
	})
}
