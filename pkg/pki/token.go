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

// Join tokens are JWTs (RFC 7519), signed with Ed25519 (RFC 8037). A gateway's
// has an audience of its own, so that nobody who reads agents' tokens, of
// whatever version, takes it for one.
const (
	tokenAudience   = "flatmesh-join"
	gatewayAudience = "flatmesh-join-gateway"
	tokenLeeway     = time.Minute
	maxTokenLife    = 365 * 24 * time.Hour
	// maxToken is some five times what a token with the longest names takes.
	maxToken  = 4 << 10
	pinPrefix = "sha256:"
)

// TokenClaims is what a join token says.
type TokenClaims struct {
	Mesh    string
	Cluster string
	// Node is an agent's; it is empty where the token is good for every node of
	// the cluster, and in a gateway's token.
	Node string
	// Gateway is the name of the gateway that the token is for, and empty in an
	// agent's token.
	Gateway string
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
	Gateway string `json:"gateway,omitempty"`
	// CA pins the root: "sha256:" and the hex SHA-256 of its SubjectPublicKeyInfo.
	CA string `json:"ca"`
}

// CreateToken makes a join token for the agents of a cluster, or for that of one
// node. It is valid for ttl, at most a year.
func (a *Authority) CreateToken(cluster, node string, ttl time.Duration, now time.Time) (string, error) {
	return a.createToken(TokenClaims{Cluster: cluster, Node: node}, ttl, now)
}

// CreateGatewayToken makes a join token for one gateway of a cluster. It is valid
// for ttl, at most a year, and only for the gateway of that name: no agent can
// use it.
func (a *Authority) CreateGatewayToken(cluster, name string, ttl time.Duration, now time.Time) (string, error) {
	if name == "" {
		return "", fmt.Errorf("a token for a gateway of %s: want the gateway's name", cluster)
	}
	return a.createToken(TokenClaims{Cluster: cluster, Gateway: name}, ttl, now)
}

func (a *Authority) createToken(c TokenClaims, ttl time.Duration, now time.Time) (string, error) {
	if err := c.validate(); err != nil {
		return "", err
	}
	// A JWT counts whole seconds: a shorter life would be none.
	if ttl < time.Second || ttl > maxTokenLife {
		return "", fmt.Errorf("token with a life of %v: want 1s to %dh", ttl, maxTokenLife/time.Hour)
	}
	pin := pinOf(a.root)
	token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, wireClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Audience:  jwt.ClaimStrings{c.audience()},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
			ID:        rand.Text(),
		},
		Mesh:    a.mesh,
		Cluster: c.Cluster,
		Node:    c.Node,
		Gateway: c.Gateway,
		CA:      pinPrefix + hex.EncodeToString(pin[:]),
	}).SignedString(a.tokenKey)
	if err != nil {
		return "", fmt.Errorf("sign token for %s: %w", c.scope(), err)
	}
	return token, nil
}

// VerifyToken checks an agent's join token against this mesh, its CA and now,
// with a minute of leeway for clocks. Its errors wrap ErrNotToken, ErrTokenKind,
// ErrTokenSignature, ErrTokenExpired, ErrTokenEarly or ErrOtherMesh, and are fit
// to be shown to the caller: they hold nothing of the token but its names.
func (a *Authority) VerifyToken(token string, now time.Time) (TokenClaims, error) {
	return a.verifyToken(token, tokenAudience, now)
}

// VerifyGatewayToken checks a gateway's join token, as VerifyToken does an
// agent's. The claims name a gateway.
func (a *Authority) VerifyGatewayToken(token string, now time.Time) (TokenClaims, error) {
	return a.verifyToken(token, gatewayAudience, now)
}

