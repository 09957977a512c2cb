package dir

import (
	"errors"
	"io/fs"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// told is what the consumer has been told of one folder.
type told struct {
	source  string
	cluster mesh.Cluster // the last good declaration
	objects map[source.Key]runtime.Object
	inForce bool // a good state was told and has not gone since
	gone    bool
	err     string // text of the last Err, empty for nil
}

// next returns what is to be told once a folder was read again, and remembers
// it: nothing where nothing changed.
func (t *told) next(s State, err error) []source.Update {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t.withdraw(err)
	case err != nil:
		if err.Error() == t.err {
			return nil
		}
		t.err = err.Error()
		return []source.Update{{Source: t.source, Cluster: t.cluster, Gone: t.gone, Err: err}}
	}
	var out []source.Update
	if t.inForce && t.cluster.Name != s.Cluster.Name {
		out = t.withdraw(errors.New(t.source + ": declares cluster " + s.Cluster.Name + " now, no longer " + t.cluster.Name))
	}
	changes := t.changes(s.Objects)
	if !t.inForce || t.err != "" || len(changes) > 0 || !t.cluster.Equal(s.Cluster) {
		out = append(out, source.Update{Source: t.source, Cluster: s.Cluster, Full: !t.inForce, Changes: changes})
	}
	t.cluster, t.inForce, t.gone, t.err = s.Cluster, true, false, ""
	return out
}

// withdraw tells that what was told is no longer there.
func (t *told) withdraw(err error) []source.Update {
	if t.gone && t.err == err.Error() {
		return nil
	}
	t.objects, t.inForce, t.gone, t.err = nil, false, true, err.Error()
	return []source.Update{{Source: t.source, Cluster: t.cluster, Gone: true, Err: err}}
}

// changes returns what differs from the objects told before, and takes over the
// new ones; what is equal keeps its old pointer.
func (t *told) changes(objects map[source.Key]runtime.Object) []source.Change {
	var out []source.Change
	now := make(map[source.Key]runtime.Object, len(objects))
	for key, o := range objects {
		was, ok := t.objects[key]
		if ok && (was == o || equality.Semantic.DeepEqual(was, o)) {
			now[key] = was
			continue
		}
		now[key] = o
		out = append(out, source.Change{Key: key, Object: o})
	}
	for key := range maps.Keys(t.objects) {
		if _, ok := objects[key]; !ok {
			out = append(out, source.Change{Key: key})
		}
	}
	t.objects = now
	slices.SortFunc(out, func(a, b source.Change) int { return a.Key.Compare(b.Key) })
	return out
}
