package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Removed says what Down has found and removed.
type Removed struct {
	Namespaces int
	Processes  int
}

// Down ends a lab and removes all of it. It goes by what is on the machine and
// does not need the lab's own records, so it also clears up after a command that
// was killed. A lab that is not there is no error: nothing is removed.
func Down(ctx context.Context, name string) (Removed, error) {
	if err := errors.Join(validateName(name), checkRoot()); err != nil {
		return Removed{}, err
	}
	unlock, err := lockDir(ctx, labDir(name))
	if err != nil {
		return Removed{}, err
	}
	defer unlock()
	names, err := namespacesOf(name)
	if err != nil {
		return Removed{}, err
	}
	r := Removed{Namespaces: len(names)}
	patience, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	if r.Processes, err = endAll(patience, names); err != nil {
		return r, fmt.Errorf("end the processes of lab %s: %w", name, err)
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, deleteNamespace(n))
	}
	errs = append(errs, os.RemoveAll(labDir(name)), removeMountPoints(ctx))
	left, err := namespacesOf(name)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("namespaces of lab %s remain: %s", name, strings.Join(left, ", "))
	}
	errs = append(errs, err)
	return r, errors.Join(errs...)
}

// Down ends the lab and removes all of it.
func (l *Lab) Down(ctx context.Context) error {
	_, err := Down(ctx, l.name)
	return err
}

// removeMountPoints removes what labs have made on the machine outside their
// folders, once the last lab has gone. It never removes a folder that someone
// else has come to use.
func removeMountPoints(ctx context.Context) error {
	unlock, err := lockDir(ctx, root)
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.IsDir() }) {
		return nil
	}
	b, err := os.ReadFile(made)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dirs := strings.Fields(string(b))
	slices.Reverse(dirs)
	for _, dir := range dirs {
		// Not empty, or gone: it is no longer ours to remove.
		_ = os.Remove(dir)
	}
	if err := os.Remove(made); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// A lab that begins right now has its folder in it; then it stays.
	_ = os.Remove(root)
	return nil
}

// Names lists the labs of the machine.
func Names() ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}
