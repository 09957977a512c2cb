package controlplane

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// A node gets certificates for the service accounts of the very pods that its
// source says run on it, and for no others.
func TestWorkload(t *testing.T) {
	p := twoClusters(t)
	svc := &service{loop: p.loop}
	ask := func(node, pod, uid string) (string, error) {
		defer p.background()()
		return svc.Workload(t.Context(), id(node), "demo", pod, uid)
	}
	expectRefusal := func(what, node, pod, uid string, code codes.Code, says string) {
		t.Helper()
		account, err := ask(node, pod, uid)
		if expect(t, err, code, says); account != "" {
			t.Errorf("%s: the account %s", what, account)
		}
	}
	p.clusters["east"].spoken = false
	expectRefusal("before the source was read", "east/n1", "a", "a-uid", codes.Unavailable, "not read the source of cluster east yet")
	p.say("A", true, "pod a@n1, pod b@n2, pod pending")
	if account, err := ask("east/n1", "a", "a-uid"); err != nil || account != "a-account" {
		t.Errorf("got %q, %v", account, err)
	}
	expectRefusal("on another node", "east/n1", "b", "b-uid", codes.PermissionDenied, "runs on node n2, not on n1")
	expectRefusal("of that name in another cluster", "west/n1", "a", "a-uid", codes.NotFound, "no pod demo/a in the source of cluster west")
	expectRefusal("on no node yet", "east/n1", "pending", "pending-uid", codes.PermissionDenied, "not on n1")
	expectRefusal("an earlier one of the name", "east/n1", "a", "old-uid", codes.FailedPrecondition, `has the UID "a-uid", not "old-uid"`)
	expectRefusal("without a UID", "east/n1", "a", "", codes.FailedPrecondition, "it is another pod of the name")
	expectRefusal("that there is not", "east/n1", "x", "x-uid", codes.NotFound, "no pod demo/x")
	expectRefusal("of a node that there is not", "east/n9", "a", "a-uid", codes.FailedPrecondition, "not in A")
	expectRefusal("of a cluster that there is not", "north/n1", "a", "a-uid", codes.FailedPrecondition, "declare it first")
	p.say("A", false, "pod a@n2")
	expectRefusal("that has moved", "east/n1", "a", "a-uid", codes.PermissionDenied, "runs on node n2")
	p.say("A", false, "-pod a")
	expectRefusal("that is gone", "east/n2", "a", "a-uid", codes.NotFound, "no pod demo/a")
}

func TestKnownGateway(t *testing.T) {
	p := twoClusters(t)
	svc := &service{loop: p.loop}
	known := func(cluster string) error {
		defer p.background()()
		return svc.KnownGateway(t.Context(), cluster, "gw")
	}
	if err := known("east"); err != nil {
		t.Error(err)
	}
	expect(t, known("north"), codes.FailedPrecondition, "declare it first")
	q := newPlane(t)
	svc, p = &service{loop: q.loop}, q
	expect(t, known("east"), codes.Unavailable, "not read its sources")
}

