package relay

import (
	"maps"
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// noted is an upstream that notes what it is asked for.
type noted map[string]bool

func (n noted) Add(_ string, names ...string) {
	for _, x := range names {
		n[x] = true
	}
}

func (n noted) Remove(_ string, names ...string) {
	for _, x := range names {
		delete(n, x)
	}
}

func (n noted) list() []string { return slices.Sorted(maps.Keys(n)) }

// world is a cache of gRPC clients with a clock.
type world struct {
	*cache
	t     *testing.T
	now   time.Time
	asked noted
	who   *asker
}

func newWorld(t *testing.T, maxIdle int) *world {
	w := &world{t: t, now: time.Unix(1e9, 0), asked: noted{}, who: &asker{unknown: map[*entry]int{}}}
	o := Options{Node: self, MaxIdle: maxIdle, Retention: time.Hour, Now: func() time.Time { return w.now }}
	w.cache = newCache(o.withDefaults(), func(k build.Kind) upstream {
		if k == build.GRPC {
			return w.asked
		}
		return silent{}
	})
	return w
}

func (w *world) want(names ...string) (out []*entry) {
	w.t.Helper()
	for _, n := range names {
		e, err := w.subscribe(w.who, grpcLDS, n)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func (w *world) tell(names ...string) {
	w.t.Helper()
	u := xds.Update{TypeURL: grpcLDS.typeURL}
	for _, n := range names {
		u.Resources = append(u.Resources, thing(grpcLDS, n, "1", 1))
	}
	if _, err := w.apply(build.GRPC, u); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) holds(what string, want ...string) {
	w.t.Helper()
	slices.Sort(want)
	if got := w.asked.list(); !slices.Equal(got, want) {
		w.t.Errorf("%s: the control plane is asked for %v, want %v", what, got, want)
	}
}

var connected = map[build.Kind]bool{build.GRPC: true}

// Names are kept for as long as the options say after the last subscription, but
// not those that do not exist, and none while the control plane is away.
func TestRetention(t *testing.T) {
	w := newWorld(t, 10)
	e := w.want("a", "b", "none", "unanswered")
	w.tell("a", "b")
	if _, err := w.apply(build.GRPC, xds.Update{TypeURL: grpcLDS.typeURL, Removed: []string{"none"}}); err != nil {
		t.Fatal(err)
	}
	w.unsubscribe(w.who, e[0], e[2], e[3])
	w.holds("unsubscribed", "a", "b")
	w.now = w.now.Add(59 * time.Minute)
	w.expire(connected)
	w.holds("before the time", "a", "b")
	again := w.want("a")
	w.unsubscribe(w.who, again...)
	w.now = w.now.Add(59 * time.Minute)
	w.expire(connected)
	w.holds("used again", "a", "b")
	w.now = w.now.Add(time.Minute)
	w.expire(nil)
	w.holds("the control plane is away", "a", "b")
	w.expire(connected)
	w.holds("after the time", "b")
	if _, answer := w.Lookup(string(build.GRPC), grpcLDS.typeURL, "a"); answer != xds.Pending {
		t.Errorf("forgotten: %v", answer)
	}
	w.now = w.now.Add(1000 * time.Hour)
	w.expire(connected)
	w.holds("subscribed", "b")
	// One that is removed while nobody uses it is of no use.
	w.unsubscribe(w.who, e[1])
	if _, err := w.apply(build.GRPC, xds.Update{TypeURL: grpcLDS.typeURL, Removed: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	w.holds("removed")
	if entries, _ := w.size(); entries != 0 {
		t.Errorf("%d entries are left", entries)
	}
}

// Of too many names the least recently used go first, and none that is in use.
func TestMaxIdle(t *testing.T) {
	w := newWorld(t, 2)
	e := w.want("a", "b", "c", "d")
	w.tell("a", "b", "c", "d")
	w.unsubscribe(w.who, e[1])
	w.unsubscribe(w.who, e[0])
	w.unsubscribe(w.who, w.want("b")...)
	w.unsubscribe(w.who, e[2])
	w.holds("three are unused", "b", "c", "d")
}

// What the wildcard brought goes with it, what is asked for by name as well stays.
func TestWildcardGoes(t *testing.T) {
	w := newWorld(t, 10)
	e := w.want(wildcard, "a")
	w.tell("a", "b", "c")
	list, ok := w.Names(string(build.GRPC), grpcLDS.typeURL)
	slices.Sort(list)
	if !ok || !slices.Equal(list, []string{"a", "b", "c"}) {
		t.Errorf("names %v, %v", list, ok)
	}
	w.unsubscribe(w.who, w.want("b")...)
	w.now = w.now.Add(time.Hour)
	w.expire(connected)
	w.holds("no longer asked for by name", "*", "a")
	if _, got := w.Lookup(string(build.GRPC), grpcLDS.typeURL, "b"); got != xds.Found {
		t.Errorf("what the wildcard brought as well is %v", got)
	}
	w.unsubscribe(w.who, e[0])
	w.holds("unused", "*", "a")
	w.now = w.now.Add(time.Hour)
	w.expire(connected)
	w.holds("after the time", "a")
	if _, ok := w.Names(string(build.GRPC), grpcLDS.typeURL); ok {
		t.Error("the names are still known")
	}
	for name, want := range map[string]xds.Answer{"a": xds.Found, "b": xds.Pending, "c": xds.Pending} {
		if _, got := w.Lookup(string(build.GRPC), grpcLDS.typeURL, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// A wildcard that nobody waits for any longer is not taken back at once, though it
// is not answered.
func TestWildcardStays(t *testing.T) {
	w := newWorld(t, 10)
	w.unsubscribe(w.who, w.want(wildcard, "a")...)
	w.holds("unanswered", "*")
	w.tell("b")
	if _, ok := w.Names(string(build.GRPC), grpcLDS.typeURL); !ok {
		t.Error("the answer is not taken")
	}
	w.now = w.now.Add(time.Hour)
	w.expire(connected)
	w.holds("after the time")
	if entries, _ := w.size(); entries != 0 {
		t.Errorf("%d entries are left", entries)
	}
}

// Under a wildcard what is not there is known to be missing, but not what was asked
// for by name and not answered yet.
func TestWildcardAnswers(t *testing.T) {
	w := newWorld(t, 10)
	w.want(wildcard)
	lookup := func(name string) xds.Answer {
		_, a := w.Lookup(string(build.GRPC), grpcLDS.typeURL, name)
		return a
	}
	if got := lookup("a"); got != xds.Pending {
		t.Errorf("before the first answer %v", got)
	}
	w.tell()
	if got := lookup("a"); got != xds.Missing {
		t.Errorf("after an empty first answer %v", got)
	}
	w.want("a")
	if got := lookup("a"); got != xds.Pending {
		t.Errorf("asked for by name %v", got)
	}
	if got := lookup(wildcard); got != xds.Pending {
		t.Errorf("the wildcard itself %v", got)
	}
}

// A pod's unknown names are bounded; those that turn out to exist, and those that it
// lets go, no longer count; another pod has a bound of its own.
func TestUnknownNamesAreBounded(t *testing.T) {
	w := newWorld(t, 10)
	list := names("n", maxUnknown)
	e := w.want(list...)
	refused := func(who *asker, name string) bool {
		e, err := w.subscribe(who, grpcLDS, name)
		if err == nil {
			w.unsubscribe(who, e)
		} else if status.Code(err) != codes.ResourceExhausted {
			t.Fatal(err)
		}
		return err != nil
	}
	other := &asker{unknown: map[*entry]int{}}
	if !refused(w.who, "more") || refused(other, "more") {
		t.Error("want the pod refused and the other one not")
	}
	// A name twice counts once.
	w.unsubscribe(w.who, w.want(list[0])...)
	if !refused(w.who, "more") {
		t.Error("a second stream took the first one's name off the count")
	}
	w.tell(list[1])
	if refused(w.who, "more") {
		t.Error("refused though one name was found")
	}
	if w.want("more"); !refused(w.who, "even more") {
		t.Error("not refused though there are as many again")
	}
	w.unsubscribe(w.who, e[2])
	if refused(w.who, "even more") {
		t.Error("refused though one name was let go")
	}
	if got := w.asked.list(); len(got) != maxUnknown {
		t.Errorf("the control plane is asked for %d names, want %d", len(got), maxUnknown)
	}
}

// What a pod subscribes to is bounded in all, however little is behind it, and free
// again once it lets go.
func TestSubscriptionsAreBounded(t *testing.T) {
	w := newWorld(t, 10)
	e := w.want("a")
	w.tell("a")
	for len(e) < maxSubscriptions {
		e = append(e, w.want("a")...)
	}
	full := func() bool {
		e, err := w.subscribe(w.who, grpcLDS, "a")
		if err == nil {
			w.unsubscribe(w.who, e)
		}
		return status.Code(err) == codes.ResourceExhausted
	}
	if !full() {
		t.Error("there is no bound")
	}
	w.unsubscribe(w.who, e...)
	if full() {
		t.Error("what was let go still counts")
	}
	all := w.want(slices.Repeat([]string{wildcard}, maxWildcards)...)
	if _, err := w.subscribe(w.who, grpcLDS, wildcard); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more wildcard: %v", err)
	}
	w.unsubscribe(w.who, all...)
	if w.who.subscriptions != 0 || w.who.wildcards != 0 || len(w.who.unknown) != 0 {
		t.Errorf("left over: %+v", w.who)
	}
}

// What is restored from disk is asked for with its versions, and kept though there
// is more than may be unused.
func TestRestore(t *testing.T) {
	w := newWorld(t, 2)
	kept := []record{
		{key{grpcLDS, "a"}, thing(grpcLDS, "a", "1", 1)},
		{key{grpcLDS, "b"}, thing(grpcLDS, "b", "2", 1)},
		{key{grpcLDS, "c"}, thing(grpcLDS, "c", "3", 1)},
		{key{grpcEDS, "bad"}, thing(grpcEDS, "bad", "4", 1)},
		{key{setKey{build.GRPC, "type.googleapis.com/of.another.Version"}, "x"}, thing(grpcEDS, "x", "5", 1)},
		{key{envoyCDS, wildcard}, &discovery.Resource{}},
		{key{envoyCDS, "d"}, thing(envoyCDS, "d", "6", 1)},
	}
	versions, errs := w.restore(kept)
	w.holds("restored", "a", "b", "c")
	if len(errs) != 1 {
		t.Errorf("errors %v, want one of the assignment", errs)
	}
	if got := versions[grpcLDS]; !maps.Equal(got, map[string]string{"a": "1", "b": "2", "c": "3"}) {
		t.Errorf("versions %v", got)
	}
	if got := versions[envoyCDS]; !maps.Equal(got, map[string]string{"d": "6"}) {
		t.Errorf("versions of what the wildcard brought %v", got)
	}
	if list, ok := w.Names(string(build.Envoy), envoyCDS.typeURL); !ok || !slices.Equal(list, []string{"d"}) {
		t.Errorf("names %v, %v", list, ok)
	}
	if len(w.unsaved) != 0 {
		t.Errorf("unsaved %v", w.unsaved)
	}
}
