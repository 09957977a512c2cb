package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func testTrustDomain(t *testing.T, meshName string) spiffeid.TrustDomain {
	t.Helper()
	td, err := TrustDomain(meshName)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func TestTokenRoundTrip(t *testing.T) {
	a := testAuthority(t, "acme")
	now := time.Now()
	for _, node := range []string{"", "n1"} {
		token, err := a.CreateToken("east", node, 24*time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := a.VerifyToken(" "+token+"\n", now)
		if err != nil {
			t.Fatal(err)
		}
		if claims.Mesh != "acme" || claims.Cluster != "east" || claims.Node != node || claims.ID == "" ||
			claims.Expires.Unix() != now.Add(24*time.Hour).Unix() || claims.Issued.Unix() != now.Unix() {
			t.Errorf("claims %+v", claims)
		}
		pin, unverified, err := PinOf(token + "\n")
		if err != nil || unverified != claims {
			t.Errorf("unverified claims %+v (%v), want %+v", unverified, err, claims)
		}
		if want := pinOf(a.root); string(pin) != string(want[:]) {
			t.Errorf("pin %x, want %x", pin, want)
		}
	}
}

func TestCreateTokenRefuses(t *testing.T) {
	a := testAuthority(t, "acme")
	for name, tt := range map[string]struct {
		cluster, node string
		ttl           time.Duration
		want          string
	}{
		"bad cluster":  {"East", "", time.Hour, "cluster name"},
		"no cluster":   {"", "n1", time.Hour, "cluster name"},
		"bad node":     {"east", "n 1", time.Hour, "node name"},
		"no life":      {"east", "", 0, "1s to 8760h"},
		"negative":     {"east", "", -time.Hour, "1s to 8760h"},
		"sub-second":   {"east", "", time.Millisecond, "1s to 8760h"},
		"over a year":  {"east", "", maxTokenLife + 1, "1s to 8760h"},
		"slash inside": {"east/n1", "", time.Hour, "cluster name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.CreateToken(tt.cluster, tt.node, tt.ttl, time.Now())
			wantError(t, err, tt.want)
		})
	}
}

func TestGatewayTokenRoundTrip(t *testing.T) {
	a := testAuthority(t, "acme")
	now := time.Now()
	token, err := a.CreateGatewayToken("east", "gw-0", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := a.VerifyGatewayToken(token, now)
	if err != nil {
		t.Fatal(err)
	}
	if claims.Cluster != "east" || claims.Gateway != "gw-0" || claims.Node != "" || claims.Mesh != "acme" {
		t.Errorf("claims %+v", claims)
	}
	if _, unverified, err := PinOf(token); err != nil || unverified != claims {
		t.Errorf("unverified claims %+v (%v)", unverified, err)
	}
	_, err = a.VerifyGatewayToken(token, now.Add(3*time.Hour))
	if !errors.Is(err, ErrTokenExpired) {
		t.Errorf("after its end: %v", err)
	}
	wantError(t, err, "token for east/gw-0 expired 2h ago", "controlplane token create --cluster east --gateway gw-0")
	for _, tt := range [][2]string{{"", "gw"}, {"East", "gw"}, {"east", ""}, {"east", "a/b"}, {"east", "GW"}} {
		if token, err := a.CreateGatewayToken(tt[0], tt[1], time.Hour, now); err == nil {
			t.Errorf("a token for %q: %s", tt, token)
		}
	}
}

// Neither kind of token does for the other, signed and of this mesh as it may be.
func TestTokenOfTheOtherKind(t *testing.T) {
	a := testAuthority(t, "acme")
	now := time.Now()
	gateway, err := a.CreateGatewayToken("east", "gw", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := a.VerifyToken(gateway, now)
	if !errors.Is(err, ErrTokenKind) || claims != (TokenClaims{}) {
		t.Errorf("a gateway's for an agent: %+v, %v", claims, err)
	}
	wantError(t, err, "for the gateway east/gw, not for an agent", "controlplane token create --cluster east")
	for _, node := range []string{"", "gw"} {
		agent, err := a.CreateToken("east", node, time.Hour, now)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := a.VerifyGatewayToken(agent, now)
		if !errors.Is(err, ErrTokenKind) || claims != (TokenClaims{}) {
			t.Errorf("an agent's for a gateway: %+v, %v", claims, err)
		}
		wantError(t, err, "for agents of east", "not for a gateway", "--gateway NAME")
	}
	// Names that say one thing and an audience that says another.
	for name, change := range map[string]func(*wireClaims){
		"an agent's with a gateway's name":     func(c *wireClaims) { c.Gateway = "gw" },
		"an agent's for a gateway's audience":  func(c *wireClaims) { c.Audience = jwt.ClaimStrings{gatewayAudience} },
		"a gateway's with a node":              func(c *wireClaims) { c.Audience, c.Gateway, c.Node = jwt.ClaimStrings{gatewayAudience}, "gw", "n1" },
		"for both audiences":                   func(c *wireClaims) { c.Audience = jwt.ClaimStrings{tokenAudience, gatewayAudience} },
		"a gateway's for both audiences":       func(c *wireClaims) { c.Audience, c.Gateway = jwt.ClaimStrings{gatewayAudience, tokenAudience}, "gw" },
		"a gateway's with a name of two parts": func(c *wireClaims) { c.Audience, c.Gateway = jwt.ClaimStrings{gatewayAudience}, "a/b" },
	} {
		token := forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, change)
		if claims, err := a.VerifyToken(token, now); !errors.Is(err, ErrNotToken) {
			t.Errorf("%s, for an agent: %+v, %v", name, claims, err)
		}
		if claims, err := a.VerifyGatewayToken(token, now); !errors.Is(err, ErrNotToken) {
			t.Errorf("%s, for a gateway: %+v, %v", name, claims, err)
		}
	}
	right := forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.Audience, c.Gateway = jwt.ClaimStrings{gatewayAudience}, "gw" })
	if _, err := a.VerifyGatewayToken(right, now); err != nil {
		t.Error(err)
	}
}

