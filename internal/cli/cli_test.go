package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := openLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1023) + "\n"
	for range 5000 {
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	total := int64(0)
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() == 0 || info.Size() > logFileSize {
			t.Errorf("%s has %d bytes", p, info.Size())
		}
		total += info.Size()
	}
	again, err := openLogFile(path)
	if err != nil || again.size == 0 {
		t.Errorf("a log that is opened again begins at %d, %v", again.size, err)
	}
}

func TestMainExitCodes(t *testing.T) {
	for _, tt := range []struct {
		args []string
		err  error
		want int
	}{
		{nil, nil, ExitGood},
		{nil, Found("it leaks"), ExitFound},
		{nil, errors.New("cannot"), ExitUsage},
		{[]string{"--nonsense"}, nil, ExitUsage},
		{[]string{"too", "many"}, nil, ExitUsage},
	} {
		cmd := &cobra.Command{Use: "x", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return tt.err }}
		if got := Main(cmd, append([]string{}, tt.args...)); got != tt.want {
			t.Errorf("%v, %v: exit code %d, want %d", tt.args, tt.err, got, tt.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	err := errors.Join(errors.New("one"), errors.New("two\n\nthree"))
	if got := OneLine(err); got != "one; two; three" {
		t.Errorf("got %q", got)
	}
}

func TestFormat(t *testing.T) {
	cmd := &cobra.Command{}
	f := AddFormat(cmd, "json", "yaml")
	if err := f.Set("xml"); err == nil {
		t.Error("xml is taken")
	}
	v := struct {
		A int `json:"a"`
	}{7}
	for format, want := range map[string]string{"json": "{\n  \"a\": 7\n}\n", "yaml": "a: 7\n"} {
		if err := f.Set(format); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := f.Print(&b, v, nil); err != nil || b.String() != want {
			t.Errorf("%s: %q, %v", format, b.String(), err)
		}
	}
}
