package dir

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// noRescan leaves everything to the kernel's notices.
const noRescan = time.Hour

// consumer follows a Source and holds what its updates add up to, and checks
// what every Update must be.
type consumer struct {
	t       *testing.T
	parent  string
	batches chan []source.Update
	ended   chan error
	stop    context.CancelFunc
	known   map[string]*view
	log     []string
}

// view is what is known of one folder.
type view struct {
	cluster mesh.Cluster
	objects map[source.Key]runtime.Object
	gone    bool
	err     error
}

func follow(t *testing.T, parent string, opts ...Option) *consumer {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	c := &consumer{t: t, parent: parent, batches: make(chan []source.Update), ended: make(chan error, 1), stop: stop, known: map[string]*view{}}
	s := New(parent, slog.New(slog.DiscardHandler), append([]Option{Rescan(noRescan)}, opts...)...)
	go func() { c.ended <- s.Run(ctx, c.batches) }()
	t.Cleanup(func() {
		stop()
		if err := <-c.ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c
}

// receive takes one batch in.
func (c *consumer) receive() []source.Update {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	select {
	case batch := <-c.batches:
		for _, u := range batch {
			c.take(u)
		}
		return batch
	case err := <-c.ended:
		c.ended <- err
		c.t.Fatalf("Run ended: %v", err)
	case <-ctx.Done():
		c.t.Fatalf("no more updates came; so far:\n%s", strings.Join(c.log, "\n"))
	}
	return nil
}

func (c *consumer) take(u source.Update) {
	c.t.Helper()
	c.log = append(c.log, strings.ReplaceAll(show([]source.Update{u}), c.parent+"/", ""))
	name, err := filepath.Rel(c.parent, u.Source)
	must(c.t, err)
	v := c.known[name]
	if v == nil {
		v = &view{}
		c.known[name] = v
	}
	good := u.Err == nil
	switch {
	case u.Gone && (len(u.Changes) > 0 || u.Full || good):
		c.t.Errorf("Gone with changes or without a reason: %v", u)
	case !good && (len(u.Changes) > 0 || u.Full):
		c.t.Errorf("refused, yet with changes: %v", u)
	case good && u.Full != (v.objects == nil):
		c.t.Errorf("Full is %t where %d objects are known: %v", u.Full, len(v.objects), u)
	case !u.Gone && !good && v.gone:
		c.t.Errorf("no longer Gone without a good state: %v", u)
	case !slices.IsSortedFunc(u.Changes, func(a, b source.Change) int { return a.Key.Compare(b.Key) }):
		c.t.Errorf("not sorted: %v", u)
	}
	v.cluster, v.gone, v.err = u.Cluster, u.Gone, u.Err
	if u.Gone {
		v.objects = nil
	}
	if !good {
		return
	}
	if v.objects == nil {
		v.objects = map[source.Key]runtime.Object{}
	}
	for _, change := range u.Changes {
		was, ok := v.objects[change.Key]
		if !ok && change.Object == nil || ok && equality.Semantic.DeepEqual(was, change.Object) {
			c.t.Errorf("%v did not change", change.Key)
		}
		if change.Object == nil {
			delete(v.objects, change.Key)
		} else {
			v.objects[change.Key] = change.Object
		}
	}
}

// until receives until what is known agrees with what lies on disk.
func (c *consumer) until(agrees func() bool) {
	c.t.Helper()
	for !agrees() {
		c.receive()
	}
}

// agrees reports whether a folder is known as Load finds it.
func (c *consumer) agrees(name string) bool {
	v, ok := c.known[name]
	s, err := Load(filepath.Join(c.parent, name))
	switch {
	case !ok:
		return errors.Is(err, fs.ErrNotExist)
	case errors.Is(err, fs.ErrNotExist):
		return v.gone && v.err.Error() == err.Error()
	case err != nil:
		return v.err != nil && v.err.Error() == err.Error()
	}
	return v.err == nil && !v.gone && v.cluster.Equal(s.Cluster) && equality.Semantic.DeepEqual(v.objects, s.Objects)
}
