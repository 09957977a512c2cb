package controlplane

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/source"
)

// claimName refuses a second source for a cluster's name: the first keeps it,
// also while it is gone, since it may come back. It loses it to a source with
// the same declaration, a folder that was moved, and when a person has given it
// another name.
func (l *loop) claimName(src string, decl mesh.Cluster) error {
	c := l.clusters[decl.Name]
	if c == nil || c.source == src {
		return nil
	}
	if c.gone && (c.decl.Equal(decl) || l.renamed(c)) {
		return nil
	}
	advice := "give one of the two another name"
	if c.gone {
		advice += ", or if that one is gone for good: controlplane confirm " + decl.Name
	}
	return fmt.Errorf("cluster name %s is already that of %s: %s", decl.Name, c.source, advice)
}

// renamed reports whether the source of a cluster that is gone has another now,
// or would have if its name were free.
func (l *loop) renamed(c *cluster) bool {
	if l.waiting[c.source] != nil {
		return true
	}
	for _, other := range l.clusters {
		if other != c && other.source == c.source && !other.gone {
			return true
		}
	}
	return false
}

// waiting is what a source says whose cluster name is another's: it comes into
// force when that one is gone.
type waiting struct {
	cluster mesh.Cluster
	objects map[source.Key]runtime.Object
	err     error
}

// wait keeps what a refused source says.
func (l *loop) wait(u source.Update) {
	w := l.waiting[u.Source]
	if w == nil || u.Full {
		w = &waiting{objects: map[source.Key]runtime.Object{}}
		l.waiting[u.Source] = w
	}
	w.cluster, w.err = u.Cluster, u.Err
	for _, change := range u.Changes {
		if change.Object == nil {
			delete(w.objects, change.Key)
		} else {
			w.objects[change.Key] = change.Object
		}
	}
}

// promote lets sources that wait for a name have it where it has become free.
func (l *loop) promote() {
	for _, src := range slices.Sorted(maps.Keys(l.waiting)) {
		w := l.waiting[src]
		if l.claimName(src, w.cluster) != nil {
			continue
		}
		u := source.Update{Source: src, Cluster: w.cluster, Full: true, Err: w.err}
		for _, k := range slices.SortedFunc(maps.Keys(w.objects), source.Key.Compare) {
			u.Changes = append(u.Changes, source.Change{Key: k, Object: w.objects[k]})
		}
		l.takeUpdate(u)
	}
}

// noteSource keeps why a source's newest state was refused and logs changes.
func (l *loop) noteSource(name string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if old := l.sources[name]; text != old {
		if err != nil {
			l.log.Error("source refused; its last good state stays in force", "source", name, "err", text)
		} else {
			l.log.Info("source is good again", "source", name)
		}
	}
	l.sources[name] = text
}

// forgetSource forgets what was wrong with a source that has no cluster and waits
// for none.
func (l *loop) forgetSource(name string) {
	if l.waiting[name] != nil {
		return
	}
	for _, c := range l.clusters {
		if c.source == name {
			return
		}
	}
	l.sources[name] = ""
}

// takeGone takes in that a source, or the declaration in it, is not there.
func (l *loop) takeGone(u source.Update) {
	_, heard := l.sources[u.Source]
	delete(l.waiting, u.Source)
	for _, c := range l.clusters {
		if c.source == u.Source && !c.gone {
			l.lose(c)
		}
	}
	l.noteSource(u.Source, u.Err)
	if heard {
		// One that nothing depends on any more may go without a word. Where it is new
		// its declaration is missing.
		l.forgetSource(u.Source)
	}
}
