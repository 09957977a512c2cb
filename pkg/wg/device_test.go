package wg_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

func TestRandomWalkOnDevice(t *testing.T) {
	n := newNode(t, "a")
	n.open(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	keys := []wg.PrivateKey{newPrivate(t), newPrivate(t)}
	for step := range 150 {
		d := wg.RandomDesired(r, keys[r.IntN(len(keys))], []uint16{51830, 51831})
		ops := n.settle(t, d)
		if err := wg.CheckHolds(n.must(t, "Observe", patience).Actual, d); err != nil {
			t.Fatalf("seed %d step %d: %v\nafter %v", seed, step, err, ops)
		}
	}
}

// 200 peers are more than wgctrl and Apply send in one request.
func TestManyPeers(t *testing.T) {
	n := newNode(t, "a")
	n.open(t)
	d := wg.Desired{PrivateKey: newPrivate(t), ListenPort: 51830}
	for i := range 200 {
		d.Peers = append(d.Peers, wg.Peer{
			Name: fmt.Sprintf("east/n%d", i), Key: mesh.PublicKey{byte(i), 1},
			Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 51830)},
			Keepalive:  25 * time.Second,
		})
		for j := range byte(i%5 + 1) {
			d.Peers[i].AllowedIPs = append(d.Peers[i].AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), j, 0}), 24))
		}
	}
	if ops := n.settle(t, d); len(ops) != 202 { // a key, a port and the peers
		t.Errorf("%d operations", len(ops))
	}
	if err := wg.CheckHolds(n.must(t, "Observe", patience).Actual, d); err != nil {
		t.Fatal(err)
	}
	d.Peers = d.Peers[150:]
	n.settle(t, d)
	if err := wg.CheckHolds(n.must(t, "Observe", patience).Actual, d); err != nil {
		t.Fatal(err)
	}
}

// One operation that the device refuses stops no other, and the error names it.
func TestOneBadPeer(t *testing.T) {
	n := newNode(t, "a")
	n.open(t)
	tooLong := 70000 * time.Second // more than the protocol's 16 bits
	var ops []wg.Op
	for i := range byte(5) {
		op := wg.Op{Kind: wg.AddPeer, Name: fmt.Sprintf("east/n%d", i), Key: mesh.PublicKey{i + 1}, ReplaceAllowedIPs: true}
		if i == 2 {
			op.Keepalive = &tooLong
		}
		ops = append(ops, op)
	}
	r := n.call(t, "ApplyOps", ops)
	if !strings.Contains(r.Err, deviceName) || !strings.Contains(r.Err, "east/n2") || strings.Contains(r.Err, "east/n3") {
		t.Errorf("error: %q", r.Err)
	}
	a := n.must(t, "Observe", patience).Actual
	for _, i := range []byte{1, 2, 4, 5} {
		if _, ok := a.Peer(mesh.PublicKey{i}); !ok {
			t.Errorf("peer %d is missing", i)
		}
	}
}