func TestPathAnswers(t *testing.T) {
	p := twoClusters(t)
	p.say("A", false, "service a, slice a=1")
	svc := &service{loop: p.loop}
	got, err := svc.Paths(t.Context(), id("east/n1"), "a.demo:80")
	if err != nil || len(got) != 1 || got[0].Path != mesh.Direct || got[0].Service != "demo/a" || got[0].Node != "east/n1" || !got[0].Ready {
		t.Errorf("got %+v, %v", got, err)
	}
	// Not direct, and nothing can stand in: both reasons are said.
	got, err = svc.Paths(t.Context(), id("west/n1"), "demo/a")
	if err != nil || len(got) != 1 || got[0].Path != mesh.None || got[0].Reason != mesh.ReasonNoTLS || got[0].Detail != "not direct because of no-agent" {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = svc.Paths(t.Context(), id("east/n1"), "demo/x")
	expect(t, err, codes.NotFound, "no cluster has a service demo/x")
}

// Who is at the other end decides what is seen, whatever it says of itself.
func TestViews(t *testing.T) {
	said := func(kind string) *core.Node {
		return &core.Node{Id: "east/n9", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{kindKey: structpb.NewStringValue(kind)}}}
	}
	node := id("east/n1")
	for _, c := range []struct {
		said *core.Node
		typ  string
		want string
	}{
		{&core.Node{}, resource.EndpointType, "grpc|east/n1"},
		{said("grpc"), resource.ListenerType, "grpc|east/n1"},
		{said("envoy"), resource.ClusterType, "envoy|east/n1"},
		{said("envoy"), resource.SecretType, "envoy|east/n1"},
		{said("gateway"), resource.RouteType, "grpc|east/n1"},
		{said("envoy"), xds.PeerType, "east"},
		{said("envoy"), xds.ClusterConfigType, "east"},
		{said("envoy"), xds.NodeConfigType, "east/n1"},
		{said("envoy"), xds.PodsType, "east/n1"},
		{said("envoy"), "type.googleapis.com/unheard.of", ""},
	} {
		if got, ok := viewOfClient(node, c.said, c.typ); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, want %q", c.typ, got, c.want)
		}
	}
	for typeURL, want := range map[string]string{
		resource.EndpointType: "gateway|east/", resource.ClusterType: "gateway|east/", resource.ListenerType: "gateway|east/",
		resource.RouteType: "", resource.SecretType: "", xds.PeerType: "", xds.NodeConfigType: "", xds.PodsType: "", xds.ClusterConfigType: "",
	} {
		if got, ok := viewOfGateway("east", typeURL); got != want || ok != (want != "") {
			t.Errorf("gateway, %s: %q, want %q", typeURL, got, want)
		}
	}
}

// A gateway's stream counts as long as it lasts, and its addresses must be such
// that clients could reach them.
func TestGatewayStreams(t *testing.T) {
	p := newGateways(t)
	svc := &service{loop: p.loop, expiry: far}
	stop := p.background()
	defer func() { stop() }()
	streams := func(name string) (n int, addrs string) {
		_ = p.do(t.Context(), func(l *loop) error {
			if s := l.gatewayStates[gatewayID{"east", name}]; s != nil {
				n = s.streams
				for _, a := range s.addrs {
					addrs += " " + a.String()
				}
			}
			return nil
		})
		return n, strings.TrimSpace(addrs)
	}
	in := func(addrs ...string) context.Context {
		md := metadata.MD{}
		md.Append(addressKey, addrs...)
		return metadata.NewIncomingContext(t.Context(), md)
	}
	client, ctx, release, err := svc.identifyGateway(in(at1, "fd00::1"), gatewayID{"east", "p"})
	if err != nil {
		t.Fatal(err)
	}
	if n, addrs := streams("p"); n != 1 || addrs != at1+" fd00::1" || client.Name != "gateway east/p" {
		t.Errorf("%d streams at %s of %s", n, addrs, client.Name)
	}
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > time.Hour {
		t.Error("the stream outlives the certificate")
	}
	release()
	if n, _ := streams("p"); n != 0 || ctx.Err() == nil {
		t.Errorf("%d streams, %v", n, ctx.Err())
	}
	many := make([]string, maxGatewayAddrs+1)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}).String()
	}
	for _, bad := range [][]string{{"nonsense"}, {""}, {"127.0.0.1"}, {"::"}, {"fe80::1%eth0"}, {at1, "224.0.0.1"}, many} {
		_, _, _, err := svc.identifyGateway(in(bad...), gatewayID{"east", "q"})
		expect(t, err, codes.InvalidArgument, "not one that clients could reach")
	}
	_, _, _, err = svc.identifyGateway(in(at1), gatewayID{"north", "q"})
	expect(t, err, codes.FailedPrecondition, "declare it first")
	if n, addrs := streams("q"); n != 0 || addrs != "" {
		t.Errorf("what was refused counts: %d streams at %s", n, addrs)
	}
}
