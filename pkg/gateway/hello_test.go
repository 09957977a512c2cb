package gateway

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// records splits a TLS stream of handshake records into ones of at most n bytes.
func records(stream []byte, n int) []byte {
	var message, out []byte
	for len(stream) > 0 {
		size := int(binary.BigEndian.Uint16(stream[3:]))
		message = append(message, stream[5:5+size]...)
		stream = stream[5+size:]
	}
	for len(message) > 0 {
		k := min(n, len(message))
		out = append(out, 22, 3, 1, byte(k>>8), byte(k))
		out = append(out, message[:k]...)
		message = message[k:]
	}
	return out
}

// withExtension puts an extension before all others of a ClientHello of one record.
func withExtension(hello []byte, kind uint16, data []byte) []byte {
	m := bytes.Clone(hello[5:])
	at := 4 + 2 + 32
	at += 1 + int(m[at])                             // session id
	at += 2 + int(binary.BigEndian.Uint16(m[at:]))   // cipher suites
	at += 1 + int(m[at])                             // compression
	old := int(binary.BigEndian.Uint16(m[at:]))      // extensions
	more := binary.BigEndian.AppendUint16(nil, kind) //
	more = binary.BigEndian.AppendUint16(more, uint16(len(data)))
	more = append(more, data...)
	binary.BigEndian.PutUint16(m[at:], uint16(old+len(more)))
	m = append(m[:at+2:at+2], append(more, m[at+2:]...)...)
	n := len(m) - 4
	m[1], m[2], m[3] = byte(n>>16), byte(n>>8), byte(n)
	return records(append([]byte{22, 3, 1, byte(len(m) >> 8), byte(len(m))}, m...), 16384)
}

// greaseECH is what a client without an ECH configuration sends in its place.
func greaseECH() []byte {
	b := []byte{0, 0, 1, 0, 1, 77} // outer, HKDF-SHA256, AES-128-GCM, configuration 77
	b = append(append(b, 0, 32), bytes.Repeat([]byte{0x5a}, 32)...)
	return append(append(b, 0, 208), bytes.Repeat([]byte{0xa5}, 208)...)
}

func manyALPNs(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%s-%d", strings.Repeat("x", 240), i))
	}
	return all
}

type helloCase struct {
	name  string
	bytes []byte
	want  Reason
	sni   string
}

func helloCases(t testing.TB) []helloCase {
	plain := helloFor(t, sni)
	anonymous := clientHello(t, &tls.Config{InsecureSkipVerify: true})
	address := bytes.Replace(helloFor(t, "sniname.x"), []byte("sniname.x"), []byte("192.0.2.1"), 1)
	dotted := bytes.Replace(helloFor(t, "sniname.x"), []byte("sniname.x"), []byte("sniname.."), 1)
	big := clientHello(t, &tls.Config{ServerName: sni, NextProtos: manyALPNs(120)})
	return []helloCase{
		{"default", plain, "", sni},
		{"TLS 1.2", clientHello(t, &tls.Config{ServerName: sni, MaxVersion: tls.VersionTLS12}), "", sni},
		{"TLS 1.3", clientHello(t, &tls.Config{ServerName: sni, MinVersion: tls.VersionTLS13}), "", sni},
		{"TLS 1.0", clientHello(t, &tls.Config{ServerName: sni, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}), "", sni},
		{"many ALPNs, two records", big, "", sni},
		{"GREASE ECH", withExtension(plain, 0xfe0d, greaseECH()), "", sni},
		{"unknown extension", withExtension(plain, 0x3a3a, make([]byte, 9000)), "", sni},
		{"records of 1 byte", records(plain, 1), "", sni},
		{"records of 100 bytes", records(big, 100), "", sni},
		{"bytes after it", append(bytes.Clone(plain), "early data"...), "", sni},
		{"upper case", bytes.Replace(helloFor(t, "sniname.x"), []byte("sniname.x"), []byte("SNIName.X"), 1), "", "SNIName.X"},
		{"an address as SNI", address, "", "192.0.2.1"},
		{"no SNI", anonymous, NoSNI, ""},
		{"no SNI, split", records(anonymous, 7), NoSNI, ""},
		{"a name with a trailing dot", dotted, BadHello, ""},
		{"HTTP/1", []byte("GET / HTTP/1.1\r\nHost: echo.demo\r\n\r\n"), Plaintext, ""},
		{"HTTP/2", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Plaintext, ""},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.9\r\n"), Plaintext, ""},
		{"zeros", make([]byte, 100), Plaintext, ""},
		{"SSL 2", []byte{0x80, 0x2e, 1, 0, 2, 0, 21, 0, 0, 0, 16}, BadHello, ""},
		{"a ServerHello", []byte{22, 3, 3, 0, 4, 2, 0, 0, 0}, BadHello, ""},
		{"an empty ClientHello", []byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, BadHello, ""},
		{"a ClientHello of garbage", append([]byte{22, 3, 1, 0, 24, 1, 0, 0, 20}, bytes.Repeat([]byte{0xff}, 20)...), BadHello, ""},
		{"a record that is too long", []byte{22, 3, 1, 0xff, 0xff, 1, 0, 0, 20}, BadHello, ""},
		{"one that says 16 MB", []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, HelloTooLarge, ""},
		{"beyond the bound by its records", records(clientHello(t, &tls.Config{ServerName: sni, NextProtos: manyALPNs(60)}), 1), HelloTooLarge, ""},
		{"nothing", nil, ClientGone, ""},
		{"half a header", plain[:3], ClientGone, ""},
		{"half a ClientHello", plain[:200], ClientGone, ""},
		{"one record of two", big[:16389], ClientGone, ""},
		{"an alert", []byte{21, 3, 1, 0, 2, 2, 40}, ClientGone, ""},
	}
}

