package pki

import (
	"fmt"
	"io/fs"
	"path/filepath"
)

// ExistingMesh returns the name of the mesh whose CA lies in a directory. Unlike
// OpenAuthority it makes nothing: where there is no CA yet the error is
// fs.ErrNotExist.
func ExistingMesh(dir string) (string, error) {
	root, err := readRoot(dir)
	if err != nil {
		return "", err
	}
	if root == nil {
		return "", fmt.Errorf("there is no CA in %s (%s): %w: start the control plane once, or name its state folder", dir, filepath.Base(caCertFile), fs.ErrNotExist)
	}
	td, err := trustDomainOf(root)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	return meshOf(td), nil
}
