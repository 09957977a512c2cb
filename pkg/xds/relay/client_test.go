package relay

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

var (
	grpcEDS   = setKey{build.GRPC, resource.EndpointType}
	grpcLDS   = setKey{build.GRPC, resource.ListenerType}
	grpcCDS   = setKey{build.GRPC, resource.ClusterType}
	envoyCDS  = setKey{build.Envoy, resource.ClusterType}
	envoyEDS  = setKey{build.Envoy, resource.EndpointType}
	echoName  = build.ClusterName(80, "echo.demo.svc.cluster.local")
	otherName = build.ClusterName(80, "other.demo.svc.cluster.local")
)

// An unmodified gRPC client, configured by the bootstrap file as it is, follows
// what the control plane says, and refuses nothing.
func TestClientFollows(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	one, two := newBackend(t, "one"), newBackend(t, "two")
	c.service("echo", one.local())
	n.start(c)
	conn := n.dial("echo.demo:80")
	answers(t, conn, "one")
	c.service("echo", two.local())
	answers(t, conn, "two")
	if got := n.refusals(); got != 0 {
		t.Errorf("%d refusals", got)
	}
	// Another name of the service has a listener of its own, the rest is shared.
	answers(t, n.dial("echo.demo.svc.cluster.local:80"), "two")
}

// With the control plane away from the start a new client is served from disk, also
// one of another process than the one that asked first.
func TestClientServedFromDisk(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	one := newBackend(t, "one")
	c.service("echo", one.local())
	n.start(c)
	conn := n.dial("echo.demo:80")
	answers(t, conn, "one")
	conn.Close()
	c.down()
	n.restart(c)
	answers(t, n.dial("echo.demo:80"), "one")
}

// A restart of the relay under a client that runs loses nothing: neither a call nor
// what it changes to afterwards.
func TestClientSurvivesRestart(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	one, two := newBackend(t, "one"), newBackend(t, "two")
	c.service("echo", one.local())
	n.start(c)
	conn := n.dial("echo.demo:80")
	answers(t, conn, "one")

	stop, calls := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				calls <- nil
				return
			default:
			}
			if _, err := call(conn); err != nil {
				calls <- err
				return
			}
		}
	}()
	for range 3 {
		n.restart(c)
		eventually(t, "the client is back", func() bool { return n.relay.Status().Kinds[0].Clients == 1 })
	}
	c.service("echo", two.local())
	answers(t, conn, "two")
	close(stop)
	if err := <-calls; err != nil {
		t.Errorf("a call failed: %v", err)
	}
}

// After a restart of the control plane, and after one of the relay, nothing is sent
// again that has not changed.
func TestResumes(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	one, two := newBackend(t, "one"), newBackend(t, "two")
	c.service("echo", one.local())
	c.service("other", two.local())
	n.start(c)
	answers(t, n.dial("echo.demo:80"), "one")
	answers(t, n.dial("other.demo:80"), "two")
	sent, streams := c.counts()
	if sent != 8 {
		t.Fatalf("%d resources for two names, want the four of each", sent)
	}
	again := func(what string) {
		t.Helper()
		streams++
		c.alone(streams)
		// A change shows that the new stream is in step.
		c.service("echo", build.Assignment{Direct: []build.Direct{
			{Addr: one.addr, Node: self, Reason: mesh.ReasonLocal, Zone: what},
		}})
		sent++
		eventually(t, "the change comes", func() bool {
			r, _ := n.relay.cache.Lookup(string(build.GRPC), resource.EndpointType, echoName)
			a, err := build.ParseEDS(r)
			return err == nil && len(a.Direct) == 1 && a.Direct[0].Zone == what
		})
		if s, k := c.counts(); s != sent || k != streams {
			t.Errorf("%s: %d resources in %d streams, want %d in %d", what, s, k, sent, streams)
		}
	}
	c.down()
	c.up()
	again("control plane")
	n.restart(c)
	again("relay")
	answers(t, n.dial("echo.demo:80"), "one")
}