func TestVerifyTokenTime(t *testing.T) {
	a := testAuthority(t, "acme")
	made := time.Now().Truncate(time.Second)
	token, err := a.CreateToken("east", "n1", time.Hour, made)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after time.Duration
		kind  error
		want  string
	}{
		{-2 * time.Minute, ErrTokenEarly, "token for east/n1 begins in 2m"},
		{-59 * time.Second, nil, ""},
		{0, nil, ""},
		{time.Hour + 59*time.Second, nil, ""},
		{time.Hour + time.Minute, ErrTokenExpired, "token for east/n1 expired 1m ago: make a new one with: controlplane token create --cluster east --node n1"},
		{4*time.Hour + 5*time.Minute, ErrTokenExpired, "expired 3h ago"},
		{100 * time.Hour, ErrTokenExpired, "expired 4d ago"},
	} {
		_, err := a.VerifyToken(token, made.Add(tt.after))
		if !errors.Is(err, tt.kind) {
			t.Errorf("after %v: %v, want %v", tt.after, err, tt.kind)
		} else if err != nil {
			wantError(t, err, tt.want)
		}
	}
}

func TestVerifyTokenOfAnother(t *testing.T) {
	now := time.Now()
	a, namesake, other := testAuthority(t, "acme"), testAuthority(t, "acme"), testAuthority(t, "umbra")
	for name, tt := range map[string]struct {
		by   *Authority
		want []string
	}{
		"another mesh":                {other, []string{`"umbra"`, `"acme"`, "token create --cluster east"}},
		"another CA of the same name": {namesake, []string{"another mesh named", "new CA", "token create --cluster east"}},
	} {
		t.Run(name, func(t *testing.T) {
			token, err := tt.by.CreateToken("east", "", time.Hour, now)
			if err != nil {
				t.Fatal(err)
			}
			_, err = a.VerifyToken(token, now)
			if !errors.Is(err, ErrOtherMesh) {
				t.Errorf("error %v, want ErrOtherMesh", err)
			}
			wantError(t, err, tt.want...)
		})
	}
}

