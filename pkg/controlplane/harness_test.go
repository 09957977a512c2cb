package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/source"
	"github.com/flatmesh/flatmesh/pkg/store"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

const testHold = 10 * time.Minute

// plane is a control plane's loop without its goroutine: each call of turn is one
// of its turns. Its store is real, its clock the test's, and its sources are
// folders in memory that tell of themselves as package dir does.
type plane struct {
	t *testing.T
	*loop
	path    string
	options Options
	db      *store.Store
	clock   time.Time
	folders map[string]*folder
}

// folder is one source: what lies in it, and what was told of it.
type folder struct {
	there bool
	decl  mesh.Cluster
	nodes map[string]*corev1.Node
	err   string // what is wrong with its newest state

	told     bool // a good state was told and has not gone since
	gone     bool
	toldDecl mesh.Cluster
	toldErr  string
	known    map[string]*corev1.Node
}

func newPlane(t *testing.T, change ...func(*Options)) *plane {
	t.Helper()
	p := &plane{
		t: t, path: filepath.Join(t.TempDir(), "state.db"), folders: map[string]*folder{},
		clock: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
		options: Options{
			Mesh: "test", StateDir: t.TempDir(), RemovalHold: testHold, Log: slog.New(slog.DiscardHandler),
			TunnelRanges: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("fd19::/64")},
		},
	}
	for _, c := range change {
		c(&p.options)
	}
	p.start()
	t.Cleanup(func() { p.db.Close() })
	return p
}

// start opens the store and restores the loop.
func (p *plane) start() {
	p.t.Helper()
	var err error
	if p.db, err = store.Open(p.path); err != nil {
		p.t.Fatal(err)
	}
	if p.loop, err = newLoop(p.t.Context(), p.options, p.db); err != nil {
		p.t.Fatal(err)
	}
	p.now = func() time.Time { return p.clock }
	p.started = p.clock
}

// restart is a new process on the same store. Its sources tell everything anew,
// in the order given by less, or by name.
func (p *plane) restart() {
	p.t.Helper()
	if err := p.db.Close(); err != nil {
		p.t.Fatal(err)
	}
	p.start()
	for _, f := range p.folders {
		*f = folder{there: f.there, decl: f.decl, nodes: f.nodes, err: f.err}
	}
}

// turn1 runs one call as a turn of the loop.
func (p *plane) turn1(fn func(*loop) error) error {
	c := &call{run: fn, done: make(chan struct{})}
	p.turn([]*call{c}, false)
	<-c.done
	return c.err
}

// tell hands on what the folders have to tell, as one batch.
func (p *plane) tell() { p.tellIn(func(batch []source.Update) {}) }

// tellIn does so in an order that shuffle makes of it.
func (p *plane) tellIn(shuffle func([]source.Update)) {
	var batch []source.Update
	for _, name := range slices.Sorted(maps.Keys(p.folders)) {
		batch = append(batch, p.folders[name].next(name)...)
	}
	slices.SortStableFunc(batch, func(a, b source.Update) int {
		switch {
		case a.Gone && !b.Gone:
			return -1
		case b.Gone && !a.Gone:
			return 1
		}
		return 0
	})
	shuffle(batch)
	first := !p.synced
	if len(batch) == 0 && !first {
		return
	}
	if err := p.turn1(func(l *loop) error { l.takeUpdates(batch, first); return nil }); err != nil && p.unsaved == nil {
		p.t.Fatal(err)
	}
}

// next returns what is new to tell of a folder.
func (f *folder) next(name string) []source.Update {
	withdraw := func(err error) []source.Update {
		f.told, f.gone, f.toldErr, f.known = false, true, err.Error(), nil
		return []source.Update{{Source: name, Cluster: f.toldDecl, Gone: true, Err: err}}
	}
	switch {
	case !f.there && (f.gone || !f.told && f.toldErr == "" && f.toldDecl.Name == ""):
		return nil // not listed
	case !f.there:
		return withdraw(errors.New("there is no such folder"))
	case f.err != "" && f.err == f.toldErr:
		return nil
	case f.err != "":
		f.toldErr = f.err
		return []source.Update{{Source: name, Cluster: f.toldDecl, Gone: f.gone, Err: errors.New(f.err)}}
	}
	var out []source.Update
	if f.told && f.toldDecl.Name != f.decl.Name {
		out = withdraw(errors.New("declares another cluster now"))
	}
	u := source.Update{Source: name, Cluster: f.decl, Full: !f.told}
	for _, n := range slices.Sorted(maps.Keys(f.nodes)) {
		if f.known[n] != f.nodes[n] {
			u.Changes = append(u.Changes, source.Change{Key: source.Key{Kind: source.KindNode, Name: n}, Object: f.nodes[n]})
		}
	}
	for n := range f.known {
		if f.nodes[n] == nil {
			u.Changes = append(u.Changes, source.Change{Key: source.Key{Kind: source.KindNode, Name: n}})
		}
	}
	if u.Full || len(u.Changes) > 0 || f.toldErr != "" || !f.toldDecl.Equal(f.decl) {
		out = append(out, u)
	}
	f.told, f.gone, f.toldErr, f.toldDecl, f.known = true, false, "", f.decl, maps.Clone(f.nodes)
	return out
}

