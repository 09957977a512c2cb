package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/flatmesh/flatmesh/pkg/route"
	"github.com/flatmesh/flatmesh/pkg/wg"
)

// Cleanup removes everything that agents ever made on this node, and nothing
// else: routes and rules, the device with its process and socket, and, unless
// keepState is set, the state directory's files. It is for when no agent runs,
// and says so where one does. It returns what it removed, for people.
func Cleanup(ctx context.Context, o Options, keepState bool) (removed []string, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("cleanup removes interfaces and routes: run it as root")
	}
	if _, err := os.Stat(o.StateDir); err == nil {
		unlock, err := lock(o.lockFile())
		if err != nil {
			return nil, err
		}
		defer func() {
			// Made just now, by lock, or left by agents: not worth a line.
			_ = os.Remove(o.lockFile())
			unlock()
		}()
	}
	var errs []error
	table, err := route.Open(o.Route)
	if err != nil {
		errs = append(errs, err)
	} else {
		routes, err := table.Cleanup(ctx)
		table.Close()
		removed = append(removed, routes...)
		errs = append(errs, err)
	}
	// The device last: until its routes are gone, their packets are refused and
	// do not fall through to the underlay.
	_, err = netlink.LinkByName(o.Interface)
	there := err == nil
	if err := wg.Remove(ctx, o.Interface); err != nil {
		errs = append(errs, err)
	} else if there {
		removed = append(removed, "interface "+o.Interface)
	}
	files := []string{o.AdminSocket(), filepath.Join(o.RunDir, "device.log"), filepath.Join(o.RunDir, "device.log.1")}
	if !keepState {
		state, err := ownFiles(o.StateDir)
		errs = append(errs, err)
		files = append(files, state...)
	}
	dirs := []string{o.XDSDir()}
	if !keepState {
		dirs = append(dirs, o.WorkloadDir())
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); err != nil {
			continue
		}
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "folder "+d)
	}
	for _, f := range files {
		switch err := os.Remove(f); {
		case err == nil:
			removed = append(removed, "file "+f)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

// ownFiles lists the files that agents make in the state directory, those that
// were set aside included.
func ownFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var out []string
	for _, e := range entries {
		name := strings.TrimPrefix(e.Name(), ".")
		for _, own := range []string{"wg.key", "peers.json", "identity.pem", "relay.json"} {
			if name == own || strings.HasPrefix(name, own+".") {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
	}
	return out, nil
}
