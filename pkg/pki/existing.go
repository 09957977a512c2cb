package pki

import (
	"errors"
	"fmt"
	"io/fs"
)

// ExistingMesh returns the name of the mesh whose CA lies in a directory. Unlike
// OpenAuthority it makes nothing: where there is no CA yet, or one that the user
// brought and no control plane has used, the error is fs.ErrNotExist.
func ExistingMesh(dir string) (string, error) {
	found, err := readCA(dir)
	if err != nil {
		return "", err
	}
	if found == nil {
		return "", fmt.Errorf("there is no CA in %s (%s): %w: start the control plane once, or name its state folder", dir, caCertFile, fs.ErrNotExist)
	}
	if td, ok := statedDomain(found.roots[0]); ok {
		return meshOf(td), nil
	}
	name, err := readName(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no control plane has used the CA in %s yet: %w: start it once", dir, err)
	}
	return name, err
}
