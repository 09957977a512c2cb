package wg

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func newKey(t testing.TB) PrivateKey {
	t.Helper()
	k, err := GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// spellings are the ways in which a key could show.
func spellings(k PrivateKey) []string {
	return []string{
		base64.StdEncoding.EncodeToString(k[:])[:16],
		hex.EncodeToString(k[:])[:16], strings.ToUpper(hex.EncodeToString(k[:]))[:16],
		strings.Trim(fmt.Sprint(k[:8]), "[]"), strings.Trim(fmt.Sprintf("%#v", k[:4]), "[]byte{}"),
		string(k[:8]),
	}
}

func TestPrivateKeyIsHidden(t *testing.T) {
	k := newKey(t)
	d := Desired{PrivateKey: k}
	op := Op{Kind: SetPrivateKey, PrivateKey: k}
	var out bytes.Buffer
	for _, v := range []any{k, &k, d, &d, op, []Op{op}, map[PrivateKey]bool{k: true}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%t", "%08d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, log := range []*slog.Logger{
		slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil)),
	} {
		log.Info("key", "key", k, "pointer", &k, "desired", d, "op", op, "ops", []Op{op})
	}
	for _, v := range []any{k, &k, d, op, map[PrivateKey]bool{k: true}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	for _, s := range spellings(k) {
		if strings.Contains(out.String(), s) {
			t.Errorf("the key shows as %q", s)
		}
	}
	if !strings.Contains(out.String(), redacted) || !strings.Contains(out.String(), k.PublicKey().String()) {
		t.Errorf("nothing was printed: %q", out.String())
	}
}

func TestPublicKey(t *testing.T) {
	for range 20 {
		k := newKey(t)
		if got, want := k.PublicKey().String(), wgtypes.Key(k).PublicKey().String(); got != want {
			t.Fatalf("public key %s, wgctrl says %s", got, want)
		}
	}
	if !(PrivateKey{}).PublicKey().IsZero() {
		t.Error("the zero key has a public key")
	}
}
