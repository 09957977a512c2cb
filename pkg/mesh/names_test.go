package mesh

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestParseNodeID(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		in string
		ok bool
	}{
		{"east/n1", true},
		{"0/0", true},
		{"east/ip-10-0-0-1.eu-west-1.compute.internal", true},
		{long + "/" + strings.Repeat(long+".", 3) + long[:61], true},
		{"", false},
		{"east", false},
		{"east/", false},
		{"/n1", false},
		{"east/n1/p1", false},
		{"east/N1", false},
		{"East/n1", false},
		{"ea.st/n1", false},
		{"-east/n1", false},
		{"east-/n1", false},
		{"east/-n1", false},
		{"east/n1.", false},
		{"east/n..1", false},
		{"east/n1\n", false},
		{"east\n/n1", false},
		{"east/nö", false},
		{long + "a/n1", false},
		{"east/" + strings.Repeat(long+".", 3) + long[:62], false},
	} {
		id, err := ParseNodeID(c.in)
		if (err == nil) != c.ok {
			t.Errorf("%q: got %v, %v", c.in, id, err)
		}
		if err == nil && id.String() != c.in {
			t.Errorf("%q comes back as %q", c.in, id)
		}
	}
}

func TestNodeIDOrder(t *testing.T) {
	sorted := []NodeID{{"a", "n1"}, {"a", "n10"}, {"a", "n2"}, {"a-b", "n1"}, {"b", "a"}}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := a.Compare(b); got != compareInts(i, j) {
				t.Errorf("Compare(%v, %v) = %d", a, b, got)
			}
		}
	}
}

func compareInts(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestNodeIDAsJSONKey(t *testing.T) {
	in := map[NodeID]int{{"east", "n1"}: 1}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"east/n1":1}` {
		t.Fatalf("got %s, %v", b, err)
	}
	var out map[NodeID]int
	if err := json.Unmarshal(b, &out); err != nil || out[NodeID{"east", "n1"}] != 1 {
		t.Errorf("got %v, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"east":1}`), &out); err == nil {
		t.Error("half a node is taken")
	}
}

func TestPublicKey(t *testing.T) {
	const text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=" // from wg(8)'s manual
	k, err := ParsePublicKey(text)
	if err != nil || k.String() != text || k.IsZero() {
		t.Fatalf("got %v, %v", k, err)
	}
	for _, s := range []string{
		"", "x", text[:40], text + "AAAA", strings.TrimSuffix(text, "="),
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", // zero
	} {
		if k, err := ParsePublicKey(s); err == nil {
			t.Errorf("%q is taken for %v", s, k)
		}
	}

	var back struct{ Set, Unset PublicKey }
	b, err := json.Marshal(struct{ Set, Unset PublicKey }{Set: k})
	if err != nil || string(b) != `{"Set":"`+text+`","Unset":""}` {
		t.Fatalf("got %s, %v", b, err)
	}
	back.Unset = k
	if err := json.Unmarshal(b, &back); err != nil || back.Set != k || !back.Unset.IsZero() {
		t.Errorf("got %v, %v", back, err)
	}
}

// Every enumeration must come back from its text, and nothing else may pass.
func TestTexts(t *testing.T) {
	type text interface {
		fmt.Stringer
		MarshalText() ([]byte, error)
	}
	parse := map[string]func(string) (text, error){
		"claim kind":   func(s string) (text, error) { var v ClaimKind; err := v.UnmarshalText([]byte(s)); return v, err },
		"effect":       func(s string) (text, error) { var v Effect; err := v.UnmarshalText([]byte(s)); return v, err },
		"family":       func(s string) (text, error) { var v Family; err := v.UnmarshalText([]byte(s)); return v, err },
		"tunnel state": func(s string) (text, error) { var v TunnelState; err := v.UnmarshalText([]byte(s)); return v, err },
	}
	for kind, words := range map[string][]string{
		"claim kind":   {"pod", "service", "node", "tunnel"},
		"effect":       {"listed", "yields", "pair-apart", "no-tunnels"},
		"family":       {"IPv4", "IPv6"},
		"tunnel state": {"Unknown", "Up", "Down"},
	} {
		seen := map[text]bool{}
		for _, w := range words {
			v, err := parse[kind](w)
			if err != nil {
				t.Errorf("%s %q: %v", kind, w, err)
				continue
			}
			b, err := v.MarshalText()
			if err != nil || string(b) != w || v.String() != w || seen[v] {
				t.Errorf("%s %q comes back as %q, %q (%v)", kind, w, b, v, err)
			}
			seen[v] = true
		}
		for _, w := range []string{"", strings.ToUpper(words[0]), words[0] + " ", "x"} {
			if v, err := parse[kind](w); err == nil {
				t.Errorf("%s %q is taken for %v", kind, w, v)
			}
		}
	}
}
