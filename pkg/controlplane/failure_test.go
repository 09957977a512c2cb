package controlplane

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// flaky is a store on a disk that is full at times.
type flaky struct {
	storage
	update, order error
}

func (f *flaky) Update(fn func(*store.Tx) error) error {
	if f.update != nil {
		return f.update
	}
	return f.storage.Update(fn)
}

func (f *flaky) Order(keys []string) (map[string]uint64, error) {
	if f.order != nil {
		return nil, f.order
	}
	return f.storage.Order(keys)
}

var errFull = errors.New("write to state.db: no space left on device")

// full makes the plane's disk fail until heal.
func (p *plane) full() (heal func()) {
	f := &flaky{p.store, errFull, errFull}
	p.store = f
	return func() { p.store = f.storage }
}

// calls runs several calls as one turn, and returns their errors.
func (p *plane) calls(fns ...func(*loop) error) []error {
	var batch []*call
	for _, fn := range fns {
		batch = append(batch, &call{run: fn, done: make(chan struct{})})
	}
	p.turn(batch, false)
	var errs []error
	for _, c := range batch {
		errs = append(errs, c.err)
	}
	return errs
}

func (p *plane) registering(node string, key mesh.PublicKey) func(*loop) error {
	return func(l *loop) error {
		_, _, err := l.register(peering.Registration{Node: id(node), Key: key, ListenPort: 51830})
		return err
	}
}

// same fails where a restart would not find what is served now.
func (p *plane) same(t *testing.T) {
	t.Helper()
	before := content(p.cache)
	p.restart()
	p.tell()
	if d := differences(before, content(p.cache)); d != "" {
		t.Errorf("after a restart:\n%s", d)
	}
}

