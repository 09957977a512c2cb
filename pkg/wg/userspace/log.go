package userspace

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"

	"golang.zx2c4.com/wireguard/device"
)

// keyLike finds what could be a key or most of one, in hex as in UAPI or in
// base64. The engine itself prints public keys shortened and private ones
// never, but it quotes lines of UAPI that it cannot parse.
var keyLike = regexp.MustCompile(`[0-9a-fA-F]{16,}|[0-9a-zA-Z+/]{40,}=?`)

// engineLogger writes what the engine logs, formatting only what is wanted.
func engineLogger(log *slog.Logger) *device.Logger {
	at := func(level slog.Level) func(string, ...any) {
		return func(format string, args ...any) {
			ctx := context.Background() // the engine has none to give
			if log.Enabled(ctx, level) {
				log.Log(ctx, level, keyLike.ReplaceAllString(fmt.Sprintf(format, args...), "(hidden)"))
			}
		}
	}
	return &device.Logger{Verbosef: at(slog.LevelDebug), Errorf: at(slog.LevelError)}
}