// forge signs claims that look like a's with another method and key.
func forge(t *testing.T, a *Authority, method jwt.SigningMethod, key any, change func(*wireClaims)) string {
	t.Helper()
	now := time.Now()
	token, err := a.CreateToken("east", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	var claims wireClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&claims)
	}
	forged, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return forged
}

func TestVerifyTokenForged(t *testing.T) {
	a := testAuthority(t, "acme")
	public := []byte(a.tokenKey.Public().(ed25519.PublicKey))
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		token string
		kind  error
	}{
		"empty":                 {"", ErrNotToken},
		"a word":                {"hello", ErrNotToken},
		"two parts":             {"a.b", ErrNotToken},
		"very long":             {strings.Repeat("a", maxToken+1), ErrNotToken},
		"alg none":              {forge(t, a, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), ErrNotToken},
		"HMAC with public key":  {forge(t, a, jwt.SigningMethodHS256, public, nil), ErrNotToken},
		"another Ed25519 key":   {forge(t, a, jwt.SigningMethodEdDSA, stranger, nil), ErrTokenSignature},
		"the CA's key":          {forge(t, a, jwt.SigningMethodES256, a.ca.key, nil), ErrNotToken},
		"another audience":      {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.Audience = jwt.ClaimStrings{"flatmesh"} }), ErrNotToken},
		"two audiences":         {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.Audience = append(c.Audience, "x") }), ErrNotToken},
		"no expiry":             {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.ExpiresAt = nil }), ErrNotToken},
		"no beginning":          {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.NotBefore = nil }), ErrNotToken},
		"a bad cluster name":    {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.Cluster = "../x" }), ErrNotToken},
		"a bad node name":       {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.Node = "a/b" }), ErrNotToken},
		"a bad mesh name":       {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.Mesh = "" }), ErrNotToken},
		"no pin":                {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.CA = "" }), ErrNotToken},
		"a short pin":           {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.CA = "sha256:00" }), ErrNotToken},
		"a pin of another kind": {forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, func(c *wireClaims) { c.CA = "md5:" + c.CA[7:] }), ErrNotToken},
	} {
		t.Run(name, func(t *testing.T) {
			claims, err := a.VerifyToken(tt.token, time.Now())
			if !errors.Is(err, tt.kind) {
				t.Errorf("claims %+v, error %v, want %v", claims, err, tt.kind)
			}
		})
	}
	// The same claims under the right key are good: the refusals above are not
	// for another reason.
	if _, err := a.VerifyToken(forge(t, a, jwt.SigningMethodEdDSA, a.tokenKey, nil), time.Now()); err != nil {
		t.Error(err)
	}
}

func TestVerifyTokenChanged(t *testing.T) {
	a := testAuthority(t, "acme")
	token, err := a.CreateToken("east", "n1", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	claims["node"] = "n2"
	if payload, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString(payload)
	if _, err := a.VerifyToken(strings.Join(parts, "."), time.Now()); !errors.Is(err, ErrTokenSignature) {
		t.Errorf("another node's name: %v", err)
	}
	for i := range token {
		changed := []byte(token)
		if changed[i]++; changed[i] == '{' {
			changed[i] = 'a'
		}
		if claims, err := a.VerifyToken(string(changed), time.Now()); err == nil {
			t.Fatalf("changed at %d, yet it reads %+v", i, claims)
		}
		if claims, err := a.VerifyToken(token[:i], time.Now()); err == nil {
			t.Fatalf("cut at %d, yet it reads %+v", i, claims)
		}
	}
}

func FuzzPinOf(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJFZERTQSJ9.e30.")
	f.Add("eyJhbGciOiJub25lIn0.eyJtZXNoIjoiYWNtZSJ9.")
	f.Fuzz(func(t *testing.T, token string) {
		pin, claims, err := PinOf(token)
		switch {
		case err != nil && !errors.Is(err, ErrNotToken):
			t.Errorf("error %v, want ErrNotToken", err)
		case err == nil && (len(pin) != 32 || claims.validate() != nil):
			t.Errorf("pin %x, claims %+v", pin, claims)
		}
	})
}