func TestRegistrationThatCannotBeStoredIsRefused(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1")
	before, free := content(p.cache), p.pool.Free(mesh.IPv4)

	heal := p.full()
	_, _, err := p.join("west/n1")
	expect(t, asStatus(err), codes.Unavailable, "no space left")
	// A new key for a node that is there, and twice in the same turn.
	errs := p.calls(p.registering("east/n1", keyOf("second")), p.registering("east/n1", keyOf("third")), p.registering("east/n2", keyOf("x")))
	for i, err := range errs {
		if !errors.Is(err, errFull) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if got := p.status("v").Unsaved; !strings.Contains(got, "no space left") {
		t.Errorf("status: %q", got)
	}
	if d := differences(before, content(p.cache)); d != "" || p.pool.Free(mesh.IPv4) != free || len(p.registrations) != 1 || p.registrations[id("east/n1")].Key != keyOf("east/n1") {
		t.Errorf("something stayed behind: %s, %v", d, p.registrations)
	}

	heal()
	p.mustJoin("west/n1", "east/n2")
	if got := p.status("v").Unsaved; got != "" {
		t.Errorf("status: %q", got)
	}
	p.same(t)
}

// A disk that is full fails nobody who wants nothing of it, also while changes of
// the sources wait to be written: agents stay connected.
func TestReadersAreServedWhileTheDiskIsFull(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1")
	p.full()
	p.put("A", declare("east", "10.1.0.0/16"), "n1", "n2", "n3", "n4")
	p.tell()
	errs := p.calls(
		func(l *loop) error { return l.known(id("east/n1")) },
		p.registering("east/n2", keyOf("east/n2")),
		p.registering("east/n2", keyOf("east/n2")), // depends on the one before
		func(l *loop) error { return l.known(id("east/n2")) },
	)
	if errs[0] != nil || !errors.Is(errs[1], errFull) || !errors.Is(errs[2], errFull) || errs[3] != nil {
		t.Errorf("got %v", errs)
	}
	p.mustJoin("east/n1") // as before: there is nothing to write
	s := p.attach("east/n1")
	if err := p.report(s, true, "west/n1=Up"); err != nil {
		t.Error(err)
	}
	p.close(s)
	if len(p.leases) != 0 {
		t.Errorf("left: %v", p.leases)
	}
}

// What sources say is kept in memory, and written once that is possible; what has
// no place in the order yet is not published before it has one on disk.
func TestSourcesWhileTheDiskIsFull(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("east/n1", "west/n1")
	before := content(p.cache)
	heal := p.full()
	p.put("C", declare("north", "10.3.0.0/16"), "n1")
	p.tell()
	p.put("A", declare("east", "10.1.0.0/16"), "n1", "n2", "n3", "n4")
	p.tell()
	p.after(time.Minute)
	if d := differences(before, content(p.cache)); d != "" {
		t.Errorf("published: %s", d)
	}
	heal()
	p.after(retryAfter)
	if p.cache.Resources(clusterSet("north")) == nil || p.cache.Resources(nodeSet(id("east/n4"))) == nil {
		t.Error("not published once it could be")
	}
	p.same(t)
}

// Only the numbering fails: that is told too, and that it is over.
func TestOrderFails(t *testing.T) {
	p := twoClusters(t)
	p.store = &flaky{storage: p.store, order: errFull}
	p.put("C", declare("north", "10.3.0.0/16"), "n1")
	p.tell()
	if got := p.status("v").Unsaved; !strings.Contains(got, "order of claims") || !strings.Contains(got, "no space left") || p.cache.Resources(clusterSet("north")) != nil {
		t.Errorf("status: %q", got)
	}
	p.store = p.store.(*flaky).storage
	p.after(retryAfter)
	if got := p.status("v").Unsaved; got != "" || p.cache.Resources(clusterSet("north")) == nil {
		t.Errorf("status: %q", got)
	}
	p.same(t)
}

// A range that was taken off a declaration loses its place in the order, also when
// that could not be written at first: it must not come back with its old one.
func TestWithdrawnClaimWhileTheDiskIsFull(t *testing.T) {
	p := newPlane(t)
	p.put("A", declare("east", "10.1.0.0/16", "10.8.0.0/16"), "n1")
	p.tell()
	heal := p.full()
	p.put("A", declare("east", "10.1.0.0/16"), "n1")
	p.tell()
	p.put("B", declare("west", "10.8.0.0/16"), "n1")
	p.tell()
	p.put("A", declare("east", "10.1.0.0/16", "10.8.0.0/16"), "n1")
	p.store.(*flaky).order = nil // numbering would work again before writing does
	p.tell()
	p.after(retryAfter)
	heal()
	p.after(retryAfter)
	x := p.topology.Conflicts
	if len(x) != 1 || x[0].Effect != mesh.Yields {
		t.Fatalf("conflicts: %v", x)
	}
	p.same(t)
}

// A node comes and goes in the turn that cannot be written: its address is given
// back once.
func TestNodeGoesInTheTurnThatFails(t *testing.T) {
	p := twoClusters(t)
	free := p.pool.Free(mesh.IPv4)
	p.mustJoin("east/n2")
	heal := p.full()
	p.calls(
		p.registering("east/n1", keyOf("east/n1")),
		p.registering("east/n2", keyOf("another")),
		func(l *loop) error { l.dropNodes(l.clusters["east"], []string{"n1", "n2"}); return nil },
		p.registering("west/n1", keyOf("west/n1")),
	)
	if p.pool.Free(mesh.IPv4) != free || len(p.registrations) != 0 {
		t.Errorf("%d free of %d, %v", p.pool.Free(mesh.IPv4), free, p.registrations)
	}
	heal()
	p.after(retryAfter)
	p.mustJoin("west/n1", "east/n3")
	seen := map[netip.Addr]bool{}
	for _, r := range p.registrations {
		for _, a := range r.TunnelAddrs {
			if seen[a] {
				t.Errorf("%v is given twice", a)
			}
			seen[a] = true
		}
	}
}

func TestCheckRanges(t *testing.T) {
	ranges := func(list ...string) func(*Options) {
		return func(o *Options) {
			o.TunnelRanges = nil
			for _, s := range list {
				o.TunnelRanges = append(o.TunnelRanges, netip.MustParsePrefix(s))
			}
		}
	}
	again := func(p *plane, list ...string) error {
		if err := p.db.Close(); err != nil {
			t.Fatal(err)
		}
		ranges(list...)(&p.options)
		var err error
		if p.db, err = store.Open(p.path); err != nil {
			t.Fatal(err)
		}
		l, err := newLoop(t.Context(), p.options, p.db)
		if err == nil {
			p.loop = l
			p.now = func() time.Time { return p.clock }
			for _, f := range p.folders {
				*f = folder{there: f.there, decl: f.decl, nodes: f.nodes}
			}
			p.tell()
		}
		return err
	}
	p := newPlane(t, ranges("198.19.0.0/16"))
	east := declare("east", "10.1.0.0/16")
	east.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("172.20.0.0/16")}
	p.put("A", east, "n1")
	p.tell()
	p.mustJoin("east/n1")

	for _, bad := range []string{"10.1.128.0/17", "10.0.0.0/8", "172.20.7.0/24", "192.168.1.0/24"} {
		if err := again(p, bad); err == nil || !strings.Contains(err.Error(), "--tunnel-cidr "+bad+" overlaps the ") || !strings.Contains(err.Error(), "of east") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	// A new one gives everybody a new address, at their next registration.
	if err := again(p, "198.18.0.0/16"); err != nil {
		t.Fatal(err)
	}
	if addrs, _, err := p.join("east/n1"); err != nil || fmt.Sprint(addrs) != "[198.18.0.1]" {
		t.Errorf("got %v, %v", addrs, err)
	}
	// A cluster may take what the mesh has given up, and then it is the first there.
	p.put("B", declare("west", "198.19.0.0/16"))
	p.tell()
	if n := len(p.topology.Conflicts); n != 0 {
		t.Errorf("conflicts: %v", p.topology.Conflicts)
	}
	if err := again(p, "198.19.0.0/16"); err == nil || !strings.Contains(err.Error(), "of west, which was there first") {
		t.Errorf("got %v", err)
	}
	// One that the mesh has stays, whatever came over it since.
	p.put("B", declare("west", "198.18.0.0/16"))
	if err := again(p, "198.18.0.0/16"); err != nil {
		t.Fatal(err)
	}
	if x := p.topology.Conflicts; len(x) != 1 || x[0].Second.Cluster != "west" {
		t.Errorf("conflicts: %v", x)
	}
	if err := again(p, "198.18.0.0/16"); err != nil {
		t.Error(err)
	}
}