func TestHello(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole":        func(r io.Reader) io.Reader { return r },
		"byte by byte": iotest.OneByteReader,
		"halves":       iotest.HalfReader,
		"end at once":  iotest.DataErrReader,
	}
	config := helloConfig()
	for _, c := range helloCases(t) {
		for how, reader := range readers {
			h := &helloReader{src: reader(bytes.NewReader(c.bytes)), limit: 64 << 10}
			if got := h.readHello(config); got != c.want || h.sni != c.sni {
				t.Errorf("%s, %s: %q with SNI %q, want %q with %q", c.name, how, got, h.sni, c.want, c.sni)
			}
			if !bytes.HasPrefix(c.bytes, h.buf) {
				t.Errorf("%s, %s: what was kept is not what was sent", c.name, how)
			}
			if c.want == BadHello && (len(h.alert) != 7 || h.alert[0] != 21) {
				t.Errorf("%s, %s: no alert for the client, but %x", c.name, how, h.alert)
			}
		}
	}
}

func TestHelloBound(t *testing.T) {
	hello := helloFor(t, sni)
	for _, c := range []struct {
		limit int
		want  Reason
	}{{len(hello), ""}, {len(hello) - 1, HelloTooLarge}, {1, HelloTooLarge}} {
		h := &helloReader{src: bytes.NewReader(hello), limit: c.limit}
		if got := h.readHello(helloConfig()); got != c.want {
			t.Errorf("a bound of %d for %d bytes: %q, want %q", c.limit, len(hello), got, c.want)
		}
		if len(h.buf) > c.limit {
			t.Errorf("a bound of %d: %d bytes were read", c.limit, len(h.buf))
		}
	}
}

// oracle is what crypto/tls itself makes of a stream that it gets all at once.
func oracle(stream []byte) (name string, read bool) {
	_ = tls.Server(&wholeConn{stream: bytes.NewReader(stream)}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		name, read = info.ServerName, true
		return nil, io.EOF
	}}).Handshake()
	return name, read
}

type wholeConn struct {
	helloReader
	stream *bytes.Reader
}

func (c *wholeConn) Read(b []byte) (int, error) { return c.stream.Read(b) }

func FuzzClientHello(f *testing.F) {
	for i, c := range helloCases(f) {
		if len(c.bytes) < 4096 { // large ones keep the fuzzer busy with making them smaller
			f.Add(c.bytes, i)
		}
	}
	config := helloConfig()
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		const limit = 64 << 10
		if len(stream) >= limit {
			return
		}
		name, read := oracle(stream)
		h := &helloReader{src: &pieces{rest: stream, size: 1 + (piece&0xffff)%5000}, limit: limit}
		reason := h.readHello(config)
		if (reason == "" || reason == NoSNI) != read || h.sni != name || (reason == "") != (name != "") {
			t.Fatalf("read as %q with SNI %q; crypto/tls: %v, %q", reason, h.sni, read, name)
		}
		if !bytes.HasPrefix(stream, h.buf) {
			t.Fatal("what was kept is not what was sent")
		}
	})
}

// pieces is a connection that delivers size bytes at a time.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(p.size, len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}
