package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

func resources(t *testing.T, in ...any) (out []*discovery.Resource) {
	t.Helper()
	for _, v := range in {
		var r *discovery.Resource
		var err error
		switch v := v.(type) {
		case mesh.Peer:
			r, err = xds.PeerResource(v)
		case mesh.NodeConfig:
			r, err = xds.NodeConfigResource(v)
		case mesh.ClusterConfig:
			r, err = xds.ClusterConfigResource(v)
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// told is a mirror that has been told everything of testInputs.
func told(t *testing.T, path string) (*mirror, inputs) {
	t.Helper()
	in, west, north := testInputs(t)
	m, err := openMirror(path, in.view.node.Node, in.key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []xds.Update{
		{TypeURL: xds.NodeConfigType, Resources: resources(t, in.view.node)},
		{TypeURL: xds.ClusterConfigType, Resources: resources(t, in.view.cluster)},
		{TypeURL: xds.PeerType, Resources: resources(t, west, north)},
	} {
		if _, complete := m.view(); complete {
			t.Fatal("complete before everything was told")
		}
		if err := m.apply(u); err != nil {
			t.Fatal(err)
		}
	}
	return m, in
}

func TestMirrorSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	m, in := told(t, path)
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	again, err := openMirror(path, in.view.node.Node, in.key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	v, complete := again.view()
	if !complete || len(v.peers) != 2 || !v.peers[1].Equal(in.view.peers[1]) {
		t.Fatalf("after a restart: complete %v, peers %+v", complete, v.peers)
	}
	for i, s := range again.subscriptions() {
		if len(s.Versions) != []int{1, 1, 2}[i] {
			t.Errorf("%s is not resumed: %v", s.TypeURL, s.Versions)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
}

func TestMirrorSetsAside(t *testing.T) {
	for name, content := range map[string]string{
		"truncated":  `{"format":1,"node":"east/n1","peers":{`,
		"empty":      ``,
		"incomplete": `{}`,
		"other node": `{"format":1,"node":"east/n2","peers":{}}`,
		"bad value":  `{"format":1,"node":"east/n1","peers":{"west/n1":{"version":"1","value":{"prefixes":["10.0.0.0/99"]}}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "peers.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := openMirror(path, nodeID(t, "east/n1"), mesh.PublicKey{1})
			var corrupt *corruptError
			if !errors.As(err, &corrupt) || m == nil {
				t.Fatalf("got %v, %v, want an empty mirror and a corruptError", m, err)
			}
			if b, err := os.ReadFile(corrupt.setAside); err != nil || string(b) != content {
				t.Errorf("what was set aside is lost: %q, %v", b, err)
			}
			if _, complete := m.view(); complete {
				t.Error("an empty mirror says that it is complete")
			}
		})
	}
}

func TestMirrorRefusesNewerFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	if err := os.WriteFile(path, []byte(`{"format":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := openMirror(path, nodeID(t, "east/n1"), mesh.PublicKey{1}); m != nil || err == nil || !strings.Contains(err.Error(), "format 2") {
		t.Fatalf("got %v, %v", m, err)
	}
}

func TestMirrorRefusesWhole(t *testing.T) {
	m, in := told(t, filepath.Join(t.TempDir(), "peers.json"))
	before, _ := m.view()
	good := mesh.Peer{Node: nodeID(t, "west/n9"), Key: key(t).PublicKey(), TunnelAddrs: addrs("198.19.0.9")}
	bad := resources(t, good)[0]
	bad.Name = "west/n8"
	for name, u := range map[string]xds.Update{
		"one of two is bad":  {TypeURL: xds.PeerType, Resources: append(resources(t, good), bad)},
		"not asked for":      {TypeURL: "type.googleapis.com/other", Resources: resources(t, good)},
		"another node's own": {TypeURL: xds.NodeConfigType, Resources: resources(t, mesh.NodeConfig{Node: nodeID(t, "east/n2")})},
		"another cluster's":  {TypeURL: xds.ClusterConfigType, Resources: resources(t, mesh.ClusterConfig{Cluster: "west"})},
	} {
		if err := m.apply(u); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	after, _ := m.view()
	if len(after.peers) != len(before.peers) || after.node.Node != in.view.node.Node {
		t.Errorf("a refused response changed the mirror: %+v", after)
	}
}

func TestMirrorRemoves(t *testing.T) {
	m, _ := told(t, filepath.Join(t.TempDir(), "peers.json"))
	if err := m.apply(xds.Update{TypeURL: xds.PeerType, Removed: []string{"west/n1"}}); err != nil {
		t.Fatal(err)
	}
	// The control plane no longer knows this node: what stands, stays.
	for _, typeURL := range []string{xds.NodeConfigType, xds.ClusterConfigType} {
		if err := m.apply(xds.Update{TypeURL: typeURL, Removed: []string{"east/n1", "east"}}); err != nil {
			t.Fatal(err)
		}
	}
	v, complete := m.view()
	if !complete || len(v.peers) != 1 || v.peers[0].Node != nodeID(t, "north/n1") {
		t.Errorf("complete %v, peers %+v", complete, v.peers)
	}
}

// A folder that cannot be written loses nothing that was there.
func TestMirrorSaveFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	m, in := told(t, path)
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	if err := m.apply(xds.Update{TypeURL: xds.PeerType, Removed: []string{"west/n1"}}); err != nil {
		t.Fatal(err)
	}
	m.path = filepath.Join(filepath.Dir(path), "missing", "peers.json")
	if err := m.save(); err == nil {
		t.Fatal("saved into a folder that does not exist")
	}
	m.path = path
	if err := m.save(); err != nil {
		t.Fatalf("what could not be saved is forgotten: %v", err)
	}
	again, err := openMirror(path, in.view.node.Node, in.key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := again.view(); len(v.peers) != 1 {
		t.Errorf("%d peers on disk, want 1", len(v.peers))
	}
}

// A copied key, or a new one, takes nobody's place before it has registered.
func TestMirrorOfAnotherKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	m, in := told(t, path)
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	again, err := openMirror(path, in.view.node.Node, mesh.PublicKey{7})
	if err != nil {
		t.Fatal(err)
	}
	if _, complete := again.view(); complete {
		t.Error("the peers of another key are taken over")
	}
}

func FuzzDecodeContent(f *testing.F) {
	f.Add([]byte(`{"format":1,"node":"east/n1","peers":{"west/n1":{"version":"x","value":{"node":"west/n1","prefixes":["10.2.0.0/24"],"tunnelAddresses":["198.19.0.2"]}}},"complete":["p"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeContent(b, mesh.NodeID{Cluster: "east", Name: "n1"})
		if err != nil {
			return
		}
		m := &mirror{content: c, complete: map[string]bool{xds.PeerType: true}}
		m.subscriptions()
		v, _ := m.view()
		// Whatever the file says, planning with it must not panic.
		makePlan(inputs{view: v, port: 1})
	})
}
