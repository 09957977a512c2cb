package pki

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// cookieLife is how long a challenge may be answered.
const cookieLife = time.Minute

// proofLabel keeps the derived keys apart from those of any other use of a
// WireGuard key.
const proofLabel = "flatmesh key proof v1"

// Challenger is the control plane's half of the proof that an agent holds its
// WireGuard key (api/peering/v1, KeyProof). It keeps nothing of a challenge: the
// cookie says when it was made, under a key that ends with the process. Inside
// its minute a proof may be repeated, for the same node and subject only.
type Challenger struct {
	key    *ecdh.PrivateKey
	secret [sha256.Size]byte
}

// NewChallenger makes fresh keys.
func NewChallenger() (*Challenger, error) {
	c := &Challenger{}
	var err error
	if c.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		return nil, fmt.Errorf("make a key for challenges: %w", err)
	}
	if _, err := rand.Read(c.secret[:]); err != nil {
		return nil, fmt.Errorf("make a key for challenges: %w", err)
	}
	return c, nil
}

// Challenge returns what an agent needs for a proof: a Curve25519 public key,
// and a cookie that is good for a minute.
func (c *Challenger) Challenge(now time.Time) (serverKey [32]byte, cookie []byte) {
	copy(serverKey[:], c.key.PublicKey().Bytes())
	cookie = binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	return serverKey, append(cookie, c.sign(cookie)...)
}

// Verify reports whether the caller holds the private half of a WireGuard key,
// and answered for this node and subject (the CSR, where there is one). Errors
// wrap ErrCookie, after which a new challenge may succeed, or ErrProof.
func (c *Challenger) Verify(publicKey mesh.PublicKey, cookie, mac []byte, node mesh.NodeID, subject []byte, now time.Time) error {
	const stamp = 8
	if len(cookie) != stamp+sha256.Size || !hmac.Equal(cookie[stamp:], c.sign(cookie[:stamp])) {
		return fmt.Errorf("%w: it was not made by this process: ask for a new one", ErrCookie)
	}
	made := time.UnixMilli(int64(binary.BigEndian.Uint64(cookie)))
	// The clock is the one that made it; going backwards gives nobody more time.
	if age := now.Sub(made); age < 0 || age >= cookieLife {
		return fmt.Errorf("%w: it is good for %v: ask for a new one", ErrCookie, cookieLife)
	}
	if !canonical(publicKey) {
		return fmt.Errorf("%w: %v is not the canonical form of a Curve25519 key", ErrProof, publicKey)
	}
	var serverKey [32]byte
	copy(serverKey[:], c.key.PublicKey().Bytes())
	key, err := proofKey(c.key, publicKey, serverKey, publicKey)
	if err != nil {
		return fmt.Errorf("%w: public key %v: %w", ErrProof, publicKey, err)
	}
	if !hmac.Equal(mac, proofMAC(key, cookie, node, subject)) {
		return fmt.Errorf("%w %v for %v", ErrProof, publicKey, node)
	}
	return nil
}

func (c *Challenger) sign(stamp []byte) []byte {
	h := hmac.New(sha256.New, c.secret[:])
	h.Write(stamp)
	return h.Sum(nil)
}

// Prove answers a challenge with a WireGuard private key.
func Prove(private, serverKey [32]byte, cookie []byte, node mesh.NodeID, subject []byte) (mac []byte, err error) {
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, fmt.Errorf("prove the WireGuard key: %w", err)
	}
	var publicKey [32]byte
	copy(publicKey[:], key.PublicKey().Bytes())
	derived, err := proofKey(key, serverKey, serverKey, publicKey)
	if err != nil {
		return nil, fmt.Errorf("prove the WireGuard key: the control plane's key: %w", err)
	}
	return proofMAC(derived, cookie, node, subject), nil
}

// proofKey derives the key of a proof and binds it to both public keys. A point
// of low order, with which anybody could answer, is an error (RFC 7748, 6.1).
func proofKey(own *ecdh.PrivateKey, peer, serverKey, publicKey [32]byte) ([]byte, error) {
	public, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return nil, err
	}
	shared, err := own.ECDH(public)
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, shared, nil, proofLabel+string(serverKey[:])+string(publicKey[:]), sha256.Size)
}

// proofMAC covers cookie, node and subject, each with its length, so that no
// two triples give the same bytes.
func proofMAC(key, cookie []byte, node mesh.NodeID, subject []byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, part := range [][]byte{cookie, []byte(node.String()), subject} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}

// canonical reports whether a key is below the field's prime, 2^255-19. X25519
// takes its other forms for the same point, so one private key could register
// under several names that WireGuard holds for different peers.
func canonical(k [32]byte) bool {
	prime := [32]byte{0x7f, 31: 0xed}
	for i := 1; i < 31; i++ {
		prime[i] = 0xff
	}
	var big [32]byte
	for i, b := range k {
		big[31-i] = b
	}
	return bytes.Compare(big[:], prime[:]) < 0
}