// put writes a folder: a declaration "east 10.1.0.0/16", and nodes. The node n3 of
// a cluster with the range 10.1.0.0/16 has 10.1.3.0/24 and the address 192.168.1.3;
// "n3=10.1.9.0/24" has another prefix, and "n3=" none.
func (p *plane) put(name string, decl mesh.Cluster, nodes ...string) {
	p.t.Helper()
	f := p.folders[name]
	if f == nil {
		f = &folder{}
		p.folders[name] = f
	}
	old := f.nodes
	f.there, f.err, f.decl, f.nodes = true, "", decl, map[string]*corev1.Node{}
	for _, spec := range nodes {
		n, cidr, given := strings.Cut(spec, "=")
		var i int
		if _, err := fmt.Sscanf(n, "n%d", &i); err != nil {
			p.t.Fatal(err)
		}
		second := byte(7)
		if len(decl.PodCIDRs) > 0 && decl.PodCIDRs[0].Addr().Is4() {
			second = decl.PodCIDRs[0].Addr().As4()[1]
		}
		if !given {
			cidr = fmt.Sprintf("10.%d.%d.0/24", second, i)
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}, Spec: corev1.NodeSpec{PodCIDR: cidr},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.%d", second, i)}}}}
		if was := old[n]; was != nil && was.Spec.PodCIDR == cidr && was.Status.Addresses[0] == node.Status.Addresses[0] {
			node = was
		}
		f.nodes[n] = node
	}
}

func (p *plane) remove(name string) { p.folders[name].there = false }

// cluster makes a declaration with pod ranges.
func declare(name string, pods ...string) mesh.Cluster {
	c := mesh.Cluster{Name: name, Network: name}
	for _, s := range pods {
		c.PodCIDRs = append(c.PodCIDRs, netip.MustParsePrefix(s))
	}
	return c
}

// after lets time pass.
func (p *plane) after(d time.Duration) {
	p.clock = p.clock.Add(d)
	p.turn(nil, true)
}

// keyOf is a key of a node's own.
func keyOf(node string) (k mesh.PublicKey) {
	k[0] = 1
	copy(k[1:], node)
	return k
}

func id(s string) mesh.NodeID {
	cluster, name, _ := strings.Cut(s, "/")
	return mesh.NodeID{Cluster: cluster, Name: name}
}

// join registers a node with its own key.
func (p *plane) join(node string, change ...func(*peering.Registration)) ([]netip.Addr, []string, error) {
	r := peering.Registration{Node: id(node), Key: keyOf(node), ListenPort: 51830, Device: "kernel", Version: "v1"}
	for _, c := range change {
		c(&r)
	}
	var addrs []netip.Addr
	var refused []string
	err := p.turn1(func(l *loop) (err error) {
		addrs, refused, err = l.register(r)
		return err
	})
	return addrs, refused, err
}

func (p *plane) mustJoin(nodes ...string) {
	p.t.Helper()
	for _, n := range nodes {
		if _, _, err := p.join(n); err != nil {
			p.t.Fatalf("%s: %v", n, err)
		}
	}
}

// String reads "east@A[n1 -n2]; B waits for east": clusters with their sources and
// nodes, of which held ones have a dash; those whose source is gone say so.
func (p *plane) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.clusters)) {
		c := p.clusters[name]
		var nodes []string
		for _, n := range slices.Sorted(maps.Keys(c.nodes)) {
			if slices.Contains(c.held(), n) {
				n = "-" + n
			}
			nodes = append(nodes, n)
		}
		s := fmt.Sprintf("%s@%s%v", name, c.source, nodes)
		if c.gone {
			s += " gone"
		}
		out = append(out, s)
	}
	for _, src := range slices.Sorted(maps.Keys(p.waiting)) {
		out = append(out, src+" waits for "+p.waiting[src].cluster.Name)
	}
	return strings.Join(out, "; ")
}

// troubles lists the sources whose newest state is refused.
func (p *plane) troubles() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.sources)) {
		if p.sources[name] != "" {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// content is everything that a cache serves: versions by set and name.
func content(c *xds.Cache) map[xds.SetKey]map[string]string {
	out := map[xds.SetKey]map[string]string{}
	for _, k := range c.Keys() {
		resources := c.Resources(k)
		if resources == nil {
			continue
		}
		out[k] = map[string]string{}
		for name, r := range resources {
			out[k][name] = r.GetVersion()
		}
	}
	return out
}

// differences says how two contents differ.
func differences(a, b map[xds.SetKey]map[string]string) string {
	var out []string
	keys := maps.Clone(a)
	maps.Copy(keys, b)
	for k := range keys {
		if !maps.Equal(a[k], b[k]) || (a[k] == nil) != (b[k] == nil) {
			out = append(out, fmt.Sprintf("%v: %v against %v", k, a[k], b[k]))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// background runs a plane's loop in its goroutine, as Run does.
func (p *plane) background() (stop func()) {
	ctx, cancel := context.WithCancel(p.t.Context())
	p.life = ctx
	done := make(chan struct{})
	go func() { p.run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

// peersOf lists the nodes that a cluster is served as peers.
func (p *plane) peersOf(cluster string) string {
	return strings.Join(slices.Sorted(maps.Keys(p.cache.Resources(peerSet(cluster)))), " ")
}
