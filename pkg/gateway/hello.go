package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"
)

// firstRead holds nearly every ClientHello: one with a post-quantum key share has
// some 1,800 bytes.
const firstRead = 4096

var (
	errHelloRead     = errors.New("the ClientHello has been read")
	errHelloTooLarge = errors.New("the ClientHello is too large")
)

// helloReader reads one ClientHello, keeping every byte for the pod. crypto/tls
// does the parsing, so that exactly what it understands is understood here: it
// sees this as its connection, and is stopped once it has the server name.
type helloReader struct {
	src   io.Reader
	limit int

	buf  []byte // everything read from src
	next int    // how much of buf crypto/tls has had
	read bool   // whether there was a whole ClientHello
	sni  string // its server name, "" where it has none
	// alert is what crypto/tls would have answered to a broken ClientHello.
	alert []byte
}

// helloConfig stops crypto/tls as soon as it has parsed a ClientHello, before it
// looks at versions and ciphers: those are between client and pod.
func helloConfig() *tls.Config {
	return &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h := info.Conn.(*helloReader)
		h.read, h.sni = true, info.ServerName
		return nil, errHelloRead
	}}
}

// readHello fills h from its source. It returns "" where there was a ClientHello
// with a server name, otherwise why it has to be refused.
func (h *helloReader) readHello(config *tls.Config) Reason {
	err := tls.Server(h, config).Handshake()
	var header tls.RecordHeaderError
	switch {
	case h.read && h.sni != "":
		return ""
	case h.read:
		return NoSNI
	case errors.Is(err, os.ErrDeadlineExceeded):
		return HelloTimeout
	case errors.Is(err, errHelloTooLarge), h.claims() > h.limit:
		return HelloTooLarge
	case errors.As(err, &header) && header.Conn != nil:
		return Plaintext
	case len(h.alert) > 0, header.Msg != "":
		return BadHello
	default: // closed, reset, or cut by us
		return ClientGone
	}
}

// claims returns how long the ClientHello says that it is: crypto/tls refuses one
// that is too long without reading it.
func (h *helloReader) claims() int {
	if len(h.buf) < 9 || h.buf[0] != 22 || h.buf[5] != 1 { // RFC 8446, 5.1 and 4: handshake, client_hello
		return 0
	}
	return int(h.buf[6])<<16 | int(h.buf[7])<<8 | int(h.buf[8])
}

// looksLikeHTTP reports whether the client speaks plaintext HTTP of any version,
// gRPC without TLS included.
func (h *helloReader) looksLikeHTTP() bool { return bytes.Contains(h.buf, []byte(" HTTP/")) }

// Read hands what the client sent to crypto/tls and keeps it.
func (h *helloReader) Read(b []byte) (int, error) {
	if h.next == len(h.buf) {
		if len(h.buf) >= h.limit {
			return 0, errHelloTooLarge
		}
		if len(h.buf) == cap(h.buf) {
			h.buf = slices.Grow(h.buf, firstRead)
		}
		n, err := h.src.Read(h.buf[len(h.buf):min(cap(h.buf), h.limit)])
		h.buf = h.buf[:len(h.buf)+n]
		if n == 0 {
			return 0, err
		}
	}
	n := copy(b, h.buf[h.next:])
	h.next += n
	return n, nil
}

// Write keeps crypto/tls's alert from the client: which one is ours to say.
func (h *helloReader) Write(b []byte) (int, error) {
	h.alert = append(h.alert, b...)
	return len(b), nil
}

// The rest of net.Conn, of which crypto/tls makes no use before a handshake ends.

// Close does nothing: the connection is not crypto/tls's to close.
func (h *helloReader) Close() error { return nil }

// LocalAddr returns nil.
func (h *helloReader) LocalAddr() net.Addr { return nil }

// RemoteAddr returns nil.
func (h *helloReader) RemoteAddr() net.Addr { return nil }

// SetDeadline does nothing.
func (h *helloReader) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (h *helloReader) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (h *helloReader) SetWriteDeadline(time.Time) error { return nil }
