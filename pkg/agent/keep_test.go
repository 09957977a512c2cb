package agent

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// An agent that knows only an old view from disk removes nothing that a later
// one set up.
func TestKeep(t *testing.T) {
	in, west, north := testInputs(t)
	full := makePlan(in)
	var device wg.Actual
	for _, q := range full.device.Peers {
		device.Peers = append(device.Peers, wg.ActualPeer{Key: q.Key, Endpoint: q.Candidates[0], AllowedIPs: q.AllowedIPs})
	}
	var kernel route.Actual
	for _, v := range full.route.Via {
		kernel.Routes = append(kernel.Routes, route.Route{Dst: v})
	}
	for _, u := range full.route.Unreachable {
		kernel.Routes = append(kernel.Routes, route.Route{Dst: u, Unreachable: true})
	}
	for _, a := range full.route.Addrs {
		kernel.Addrs = append(kernel.Addrs, mesh.HostPrefix(a))
	}

	old := in
	old.view.peers = []mesh.Peer{west}
	old.view.cluster.Remote = prefixes("10.2.0.0/16")
	p := makePlan(old)
	p.keep(device, kernel)
	if err := p.device.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(p.device.Peers) != 2 || !slices.Equal(p.route.Via, full.route.Via) {
		t.Errorf("peers %v, routes %v", p.device.Peers, p.route.Via)
	}
	for _, u := range full.route.Unreachable {
		if !slices.Contains(p.route.Unreachable, u) {
			t.Errorf("%v is no longer closed", u)
		}
	}
	if got := p.owner[north.TunnelAddrs[0]]; got != mesh.Digest(north.Key, north.AllowedIPs()) {
		t.Errorf("a kept peer would be told that it is not held: %x", got)
	}
	if len(p.targets) != 1 {
		t.Errorf("targets %v: a kept peer has no name to probe", p.targets)
	}

	// What the old view gives to another peer, a kept one does not hold too.
	moved := old
	moved.view.peers = []mesh.Peer{{Node: west.Node, Key: west.Key, TunnelAddrs: west.TunnelAddrs, Prefixes: []netip.Prefix{north.Prefixes[0]}}}
	p = makePlan(moved)
	p.keep(device, kernel)
	if err := p.device.Validate(); err != nil {
		t.Error(err)
	}
}

func TestMirrorConfirmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	m, in := told(t, path)
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	again, err := openMirror(path, in.view.node.Node, in.key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, typeURL := range []string{xds.NodeConfigType, xds.ClusterConfigType, xds.PeerType} {
		if again.confirmed() {
			t.Fatal("confirmed before everything was told")
		}
		// Nothing differs: the answer that confirms it is empty.
		if err := again.apply(xds.Update{TypeURL: typeURL}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-again.changed:
		default:
			t.Error("the loop is not told")
		}
	}
	if !again.confirmed() {
		t.Error("not confirmed after everything was told")
	}
}