// What is asked for the first time while the control plane is away is not answered,
// and above all not as missing; it is once the control plane is back.
func TestAskedWhileAway(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	one := newBackend(t, "one")
	c.service("echo", one.local())
	c.down()
	n.start(c)
	conn := n.dial("echo.demo:80")
	conn.Connect()
	eventually(t, "it is asked for", func() bool { return n.relay.Status().Kinds[0].Types[2].Pending == 1 })
	if got := n.answer(grpcLDS, "echo.demo:80"); got != xds.Pending {
		t.Errorf("answered %v", got)
	}
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, echoName, otherName)
	eventually(t, "it is asked for", func() bool { return n.relay.Status().Kinds[0].Types[1].Pending == 2 })
	c.up()
	answers(t, conn, "one")
	// The first thing that the other client hears is the truth about both.
	s.expect("+" + echoName + " -" + otherName)
}

// That a name is missing is remembered, and told to others, until it is there.
func TestMissing(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	n.start(c)
	s := n.openDelta(n.connect(), "grpc-test")
	s.subscribe(grpcEDS.typeURL, echoName)
	s.expect("-" + echoName)
	c.down()
	eventually(t, "the control plane is away", func() bool { return n.relay.Status().Kinds[0].Upstream.State == UpstreamAway })
	other := n.openDelta(n.connect(), "grpc-test")
	other.subscribe(grpcEDS.typeURL, echoName)
	other.expect("-" + echoName)
	c.service("echo", build.Assignment{})
	c.up()
	s.expect("+" + echoName)
	other.expect("+" + echoName)
	c.remove(grpcEDS, echoName)
	s.expect("-" + echoName)

	// Not over a restart: by then it may well be there.
	c.down()
	n.restart(c)
	if got := n.answer(grpcEDS, echoName); got != xds.Pending {
		t.Errorf("after a restart %v", got)
	}
}

// That there is nothing is an answer, once the control plane has given it.
func TestEnvoyWildcardOfNothing(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	c.down()
	n.start(c)
	s := n.openDelta(n.connect(), "envoy")
	s.subscribe(envoyCDS.typeURL)
	n.follows("asked for", envoyCDS, wildcard)
	c.up()
	s.expect("")
	if list, ok := n.relay.cache.Names(string(build.Envoy), envoyCDS.typeURL); !ok || len(list) > 0 {
		t.Errorf("names %v, %v", list, ok)
	}
}

// An Envoy gets everything by wildcard, from disk too, and never a part of it as if
// it were all.
func TestEnvoyWildcard(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	put := c.put(build.Envoy)
	for _, name := range []string{"a", "b"} {
		put(build.CDS(build.Envoy, echoPort(name)))
	}
	a, b, d := echoPort("a").Name(build.Envoy), echoPort("b").Name(build.Envoy), echoPort("d").Name(build.Envoy)
	n.start(c)
	if _, ok := n.relay.cache.Names(string(build.Envoy), envoyCDS.typeURL); ok {
		t.Error("names are known before anything was said")
	}
	s := n.openDelta(n.connect(), "envoy")
	s.subscribe(envoyCDS.typeURL)
	s.expect("+" + a + " +" + b)
	put(build.CDS(build.Envoy, echoPort("d")))
	s.expect("+" + d)
	c.remove(envoyCDS, a)
	s.expect("-" + a)
	// The same view is nobody else's.
	if got := n.answer(grpcCDS, b); got != xds.Pending {
		t.Errorf("to gRPC %v", got)
	}

	c.down()
	n.restart(c)
	s = n.openDelta(n.connect(), "envoy")
	s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: envoyCDS.typeURL, InitialResourceVersions: map[string]string{a: "1"}})
	s.expect("+" + b + " +" + d + " -" + a)
	c.up()
	c.remove(envoyCDS, b)
	s.expect("-" + b)
}
