package pki

import (
	"bytes"
	"crypto/x509"
)

// Trusts reports whether one of the bundle's roots is the one that a token pins.
// A token that pins another says that the mesh has a new CA since.
func (b *Bundle) Trusts(pin []byte) bool {
	for _, der := range b.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			continue
		}
		if got := pinOf(root); bytes.Equal(got[:], pin) {
			return true
		}
	}
	return false
}
