package pki

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func wireguardKey(t *testing.T) (private [32]byte, public mesh.PublicKey) {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	copy(private[:], key.Bytes())
	copy(public[:], key.PublicKey().Bytes())
	return private, public
}

func testChallenger(t *testing.T) *Challenger {
	t.Helper()
	c, err := NewChallenger()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestProof(t *testing.T) {
	now := time.Now()
	c, restarted := testChallenger(t), testChallenger(t)
	private, public := wireguardKey(t)
	otherPrivate, otherPublic := wireguardKey(t)
	subject := []byte("a CSR")
	serverKey, cookie := c.Challenge(now)
	mac, err := Prove(private, serverKey, cookie, east1, subject)
	if err != nil {
		t.Fatal(err)
	}
	strangersMAC, err := Prove(otherPrivate, serverKey, cookie, east1, subject)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1
		return b
	}
	_, later := c.Challenge(now.Add(time.Second))

	for name, tt := range map[string]struct {
		by      *Challenger
		key     mesh.PublicKey
		cookie  []byte
		mac     []byte
		node    mesh.NodeID
		subject []byte
		after   time.Duration
		want    error
	}{
		"good":                       {c, public, cookie, mac, east1, subject, 0, nil},
		"in the last moment":         {c, public, cookie, mac, east1, subject, cookieLife - time.Millisecond, nil},
		"after a minute":             {c, public, cookie, mac, east1, subject, cookieLife + time.Millisecond, ErrCookie},
		"before it was made":         {c, public, cookie, mac, east1, subject, -time.Second, ErrCookie},
		"after a restart":            {restarted, public, cookie, mac, east1, subject, 0, ErrCookie},
		"changed cookie":             {c, public, changed(cookie), mac, east1, subject, 0, ErrCookie},
		"short cookie":               {c, public, cookie[:8], mac, east1, subject, 0, ErrCookie},
		"no cookie":                  {c, public, nil, mac, east1, subject, 0, ErrCookie},
		"long cookie":                {c, public, append(bytes.Clone(cookie), 0), mac, east1, subject, 0, ErrCookie},
		"another challenge":          {c, public, later, mac, east1, subject, time.Second, ErrProof},
		"another node":               {c, public, cookie, mac, mesh.NodeID{Cluster: "east", Name: "n2"}, subject, 0, ErrProof},
		"another cluster":            {c, public, cookie, mac, mesh.NodeID{Cluster: "west", Name: "n1"}, subject, 0, ErrProof},
		"another CSR":                {c, public, cookie, mac, east1, []byte("b CSR"), 0, ErrProof},
		"no CSR":                     {c, public, cookie, mac, east1, nil, 0, ErrProof},
		"node and subject moved":     {c, public, cookie, mac, mesh.NodeID{Cluster: "east", Name: "n1a"}, []byte(" CSR"), 0, ErrProof},
		"somebody else's key":        {c, otherPublic, cookie, mac, east1, subject, 0, ErrProof},
		"proof of another key":       {c, public, cookie, strangersMAC, east1, subject, 0, ErrProof},
		"changed proof":              {c, public, cookie, changed(mac), east1, subject, 0, ErrProof},
		"cut proof":                  {c, public, cookie, mac[:16], east1, subject, 0, ErrProof},
		"no proof":                   {c, public, cookie, nil, east1, subject, 0, ErrProof},
		"zero key":                   {c, mesh.PublicKey{}, cookie, mac, east1, subject, 0, ErrProof},
		"low order: one":             {c, mesh.PublicKey{1}, cookie, mac, east1, subject, 0, ErrProof},
		"low order beyond the prime": {c, lowOrder, cookie, mac, east1, subject, 0, ErrProof},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.by.Verify(tt.key, tt.cookie, tt.mac, tt.node, tt.subject, now.Add(tt.after))
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

// lowOrder is a point of order 8 (https://cr.yp.to/ecdh.html, "validate").
var lowOrder = mesh.PublicKey{
	0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
	0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
}

func TestLowOrderKeysSaySo(t *testing.T) {
	c := testChallenger(t)
	now := time.Now()
	serverKey, cookie := c.Challenge(now)
	private, _ := wireguardKey(t)
	// With a point of low order the shared secret is known: all zeros.
	wantError(t, c.Verify(lowOrder, cookie, nil, east1, nil, now), "low order")
	_, err := Prove(private, [32]byte(lowOrder), cookie, east1, nil)
	wantError(t, err, "the control plane's key", "low order")
	if _, err := Prove(private, serverKey, cookie, east1, nil); err != nil {
		t.Error(err)
	}
}

// A private key as it lies in a file may not be clamped; WireGuard clamps it,
// and so must the proof.
func TestProofOfAnUnclampedKey(t *testing.T) {
	c := testChallenger(t)
	now := time.Now()
	private, _ := wireguardKey(t)
	private[0] |= 7
	private[31] |= 0xc0
	clamped := private
	clamped[0] &^= 7
	clamped[31] &^= 0x80
	key, err := ecdh.X25519().NewPrivateKey(clamped[:])
	if err != nil {
		t.Fatal(err)
	}
	serverKey, cookie := c.Challenge(now)
	mac, err := Prove(private, serverKey, cookie, east1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(mesh.PublicKey(key.PublicKey().Bytes()), cookie, mac, east1, nil, now); err != nil {
		t.Error(err)
	}
}

// X25519 reads several byte strings as the same point. Whoever holds a key could
// prove any of them, and so register one key as many.
func TestProofRefusesOtherFormsOfAKey(t *testing.T) {
	c := testChallenger(t)
	now := time.Now()
	serverKey, cookie := c.Challenge(now)
	private, public := wireguardKey(t)
	own, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		t.Fatal(err)
	}
	high := public
	high[31] |= 0x80
	for claimed, want := range map[mesh.PublicKey]bool{public: true, high: false} {
		key, err := proofKey(own, serverKey, serverKey, claimed)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Verify(claimed, cookie, proofMAC(key, cookie, east1, nil), east1, nil, now)
		if (err == nil) != want {
			t.Errorf("%v: %v", claimed, err)
		}
		if !want {
			wantError(t, err, "canonical")
		}
	}
	prime := [32]byte{0xed, 31: 0x7f}
	for i := 1; i < 31; i++ {
		prime[i] = 0xff
	}
	below, above := prime, prime
	below[0]--
	above[0]++
	if !canonical(below) || canonical(prime) || canonical(above) {
		t.Error("the bound is not 2^255-19")
	}
}
