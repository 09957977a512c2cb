package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockDir makes the folder if need be and locks it. Commands that change a lab
// lock its folder, and those that change what labs share lock root. The lock
// goes with its holder, however that ends.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	const retry = 50 * time.Millisecond
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed in between
		}
		if err != nil {
			return nil, err
		}
		switch err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			if same(f, dir) {
				return func() { f.Close() }, nil
			}
			// The former holder removed the folder; lock the one there is now.
			f.Close()
			continue
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		f.Close()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another command still works on %s: %w", dir, ctx.Err())
		case <-time.After(retry):
		}
	}
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// secretsPath is where a pod has its certificate.
const secretsPath = "/run/secrets/flatmesh.io"

// mountPoints are the folders over which each process of a lab has its own.
var mountPoints = []string{"/run/wireguard", "/run/flatmesh", "/var/lib/flatmesh", secretsPath}

// made lists the mount points that labs have made on this machine, and the
// folders around them, outer ones first.
var made = filepath.Join(root, ".made")

// makeMountPoints makes those that are missing and notes which, so that the last
// lab to go can remove them.
func makeMountPoints(ctx context.Context) error {
	unlock, err := lockDir(ctx, root)
	if err != nil {
		return err
	}
	defer unlock()
	for _, dir := range mountPoints {
		if err := makeMountPoint(dir); err != nil {
			return fmt.Errorf("make a mount point: %w", err)
		}
	}
	return nil
}

func makeMountPoint(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := makeMountPoint(filepath.Dir(dir)); err != nil {
		return err
	}
	f, err := os.OpenFile(made, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, dir)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755)
}
