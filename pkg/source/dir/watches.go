package dir

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// watches makes the kernel's notices of changes in a set of folders one signal.
// They are for promptness only: what they miss, a rescan finds.
type watches struct {
	// dirty is signalled after a change; one slot is all that is needed, since
	// everything is looked at afterwards.
	dirty chan struct{}

	log      *slog.Logger
	notify   *fsnotify.Watcher // nil where the kernel gives no more
	done     sync.WaitGroup
	wanted   map[string]bool // since begin, by path without symbolic links
	limit    bool            // a limit was logged
	above    string          // the folder that holds the parent, and
	parentAs string          // the parent's name there: all that matters of it
}

// newWatches starts to watch for the parent itself to come and go.
func newWatches(parent string, log *slog.Logger) *watches {
	w := &watches{dirty: make(chan struct{}, 1), log: log, wanted: map[string]bool{}}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("cannot watch folders for changes; they are rescanned only (more watches: sysctl fs.inotify.max_user_instances)", "error", err)
		return w
	}
	w.notify = notify
	if abs, err := filepath.Abs(parent); err == nil {
		w.parentAs = filepath.Base(abs)
		w.above, _ = filepath.EvalSymlinks(filepath.Dir(abs))
	}
	w.done.Go(w.pump)
	return w
}

func (w *watches) close() {
	if w.notify != nil {
		w.notify.Close()
		w.done.Wait()
	}
}

// pump drains the events at all times: the watcher may hold its lock while it
// hands one over.
func (w *watches) pump() {
	events, errs := w.notify.Events, w.notify.Errors
	for events != nil || errs != nil {
		select {
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if filepath.Dir(e.Name) == w.above && filepath.Base(e.Name) != w.parentAs {
				continue
			}
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			w.log.Debug("watching folders", "error", err)
		}
		select {
		case w.dirty <- struct{}{}:
		default:
		}
	}
}

// begin starts a new set of folders.
func (w *watches) begin() {
	clear(w.wanted)
	if w.above != "" {
		w.add(w.above)
	}
}

// add watches a folder. It is called before the folder is listed, so that no
// change falls between the two, and for every folder each time: one that was
// made anew under an old name needs a new watch.
func (w *watches) add(dir string) {
	if w.notify == nil {
		return
	}
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		if real, err = filepath.Abs(real); err == nil {
			err = w.notify.Add(real)
		}
	}
	if err != nil {
		if !w.limit && !errors.Is(err, fs.ErrNotExist) {
			w.limit = true
			w.log.Warn("cannot watch a folder for changes; it is rescanned only (more watches: sysctl fs.inotify.max_user_watches)", "folder", dir, "error", err)
		}
		return
	}
	w.wanted[real] = true
}

// end stops watching the folders that were not added since begin.
func (w *watches) end() {
	if w.notify == nil {
		return
	}
	for _, dir := range w.notify.WatchList() {
		if !w.wanted[dir] {
			_ = w.notify.Remove(dir) // gone with the folder already, as a rule
		}
	}
}
