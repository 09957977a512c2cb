package wg

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// PrivateKey is a WireGuard private key (Curve25519, RFC 7748). However it is
// printed, logged or marshaled as text, it shows as "(private key)"; only the
// bytes themselves give it away.
type PrivateKey [32]byte

const redacted = "(private key)"

// GeneratePrivateKey makes a key from the system's random source.
func GeneratePrivateKey() (PrivateKey, error) {
	var k PrivateKey
	if _, err := rand.Read(k[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("generate private key: %w", err)
	}
	// Clamped as RFC 7748 section 5 says, because the kernel clamps too and what
	// is observed must equal what was set.
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, nil
}

// PublicKey returns the public half. The zero key has the zero public key.
func (k PrivateKey) PublicKey() mesh.PublicKey {
	if k.IsZero() {
		return mesh.PublicKey{}
	}
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return mesh.PublicKey{} // only for a wrong length, which the type rules out
	}
	return mesh.PublicKey(private.PublicKey().Bytes())
}

// IsZero reports whether no key is set.
func (k PrivateKey) IsZero() bool { return k == PrivateKey{} }

// String hides the key.
func (PrivateKey) String() string { return redacted }

// GoString hides the key.
func (PrivateKey) GoString() string { return redacted }

// Format hides the key from every verb: without it, %d would print the bytes.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue hides the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the key.
func (PrivateKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText hides the key, where it is a map's key or another format's value.
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// encode writes base64 as wg(8) does. parsePrivateKey reads it; its errors
// never quote what they could not read.
func (k PrivateKey) encode() []byte {
	return append(base64.StdEncoding.AppendEncode(nil, k[:]), '\n')
}

func parsePrivateKey(b []byte) (PrivateKey, error) {
	var k PrivateKey
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	if len(b) != base64.StdEncoding.EncodedLen(len(k)) {
		return PrivateKey{}, errors.New("not a private key: want 44 characters of base64")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(b))
	if err != nil || len(raw) != len(k) {
		return PrivateKey{}, errors.New("not a private key: want 32 bytes in base64")
	}
	copy(k[:], raw)
	if k.IsZero() {
		return PrivateKey{}, errors.New("not a private key: all zeros")
	}
	return k, nil
}