func (a *Authority) verifyToken(token, audience string, now time.Time) (TokenClaims, error) {
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
	if unverified.audience() != audience {
		if audience == gatewayAudience {
			return TokenClaims{}, refuse(ErrTokenKind, "token is for agents of %s, not for a gateway: make one with: %s", unverified.scope(), createCommand(TokenClaims{Cluster: unverified.Cluster, Gateway: "NAME"}))
		}
		return TokenClaims{}, refuse(ErrTokenKind, "token is for the gateway %s, not for an agent: make one with: %s", unverified.scope(), createCommand(TokenClaims{Cluster: unverified.Cluster}))
	}
	var wire wireClaims
	_, err = newTokenParser(jwt.WithAudience(audience), jwt.WithTimeFunc(func() time.Time { return now })).
		ParseWithClaims(strings.TrimSpace(token), &wire, func(*jwt.Token) (any, error) { return a.tokenKey.Public(), nil })
	claims := wire.claims()
	switch {
	case err == nil:
		return claims, nil
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return TokenClaims{}, refuse(ErrTokenSignature, "token was not signed by this control plane, or was changed: make a new one with: %s", createCommand(unverified))
	case errors.Is(err, jwt.ErrTokenExpired):
		return TokenClaims{}, refuse(ErrTokenExpired, "token for %s expired %s ago: make a new one with: %s", claims.scope(), short(now.Sub(claims.Expires)), createCommand(claims))
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return TokenClaims{}, refuse(ErrTokenEarly, "token for %s begins in %s: set the clock of the control plane, or of the machine that made the token", claims.scope(), short(claims.Issued.Sub(now)))
	default:
		return TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
}

// PinOf reads a token without verifying it, as an agent or a gateway does that
// has nothing to verify it with: the SHA-256 of the SubjectPublicKeyInfo of the root to
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
	claims := wire.claims()
	// Which names a token holds says for whom it is, and has to agree with what
	// its audience says.
	if want := claims.audience(); len(wire.Audience) != 1 || wire.Audience[0] != want {
		return nil, TokenClaims{}, fmt.Errorf("%w: it is for the audience %q, want %q", ErrNotToken, wire.Audience, want)
	}
	if _, err := TrustDomain(wire.Mesh); err != nil {
		return nil, TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
	if err := claims.validate(); err != nil {
		return nil, TokenClaims{}, fmt.Errorf("%w: %w", ErrNotToken, err)
	}
	digits, ok := strings.CutPrefix(wire.CA, pinPrefix)
	pin, err = hex.DecodeString(digits)
	if !ok || err != nil || len(pin) != sha256.Size {
		return nil, TokenClaims{}, fmt.Errorf("%w: its pin of the CA is malformed", ErrNotToken)
	}
	return pin, claims, nil
}

func newTokenParser(more ...jwt.ParserOption) *jwt.Parser {
	return jwt.NewParser(append(more,
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithNotBeforeRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(tokenLeeway),
		jwt.WithStrictDecoding(),
	)...)
}

func (w *wireClaims) claims() TokenClaims {
	c := TokenClaims{Mesh: w.Mesh, Cluster: w.Cluster, Node: w.Node, Gateway: w.Gateway, ID: w.ID}
	if w.IssuedAt != nil {
		c.Issued = w.IssuedAt.Time
	}
	if w.ExpiresAt != nil {
		c.Expires = w.ExpiresAt.Time
	}
	return c
}

// audience says for whom the token is.
func (c TokenClaims) audience() string {
	if c.Gateway != "" {
		return gatewayAudience
	}
	return tokenAudience
}

// validate looks at the names.
func (c TokenClaims) validate() error {
	switch {
	case c.Gateway != "" && c.Node != "":
		return errors.New("a token is for a node or for a gateway, not for both")
	case c.Gateway != "":
		return validateGateway(c.Cluster, c.Gateway)
	case c.Node != "":
		return mesh.NodeID{Cluster: c.Cluster, Name: c.Node}.Validate()
	}
	return mesh.ValidateClusterName(c.Cluster)
}

// scope names what a token is for.
func (c TokenClaims) scope() string {
	if name := cmp.Or(c.Node, c.Gateway); name != "" {
		return c.Cluster + "/" + name
	}
	return c.Cluster
}

func createCommand(c TokenClaims) string {
	s := "controlplane token create --cluster " + cmp.Or(c.Cluster, "CLUSTER")
	if c.Node != "" {
		s += " --node " + c.Node
	}
	if c.Gateway != "" {
		s += " --gateway " + c.Gateway
	}
	return s
}
