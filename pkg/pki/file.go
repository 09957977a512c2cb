package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// writeFile replaces dir/name in one step, readable by the owner alone: after a
// crash at any moment there is the old content or the new, complete.
// One process at a time may write a name.
func writeFile(dir, name string, data []byte) (err error) {
	path := filepath.Join(dir, name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	// A fixed name, so that what a crash leaves behind is overwritten and never
	// piles up. It is removed first: O_EXCL then guarantees the mode.
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(dir)
}

// syncDir makes the names in dir last: fsync of a file does not cover its name.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir waits for the lock on a directory and returns what releases it. The
// lock ends with the process.
func lockDir(dir string) (unlock func() error, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
	}
	return d.Close, nil
}

// checkMode refuses a file or directory on which others have one of the rights
// in forbidden, with the command that takes them away.
func checkMode(path string, forbidden fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return fmt.Errorf("%s has mode %04o and is open to others: run: chmod %o %s", path, mode, mode&^forbidden, path)
	}
	return nil
}

// CorruptError reports a file that could not be understood and was set aside,
// so that nothing is lost and the caller can begin anew.
type CorruptError struct {
	// Path is the file, SetAside where its content is now.
	Path, SetAside string
	Cause          error
}

// Error names both files and the cause.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is corrupt and was set aside as %s: %v", e.Path, e.SetAside, e.Cause)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Cause }

// setAside renames path to "PATH.corrupt-UNIXTIME" and returns a *CorruptError,
// or, where that fails, an error that says both.
func setAside(path string, now time.Time, cause error) error {
	to := fmt.Sprintf("%s.corrupt-%d", path, now.Unix())
	for i := 2; ; i++ {
		if _, err := os.Lstat(to); err != nil {
			break // free, or rename will say what is wrong
		}
		to = fmt.Sprintf("%s.corrupt-%d-%d", path, now.Unix(), i)
	}
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("%s is corrupt (%w) and cannot be set aside: %w", path, cause, err)
	}
	return &CorruptError{Path: path, SetAside: to, Cause: cause}
}
