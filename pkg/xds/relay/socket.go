package relay

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// makeDir makes the folder of the socket, readable by everybody: pods mount it.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("folder of the xDS socket: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask says
		return fmt.Errorf("folder of the xDS socket: %w", err)
	}
	return nil
}

// listen opens the socket at path, in the place of one that an earlier process
// left. Everybody may connect: who may use the folder is decided by who mounts it,
// and what is served is the same for all on the node.
func listen(path string) (*net.UnixListener, error) {
	fail := func(err error) (*net.UnixListener, error) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return fail(errors.New("something that is no socket is in its place; remove it"))
	}
	// It appears under its name only when it may be connected to.
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	// Closing would remove what the next process may be making under that name.
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o666); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fail(errors.Join(err, l.Close()))
	}
	return l, nil
}
