package wg

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// CorruptError says that a key file did not hold a key and was set aside.
type CorruptError struct {
	// Path is where the key belongs, SetAside where the unreadable file is now.
	Path, SetAside string
	// Reason never quotes the file.
	Reason error
}

// Error says what happened and what follows from it.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("private key %s: %v; set aside as %s and a new key made, so the node must register again", e.Path, e.Reason, e.SetAside)
}

// Unwrap returns the reason.
func (e *CorruptError) Unwrap() error { return e.Reason }

// maxKeyFile is far more than a key takes; anything longer is not a key.
const maxKeyFile = 1024

// LoadOrCreateKey reads the private key at path, or makes one where there is
// none (mode 0600, its folder 0700) and reports created.
//
// A file that holds no key is set aside, and a new key takes its place. Then,
// and only then, both results matter: the key is good to use and err is a
// *CorruptError to be shown. With any other error the key is zero, and nothing
// that existed was changed: a file that others may read is refused, with the
// command that repairs it, because what others could read is no secret and
// only a person can judge it.
func LoadOrCreateKey(path string) (key PrivateKey, created bool, err error) {
	key, err = loadKey(path)
	var corrupt *CorruptError
	switch {
	case err == nil:
		return key, false, nil
	case errors.As(err, &corrupt):
		if err := setAside(corrupt); err != nil {
			return PrivateKey{}, false, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return PrivateKey{}, false, err
	}
	if key, err = GeneratePrivateKey(); err != nil {
		return PrivateKey{}, false, err
	}
	if err := writeKey(path, key); err != nil {
		if corrupt != nil {
			return PrivateKey{}, false, errors.Join(corrupt, err)
		}
		return PrivateKey{}, false, err
	}
	if corrupt != nil {
		return key, true, corrupt
	}
	return key, true, nil
}

func loadKey(path string) (PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read private key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read private key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return PrivateKey{}, fmt.Errorf("private key %s is not a regular file but %v", path, info.Mode().Type())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return PrivateKey{}, fmt.Errorf("private key %s may be used by others (mode %04o): run: chmod 600 %s; or delete it, and a new key will be made", path, mode, path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read private key %s: %w", path, err)
	}
	key, err := parsePrivateKey(content)
	if err != nil {
		return PrivateKey{}, &CorruptError{Path: path, Reason: err}
	}
	return key, nil
}

// setAside moves the file to a name that is not taken.
func setAside(c *CorruptError) error {
	base := fmt.Sprintf("%s.corrupt-%d", c.Path, time.Now().Unix())
	for i := 0; ; i++ {
		c.SetAside = base
		if i > 0 {
			c.SetAside = fmt.Sprintf("%s.%d", base, i)
		}
		// A link refuses a name that is taken, where a rename would replace it.
		err := os.Link(c.Path, c.SetAside)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = os.Remove(c.Path)
		}
		if err != nil {
			return fmt.Errorf("private key %s: %w; and it cannot be set aside: %w", c.Path, c.Reason, err)
		}
		return nil
	}
}

// writeKey puts the whole key at path or nothing: neither a crash nor a full
// disk leaves part of one.
func writeKey(path string, key PrivateKey) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the private key: %w", err)
	}
	temp := path + ".tmp"
	if err := writeSynced(temp, key.encode()); err != nil {
		_ = os.Remove(temp) // nothing more can be done; the next try removes it too
		return fmt.Errorf("write private key into %s (is the disk full or read-only?): %w", dir, err)
	}
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("write private key: %w", err)
	}
	// Without it the name may be lost in a power cut, and the key with it.
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write private key: %w", err)
	}
	return nil
}

func writeSynced(path string, content []byte) error {
	// What a killed process left could be open elsewhere or have another mode.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
