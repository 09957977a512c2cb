package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestEveryCommandHasHelp(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s lacks a description or an example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(newRoot())
}

func TestBadUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("clusters:\n  - name: A\n    nods: 1\n    mtu: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"dance", "unknown command"},
		{"up", "file"},
		{"up -f /no/such/file", "no such file"},
		{"up -f " + bad, "bad.yaml:3: clusters[0].nods: unknown field; " + bad + ":4: clusters[0].mtu: want a number"},
		{"down --name A", "lab name \"A\""},
		{"ls -o yaml", "want json"},
		{"ls --name no-such-lab", "no lab no-such-lab"},
		{"exec east/n1 true", "lab exec HOST -- COMMAND"},
		{"cut a/n1", "2 arg"},
		{"kill agent", "lab kill agent HOST"},
		{"kill controlplane east", "there is one control plane"},
		{"add service echo --port 80:x", "want PORT or PORT:TARGET"},
		{"ready east/n1/p1 perhaps", "want true or false"},
		{"call --count 0 http://192.0.2.1", "count of at least 1"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(context.Background(), strings.Fields(c.args), &stdout, &stderr)
		msg := stderr.String()
		if code != exitFailed || stdout.Len() > 0 || strings.Count(msg, "\n") != 1 || !strings.HasPrefix(msg, "lab: ") ||
			!strings.Contains(msg, c.want) && os.Geteuid() == 0 {
			t.Errorf("lab %s: exit code %d, stdout %q, stderr %q; want %q", c.args, code, &stdout, msg, c.want)
		}
	}
}
