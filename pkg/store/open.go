package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// lockWait is how long Open waits for another process, which may be on its way
// out; lockPoll how often it looks.
const (
	lockWait = time.Second
	lockPoll = 20 * time.Millisecond
)

// CorruptError reports that a file was damaged, and where it is now.
type CorruptError struct {
	// Path is the file, SetAside where its content is now.
	Path, SetAside string
	Cause          error
}

// Error names both files and the cause.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is corrupt and was set aside as %s; beginning with an empty one: %v", e.Path, e.SetAside, e.Cause)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Cause }

// Open opens the file, or makes it (mode 0600, in a directory of mode 0700).
//
// It has a use of its two results that callers must know: a damaged file is set
// aside as PATH.corrupt-UNIXTIME and an empty one is opened in its place, and
// then Open returns the usable Store together with a *CorruptError, for the
// caller to log. With any other error the Store is nil: ErrLocked where another
// process still holds the file after a second, ErrNewerFormat where a later
// version wrote it, or what the system said.
//
// Where one of bbolt's two meta pages is damaged the file opens as of the commit
// before the last one. That is how bbolt recovers from a commit that a power
// cut interrupted, and the two cannot be told apart.
func Open(path string) (*Store, error) {
	s, err := open(path)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return s, err
	}
	if s, err = open(path); err != nil {
		return nil, errors.Join(corrupt, err)
	}
	return s, corrupt
}

func open(path string) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := lock(path)
	if err != nil {
		return nil, err
	}
	empty, err := prepare(f, path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// bbolt takes over the file and with it the lock: nobody can have changed it
	// since it was checked.
	s := &Store{path: path}
	if err := s.guard(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:      lockWait,
			FreelistType: bbolt.FreelistMapType,
			NoStatistics: true,
			OpenFile:     func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		})
		return err
	}); err != nil {
		return nil, err
	}
	if empty {
		if err := s.initialise(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// prepare checks a locked file and sets it aside where it is damaged, which is a
// *CorruptError.
// It reports whether it holds nothing yet.
func prepare(f *os.File, path string) (empty bool, err error) {
	// The name must last as long as what is written under it.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return false, err
	}
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	empty, err = check(f, info.Size())
	if errors.Is(err, errUnborn) {
		return true, f.Truncate(0)
	}
	var damaged *corruption
	if errors.As(err, &damaged) {
		to, renameErr := setAside(path, time.Now())
		if renameErr != nil {
			return false, fmt.Errorf("the file is corrupt (%w) and cannot be set aside: %w", err, renameErr)
		}
		return false, &CorruptError{Path: path, SetAside: to, Cause: err}
	}
	return empty, err
}

func (s *Store) initialise() error {
	return s.guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			for _, name := range buckets() {
				if _, err := tx.CreateBucket([]byte(name)); err != nil {
					return fmt.Errorf("make bucket %q: %w", name, err)
				}
			}
			w, err := newWriter(tx)
			if err != nil {
				return err
			}
			if err := w.put(id{metaBucket, formatKey}, FormatVersion); err != nil {
				return err
			}
			return w.finish()
		})
	})
}

// lock opens the file, made where it is missing, and takes the lock that bbolt
// uses too (flock, which ends with the process).
func lock(path string) (*os.File, error) {
	over := time.NewTimer(lockWait)
	defer over.Stop()
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			// The holder before us may have set the file aside: then the lock is on
			// the wrong one.
			var same bool
			if same, err = isAt(f, path); same {
				return f, nil
			}
		}
		err = errors.Join(err, f.Close())
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, err
		}
		select {
		case <-over.C:
			return nil, fmt.Errorf("%w (waited %v): is another control plane running?", ErrLocked, lockWait)
		case <-poll.C:
		}
	}
}

func isAt(f *os.File, path string) (bool, error) {
	held, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(held, there), err
}

// setAside renames the file to a name that is free. The caller holds its lock.
func setAside(path string, now time.Time) (string, error) {
	base := fmt.Sprintf("%s.corrupt-%d", path, now.Unix())
	to := base
	for i := 2; ; i++ {
		if _, err := os.Lstat(to); err != nil {
			break // free, or rename will say what is wrong
		}
		to = fmt.Sprintf("%s-%d", base, i)
	}
	if err := os.Rename(path, to); err != nil {
		return "", err
	}
	return to, syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
