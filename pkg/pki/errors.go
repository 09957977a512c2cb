package pki

import (
	"errors"
	"fmt"
	"time"
)

// Refusals that a caller decides on. What is returned wraps one of them and
// says what to do.
var (
	// ErrOtherMesh: the token or certificate belongs to another mesh, or to an
	// earlier CA of a mesh of the same name.
	ErrOtherMesh = errors.New("of another mesh")
	// ErrNotToken: the text is no join token at all.
	ErrNotToken = errors.New("not a join token")
	// ErrTokenKind: the token is a gateway's where an agent's is wanted, or the
	// other way round.
	ErrTokenKind = errors.New("token is of the wrong kind")
	// ErrTokenSignature: the token was not signed by this control plane.
	ErrTokenSignature = errors.New("token has a bad signature")
	// ErrTokenExpired: the token's time is over.
	ErrTokenExpired = errors.New("token expired")
	// ErrTokenEarly: the token's time has not begun, so clocks disagree.
	ErrTokenEarly = errors.New("token is not valid yet")
	// ErrOtherCluster: the certificate was issued by the CA of a cluster that has
	// no say over whom it names.
	ErrOtherCluster = errors.New("issued by the CA of another cluster")
	// ErrCertificateExpired: the peer's certificate ended while it was connected.
	ErrCertificateExpired = errors.New("certificate expired")
	// ErrCookie: the challenge is too old or of another control plane process;
	// a new challenge may succeed.
	ErrCookie = errors.New("challenge is no longer valid")
	// ErrProof: the caller does not hold the key that it claims.
	ErrProof = errors.New("the proof does not show that you hold the WireGuard key")
)

// refusal is one of the sentinels with a sentence that stands in its place, for
// where the two together would say the same thing twice.
type refusal struct {
	kind error
	text string
}

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

// short writes a duration as people say it: "3h", not "3h12m4.1s".
func short(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	default:
		return fmt.Sprintf("%ds", d/time.Second)
	}
}
