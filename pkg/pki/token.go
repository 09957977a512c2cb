package pki

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Join tokens are JWTs (RFC 7519), signed with Ed25519 (RFC 8037).
const (
	tokenAudience = "flatmesh-join"
	tokenLeeway   = time.Minute
	maxTokenLife  = 365 * 24 * time.Hour
	// maxToken is some five times what a token with the longest names takes.
	maxToken  = 4 << 10
	pinPrefix = "sha256:"
)

// TokenClaims is what a join token says.
type TokenClaims struct {
	Mesh    string
	Cluster string
	// Node is empty where the token is good for every node of the cluster.
	Node string
	// ID is unique to the token.
	ID string
	// Whole seconds.
	Issued, Expires time.Time
}

// wireClaims is TokenClaims as a JWT has it.
type wireClaims struct {
	jwt.RegisteredClaims
	Mesh    string `json:"mesh"`
	Cluster string `json:"cluster"`
	Node    string `json:"node,omitempty"`
	// CA pins the root: "sha256:" and the hex SHA-256 of its SubjectPublicKeyInfo.
	CA string `json:"ca"`
}

// CreateToken makes a join token for a cluster, or for one node of it. It is
// valid for ttl, at most a year.
func (a *Authority) CreateToken(cluster, node string, ttl time.Duration, now time.Time) (string, error) {
	if err := validateScope(cluster, node); err != nil {
		return "", err
	}
	// A JWT counts whole seconds: a shorter life would be none.
	if ttl < time.Second || ttl > maxTokenLife {
		return "", fmt.Errorf("token with a life of %v: want 1s to %dh", ttl, maxTokenLife/time.Hour)
	}
	pin := pinOf(a.root)
	token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, wireClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Audience:  jwt.ClaimStrings{tokenAudience},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
			ID:        rand.Text(),
		},
		Mesh:    a.mesh,
		Cluster: cluster,
		Node:    node,
		CA:      pinPrefix + hex.EncodeToString(pin[:]),
	}).SignedString(a.tokenKey)
	if err != nil {
		return "", fmt.Errorf("sign token for %s: %w", scope(cluster, node), err)
	}
	return token, nil
}

// VerifyToken checks a join token against this mesh, its CA and now, with a
// minute of leeway for clocks. Its errors wrap ErrNotToken, ErrTokenSignature,
// ErrTokenExpired, ErrTokenEarly or ErrOtherMesh, and are fit to be shown to the
// caller: they hold nothing of the token but its names.
func (a *Authority) VerifyToken(token string, now time.Time) (TokenClaims, error) {
	pin, unverified, err := PinOf(token)
	if err != nil {
		return TokenClaims{}, err
	}
	// Another mesh's token fails on its signature, which says nothing to whoever
	// took the wrong one. What is not verified yet only chooses the words.
	if unverified.Mesh != a.mesh {
		return TokenClaims{}, refuse(ErrOtherMesh, "token is for the mesh %q, this is the control plane of %q: make one here with: %s", unverified.Mesh, a.mesh, createCommand(unverified))
	}
	if own := pinOf(a.root); !bytes.Equal(pin, own[:]) {
		return TokenClaims{}, refuse(ErrOtherMesh, "token is for another mesh named %q, or for this one before it got a new CA: make a new one with: %s", a.mesh, createCommand(unverified))
	}
	var wire wireClaims
	_, err = newTokenParser(jwt.WithTimeFunc(func() time.Time { return now })).
		ParseWithClaims(strings.TrimSpace(token), &wire, func(*jwt.Token) (any, error) { return a.tokenKey.Public(), nil })
	claims := wire.claims()
	switch {
	case err == nil:
		return claims, nil
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return TokenClaims{}, refuse(ErrTokenSignature, "token was not signed by this control plane, or was changed: make a new one with: %s", createCommand(unverified))
	case errors.Is(err, jwt.ErrTokenExpired):
		return TokenClaims{}, refuse(ErrTokenExpired, "token for %s expired %s ago: make a new one with: %s", scope(claims.Cluster, claims.Node), short(now.Sub(claims.Expires)), createCommand(claims))
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return TokenClaims{}, refuse(ErrTokenEarly, "token for %s begins in %s: set the clock of the control plane, or of the machine that made the token", scope(claims.Cluster, claims.Node), short(claims.Issued.Sub(now)))
	default:
		return TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
}

// PinOf reads a token without verifying it, as an agent does that has nothing
// to verify it with: the SHA-256 of the SubjectPublicKeyInfo of the root to
// trust on first contact, and what the token claims. White space around the
// token is allowed. An error wraps ErrNotToken.
func PinOf(token string) (pin []byte, unverified TokenClaims, err error) {
	token = strings.TrimSpace(token)
	if len(token) > maxToken {
		return nil, TokenClaims{}, fmt.Errorf("%w: %d characters long", ErrNotToken, len(token))
	}
	var wire wireClaims
	parsed, _, err := newTokenParser().ParseUnverified(token, &wire)
	if err != nil {
		return nil, TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
	if parsed.Method != jwt.SigningMethodEdDSA {
		return nil, TokenClaims{}, fmt.Errorf("%w: signed with %q, want %q", ErrNotToken, parsed.Method.Alg(), jwt.SigningMethodEdDSA.Alg())
	}
	if len(wire.Audience) != 1 || wire.Audience[0] != tokenAudience {
		return nil, TokenClaims{}, fmt.Errorf("%w: it is for the audience %q, want %q", ErrNotToken, wire.Audience, tokenAudience)
	}
	if _, err := TrustDomain(wire.Mesh); err != nil {
		return nil, TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
	if err := validateScope(wire.Cluster, wire.Node); err != nil {
		return nil, TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
	digits, ok := strings.CutPrefix(wire.CA, pinPrefix)
	pin, err = hex.DecodeString(digits)
	if !ok || err != nil || len(pin) != sha256.Size {
		return nil, TokenClaims{}, fmt.Errorf("%w: its pin of the CA is malformed", ErrNotToken)
	}
	return pin, wire.claims(), nil
}

func newTokenParser(more ...jwt.ParserOption) *jwt.Parser {
	return jwt.NewParser(append(more,
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithAudience(tokenAudience),
		jwt.WithExpirationRequired(),
		jwt.WithNotBeforeRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(tokenLeeway),
		jwt.WithStrictDecoding(),
	)...)
}

func (w *wireClaims) claims() TokenClaims {
	c := TokenClaims{Mesh: w.Mesh, Cluster: w.Cluster, Node: w.Node, ID: w.ID}
	if w.IssuedAt != nil {
		c.Issued = w.IssuedAt.Time
	}
	if w.ExpiresAt != nil {
		c.Expires = w.ExpiresAt.Time
	}
	return c
}

func validateScope(cluster, node string) error {
	if node == "" {
		return mesh.ValidateClusterName(cluster)
	}
	return mesh.NodeID{Cluster: cluster, Name: node}.Validate()
}

// scope names what a token is for.
func scope(cluster, node string) string {
	if node == "" {
		return cluster
	}
	return cluster + "/" + node
}

func createCommand(c TokenClaims) string {
	s := "controlplane token create --cluster " + cmp.Or(c.Cluster, "CLUSTER")
	if c.Node != "" {
		s += " --node " + c.Node
	}
	return s
}
