package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The events are those of the real go command.
func TestReport(t *testing.T) {
	for _, c := range []struct {
		name    string
		code    string
		failed  bool
		want    []string
		not     []string
		skipped string
	}{
		{
			name: "passes and skips",
			code: `func TestPass(t *testing.T) { t.Log("chatter") }
func TestSkip(t *testing.T) { t.Run("inner", func(t *testing.T) { t.Skip("needs a moon") }) }
func TestSilent(t *testing.T) { t.SkipNow() }`,
			want:    []string{"ok  \tx\t", "1 packages: 2 tests passed, 0 failed, 2 skipped"},
			not:     []string{"chatter", "moon"},
			skipped: "needs a moon\tx\tTestSkip/inner\nno reason given\tx\tTestSilent\n",
		},
		{
			name: "fails", failed: true,
			code: `func TestFail(t *testing.T) { t.Error("wrong by 3") }
func TestPass(t *testing.T) { t.Log("chatter") }`,
			want: []string{"wrong by 3", "FAIL\tx\t", "1 packages: 1 tests passed, 1 failed, 0 skipped", "failed: x TestFail"},
			not:  []string{"chatter"},
		},
		{
			name: "panics", failed: true,
			code: `func TestPanic(t *testing.T) { var shelf map[string]int; shelf["cheese"] = 1 }`,
			want: []string{"assignment to entry in nil map", "FAIL\tx\t", "failed: x TestPanic"},
		},
		{
			name: "exits", failed: true,
			code: `func TestExit(t *testing.T) { println("last words"); os.Exit(3) }`,
			want: []string{"last words", "FAIL\tx\t", "failed: x TestExit"},
		},
		{
			name: "does not build", failed: true,
			code: `func TestNot(t *testing.T) { undefinedName() }`,
			want: []string{"undefined: undefinedName", "FAIL\tx [build failed]", "failed: x"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "go.mod", "module x\n\ngo 1.26.0\n")
			write(t, dir, "x_test.go", "package x\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nvar _ = os.Args\n\n"+c.code+"\n")
			cmd := exec.CommandContext(t.Context(), "go", "test", "-json", ".")
			cmd.Dir = dir
			// It fails where its tests do; that it ran at all shows in what it wrote.
			events, err := cmd.Output()
			if len(events) == 0 {
				t.Fatal(err)
			}
			var out strings.Builder
			skips := filepath.Join(dir, "skips")
			failed, err := run(strings.NewReader(string(events)), &out, skips)
			if err != nil {
				t.Fatal(err)
			}
			if failed != c.failed {
				t.Errorf("failed: %v, want %v", failed, c.failed)
			}
			for _, s := range c.want {
				if !strings.Contains(out.String(), s) {
					t.Errorf("does not say %q:\n%s", s, out.String())
				}
			}
			for _, s := range c.not {
				if strings.Contains(out.String(), s) {
					t.Errorf("says %q:\n%s", s, out.String())
				}
			}
			b, err := os.ReadFile(skips)
			if err != nil || string(b) != c.skipped {
				t.Errorf("skipped %q, %v, want %q", b, err, c.skipped)
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
