package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// PEM block types (RFC 7468).
const (
	pemPrivateKey  = "PRIVATE KEY"
	pemPublicKey   = "PUBLIC KEY"
	pemCertificate = "CERTIFICATE"
)

// checkKey accepts the public keys that a certificate may hold: ECDSA on P-256
// or P-384, Ed25519, RSA of 2048 to 8192 bits (crypto/tls verifies no longer
// ones).
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("ECDSA key on %s: want P-256 or P-384", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits: want 2048 to 8192", n)
		}
		return nil
	default:
		return fmt.Errorf("key of type %T: want ECDSA, Ed25519 or RSA", pub)
	}
}

// samePublic reports whether two public keys are the same.
func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// maxCSR bounds what ParseCSR looks at; a CSR with the largest allowed key is a
// third of it.
const maxCSR = 8 << 10

// ParseCSR reads a PKCS #10 request (RFC 2986, DER) and returns its public key,
// which is all that is used of it: who the certificate is for is decided by
// what the caller has proven. The key must be one that Issue accepts, and must
// have signed the request.
func ParseCSR(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request of %d bytes: want at most %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: not signed by its own key: %w", err)
	}
	return csr.PublicKey, nil
}

// NewCSR makes a key (ECDSA P-256) and a PKCS #10 request for it, in DER.
func NewCSR() (key crypto.Signer, der []byte, err error) {
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, der, nil
}

// encodeKey writes a private key and beside it its public half: a PKCS #8
// Ed25519 key is a bare seed, and without the second copy a damaged one would
// pass as another key.
func encodeKey(key crypto.Signer) ([]byte, error) {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return append(
		pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: public})...,
	), nil
}

// decodeKey reads what encodeKey wrote and returns what follows it.
func decodeKey(data []byte) (key crypto.Signer, rest []byte, err error) {
	der, rest, err := nextPEM(data, pemPrivateKey)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("a key of type %T cannot sign", parsed)
	}
	der, rest, err = nextPEM(rest, pemPublicKey)
	if err != nil {
		return nil, nil, err
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, nil, err
	}
	if !samePublic(key.Public(), public) {
		return nil, nil, errors.New("the private key and the public key do not belong together")
	}
	return key, rest, nil
}

// decodeOwnKey reads a file that encodeKey wrote.
func decodeOwnKey(data []byte) (crypto.Signer, error) {
	key, rest, err := decodeKey(data)
	if err == nil && len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more follows after the key")
	}
	return key, err
}

// decodeForeignKey reads a private key in the forms that openssl writes (PKCS #8,
// PKCS #1, SEC 1), with the text and parameters that it puts around it, or as
// encodeKey wrote it. Whether it is undamaged shows against its certificate.
func decodeForeignKey(data []byte) (crypto.Signer, error) {
	if bytes.Contains(data, []byte("-----BEGIN "+pemPublicKey+"-----")) {
		return decodeOwnKey(data)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY", block.Headers["DEK-Info"] != "":
			return nil, errors.New("it is encrypted with a passphrase: decrypt it with: openssl pkey")
		case block.Type == pemPrivateKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case block.Type == "EC PARAMETERS":
			continue
		default:
			return nil, fmt.Errorf("a PEM block %q where a private key is expected", block.Type)
		}
		if err != nil {
			return nil, err
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return nil, errors.New("no private key in it")
}

// nextPEM reads one block of the wanted type. Unlike pem.Decode it does not skip
// what it does not understand: in our own files that is damage.
func nextPEM(data []byte, want string) (der, rest []byte, err error) {
	data = bytes.TrimSpace(data)
	if !bytes.HasPrefix(data, []byte("-----BEGIN "+want+"-----")) {
		return nil, nil, fmt.Errorf("no PEM block %q where one is expected", want)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != want {
		return nil, nil, fmt.Errorf("PEM block %q is damaged", want)
	}
	return block.Bytes, rest, nil
}

// decodeCertificates reads certificates up to the end.
func decodeCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(data)) > 0 {
		der, rest, err := nextPEM(data, pemCertificate)
		if err != nil {
			return nil, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs, data = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return certs, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
}
