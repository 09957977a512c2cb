package dir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/flatmesh/flatmesh/pkg/source"
)

// DefaultRescan is how often everything is looked at without a notice of change.
const DefaultRescan = 30 * time.Second

// Source watches a parent folder of which every sub-folder is a cluster folder.
// What is ignored in a cluster folder is ignored there too, as are files.
type Source struct {
	parent string
	log    *slog.Logger
	rescan time.Duration
}

// Option changes a Source.
type Option func(*Source)

// Rescan sets how often everything is looked at without a notice of change: file
// systems over a network give none, nor does what a symbolic link points to.
func Rescan(every time.Duration) Option { return func(s *Source) { s.rescan = every } }

// New makes a Source of a parent folder. Nothing is read before Run.
func New(parent string, log *slog.Logger, opts ...Option) *Source {
	s := &Source{parent: filepath.Clean(parent), log: log, rescan: DefaultRescan}
	for _, o := range opts {
		o(s)
	}
	return s
}

// Run reads and watches until ctx ends, and returns nil then. It returns an
// error only where the parent folder cannot be read at the start.
//
// The first batch that it sends is everything there is, even if that is nothing:
// once it has been received, the initial read is complete. Every later batch
// holds at least one Update. Batches are sent in order and none is dropped: while
// the consumer is busy, changes gather into the next one. Within a batch what is
// Gone comes first, so that a renamed folder does not look like two.
func (s *Source) Run(ctx context.Context, out chan<- []source.Update) error {
	w := newWatches(s.parent, s.log)
	defer w.close()
	sc := scanner{parent: s.parent, watches: w, folders: map[string]*folder{}}
	if _, err := os.ReadDir(s.parent); err != nil {
		return fmt.Errorf("read clusters from %s: %w; it wants to be a folder with a sub-folder for each cluster, and in each a %s", s.parent, reason(err), clusterFile)
	}
	batch := sc.scan(ctx)
	rescan := time.NewTicker(s.rescan)
	defer rescan.Stop()
	for first := true; ; first = false {
		if ctx.Err() != nil {
			return nil
		}
		if first || len(batch) > 0 {
			select {
			case out <- batch:
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-rescan.C:
		case <-w.dirty:
			settle(ctx, w.dirty)
		}
		batch = sc.scan(ctx)
	}
}

// settle returns when the burst of events is over of which the first has come.
func settle(ctx context.Context, events <-chan struct{}) {
	var b burst
	b.add(time.Now())
	for {
		wait := time.NewTimer(b.wait(time.Now()))
		select {
		case <-events:
			wait.Stop()
			b.add(time.Now())
		case <-wait.C:
			return
		case <-ctx.Done():
			wait.Stop()
			return
		}
	}
}

// scanner looks at all cluster folders and knows what was told of each, also of
// those that are no longer there: the consumer may still hold what it was told.
type scanner struct {
	parent  string
	watches *watches
	folders map[string]*folder
}

type folder struct {
	reader *reader
	told   told
}

// scan returns what is new since the last scan. What it returns once ctx has
// ended is of no use.
func (sc *scanner) scan(ctx context.Context) []source.Update {
	sc.watches.begin()
	defer sc.watches.end()
	out := []source.Update{}
	paths, err := sc.list()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// Not to be able to look is no sign that anything has gone.
		for _, path := range slices.Sorted(maps.Keys(sc.folders)) {
			out = append(out, sc.folders[path].told.next(State{}, err)...)
		}
		return out
	}
	for _, path := range paths {
		f := sc.folders[path]
		if f == nil {
			f = &folder{reader: newReader(path, time.Now, sc.watches.add), told: told{source: path}}
			sc.folders[path] = f
		}
		s, err := f.reader.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		out = append(out, f.told.next(s, err)...)
	}
	for path, f := range sc.folders {
		if !slices.Contains(paths, path) {
			f.reader.cache = nil
			out = append(out, f.told.next(State{}, noFolder(path))...)
		}
	}
	slices.SortStableFunc(out, func(a, b source.Update) int {
		switch {
		case a.Gone && !b.Gone:
			return -1
		case b.Gone && !a.Gone:
			return 1
		}
		return cmp.Compare(a.Source, b.Source)
	})
	return out
}

// list returns the cluster folders that there are. Where the parent itself is
// gone its error is fs.ErrNotExist.
func (sc *scanner) list() ([]string, error) {
	sc.watches.add(sc.parent)
	entries, err := os.ReadDir(sc.parent)
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sc.parent, reason(err))
	}
	var out []string
	for _, e := range entries {
		if ignored(e.Name()) {
			continue
		}
		path := filepath.Join(sc.parent, e.Name())
		info, err := os.Stat(path)
		if err == nil && info.IsDir() || err != nil && !errors.Is(err, fs.ErrNotExist) && sc.folders[path] != nil {
			out = append(out, path)
		}
	}
	return out, nil
}

// reason leaves out the path of an error that is about to be named with it.
func reason(err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}
