package source

import (
	"fmt"
	"net/netip"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// FieldError is something wrong with one field of an object.
type FieldError struct {
	// Field is its path as Kubernetes writes it: "spec.podCIDRs[1]".
	Field string
	Err   error
}

// Error reads "spec.podCIDRs[1]: …".
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong, without the field.
func (e *FieldError) Unwrap() error { return e.Err }

// ParsePrefix reads an address range and accepts what mesh.ValidatePrefix does.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range such as 10.1.0.0/24 or fd00:1::/64", s)
	}
	if err := mesh.ValidatePrefix(p); err != nil {
		return netip.Prefix{}, err
	}
	return p, nil
}

// ParseAddr reads an address and accepts what mesh.ValidateAddr does.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	if err := mesh.ValidateAddr(a); err != nil {
		return netip.Addr{}, err
	}
	return a, nil
}

// fields collects what is wrong with an object.
type fields []error

func (f *fields) add(err error, format string, args ...any) {
	if err != nil {
		*f = append(*f, &FieldError{Field: fmt.Sprintf(format, args...), Err: err})
	}
}
