package structure

import (
	"slices"
	"strings"
	"testing"
)

// loops are the two packages that wire all others together.
var loops = []string{"pkg/agent", "pkg/controlplane"}

// pure lists the packages that only decide, and what they may not import
// besides other modules: the ways to do I/O, read a clock or write a log.
var pure = []string{"pkg/mesh", "pkg/overlap"}

var effects = []string{"io/fs", "log", "log/slog", "net", "net/http", "os", "os/exec", "os/signal", "syscall", "time"}

// tree returns the part of a package's path that it shares with its
// sub-packages: "pkg/source" for "pkg/source/dir".
func tree(dir string) string {
	parts := strings.SplitN(dir, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

func under(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

// refusal says why package from may not import package to, both of this
// project, or "". In tests more is allowed.
func refusal(from, to string, test bool) string {
	own := from != "." && tree(from) == tree(to)
	switch {
	case under(to, "cmd"):
		return "commands are imported by nobody"
	case under(from, "api"):
		if under(to, "api") {
			return ""
		}
		return "api/ imports nothing of ours"
	case own:
		return ""
	case test && under(to, "internal") && (to != "internal/cli" || slices.Contains(loops, tree(from))):
		return ""
	case test && !under(from, "pkg"):
		return ""
	case slices.Contains(loops, tree(to)):
		if under(from, "cmd") || under(from, "hack") {
			return ""
		}
		return "only commands import " + tree(to)
	case under(to, "internal/lab"):
		if under(from, "hack") {
			return ""
		}
		return "only hack/ and tests import the lab"
	case from == "pkg/mesh":
		return "pkg/mesh is the leaf: it imports nothing of ours"
	case under(from, "pkg"):
		switch {
		case under(to, "internal"):
			return "nothing in pkg/ imports internal/, except in tests"
		case under(to, "api"), to == "pkg/mesh", slices.Contains(loops, tree(from)):
			return ""
		}
		return "packages in pkg/ meet only through pkg/mesh and api/"
	case under(from, "cmd"):
		if under(to, "pkg") || under(to, "api") || to == "internal/cli" {
			return ""
		}
		return "commands import pkg/, api/ and internal/cli"
	case under(from, "internal"):
		if under(to, "internal") || under(to, "api") || to == "pkg/mesh" {
			return ""
		}
		return "internal/ imports pkg/mesh and api/ of what we ship, except in tests"
	case under(from, "hack"):
		return ""
	case under(from, "test"):
		return "test/ holds nothing but tests"
	default:
		return "no rule says what this package is for: add one to internal/structure"
	}
}

func TestImportDirection(t *testing.T) {
	for _, s := range sources(t) {
		for _, p := range s.imports() {
			to, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				continue
			}
			if why := refusal(s.dir, to, s.test); why != "" {
				t.Errorf("%s imports %s: %s", s.name, to, why)
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !slices.Contains(pure, s.dir) {
			continue
		}
		for _, p := range s.imports() {
			first, _, _ := strings.Cut(p, "/")
			switch {
			case strings.HasPrefix(p, module+"/"):
			case strings.Contains(first, "."):
				t.Errorf("%s imports %s: %s decides on values alone, with the standard library", s.name, p, s.dir)
			case slices.Contains(effects, p):
				t.Errorf("%s imports %s: %s decides on values alone; I/O, clocks and logs are its callers'", s.name, p, s.dir)
			}
		}
	}
}

// The rule itself is tested, since a tree that keeps it never shows it at work.
func TestRefusal(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test     bool
		ok       bool
	}{
		{"pkg/wg", "pkg/mesh", false, true},
		{"pkg/wg", "pkg/route", false, false},
		{"pkg/wg", "pkg/route", true, false},
		{"pkg/wg", "pkg/wg/userspace", true, true},
		{"pkg/source/dir", "pkg/source", false, true},
		{"pkg/xds", "api/peer/v1", false, true},
		{"pkg/mesh", "api/peer/v1", false, false},
		{"pkg/mesh", "pkg/overlap", false, false},
		{"pkg/mesh", "pkg/overlap", true, false},
		{"pkg/agent", "pkg/wg", false, true},
		{"pkg/agent", "pkg/controlplane", false, false},
		{"pkg/wg", "pkg/agent", false, false},
		{"pkg/agent", "internal/cli", false, false},
		{"pkg/agent", "internal/cli", true, true},
		{"pkg/route", "internal/nstest", false, false},
		{"pkg/route", "internal/nstest", true, true},
		{"cmd/agent", "pkg/agent", false, true},
		{"cmd/agent", "internal/cli", false, true},
		{"cmd/agent", "internal/lab", false, false},
		{"cmd/agent", "internal/lab", true, true},
		{"cmd/agent", "cmd/controlplane", false, false},
		{"hack/lab", "internal/lab", false, true},
		{"hack/bench", "pkg/agent", false, true},
		{"hack/bench", "pkg/overlap", false, true},
		{"internal/lab", "pkg/mesh", false, true},
		{"internal/lab", "pkg/wg", false, false},
		{"internal/lab", "pkg/agent", true, true},
		{"internal/nstest", "internal/testenv", false, true},
		{"internal/nstest", "internal/lab", false, false},
		{"api/peer/v1", "pkg/mesh", false, false},
		{"test/e2e", "pkg/agent", true, true},
		{"test/e2e", "internal/lab", true, true},
		{"test/e2e", "pkg/mesh", false, false},
		{"tools/x", "pkg/mesh", false, false},
	} {
		if why := refusal(c.from, c.to, c.test); (why == "") != c.ok {
			t.Errorf("%s imports %s (test: %v): refused with %q, want allowed: %v", c.from, c.to, c.test, why, c.ok)
		}
	}
}
