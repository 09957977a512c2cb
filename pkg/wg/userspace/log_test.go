package userspace

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestEngineLoggerHidesKeys(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		"private_key=" + hex:                                      "private_key=(hidden)",
		"failed to parse line " + hex[:40]:                        "failed to parse line (hidden)",
		"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=":            "(hidden)",
		"peer(D7TL…uXUs) - Received handshake response":           "peer(D7TL…uXUs) - Received handshake response",
		"listen udp6 [2001:db8::1]:51830: address already in use": "listen udp6 [2001:db8::1]:51830: address already in use",
	} {
		for level, logged := range map[slog.Level]int{slog.LevelDebug: 2, slog.LevelError: 1} {
			var out bytes.Buffer
			l := engineLogger(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})))
			l.Verbosef("%s", in)
			l.Errorf("%s", in)
			if n := strings.Count(out.String(), `"msg":"`+want+`"`); n != logged || strings.Count(out.String(), "\n") != logged {
				t.Errorf("at level %v, %q is logged as %q", level, in, out.String())
			}
		}
	}
}
