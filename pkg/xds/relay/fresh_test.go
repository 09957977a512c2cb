package relay

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// What a client was ever answered is on disk before it is: an agent that is killed
// the moment after serves it again.
func TestAnsweredIsKept(t *testing.T) {
	c, n := newControlPlane(t), newNode(t)
	pod := newBackend(t, "pod")
	c.service("echo", pod.local())
	n.start(c)
	answers(t, n.dial("echo.demo:80"), "pod")

	// As a crash would leave it: a copy of what is there now, without a last save.
	b, err := os.ReadFile(n.opts.CacheFile)
	if err != nil {
		t.Fatal(err)
	}
	o := n.opts
	o.Dir, o.CacheFile = t.TempDir(), filepath.Join(t.TempDir(), "relay.json")
	if err := os.WriteFile(o.CacheFile, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	p := echoPort("echo")
	for typeURL, name := range map[string]string{
		resource.ListenerType: "echo.demo:80", resource.RouteType: p.Name(build.GRPC),
		resource.ClusterType: p.Name(build.GRPC), resource.EndpointType: p.Name(build.GRPC),
	} {
		if _, answer := r.cache.Lookup(string(build.GRPC), typeURL, name); answer != xds.Found {
			t.Errorf("%s %s: %v", typeURL, name, answer)
		}
	}
}
