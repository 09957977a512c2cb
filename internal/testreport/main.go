// Command testreport reads what "go test -json" writes and prints what a person
// wants of it: each package's closing line, everything that a failed test said,
// and at the end how many tests passed, failed and were skipped. With
// -skipped FILE it appends a line for each skipped test, its reason first.
//
// It is for hack/test.sh, and it judges nothing: exit code 1 only says that a
// test or a build has failed.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	skipped := flag.String("skipped", "", "file to append skipped tests to")
	flag.Parse()
	failed, err := run(os.Stdin, os.Stdout, *skipped)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	case failed:
		os.Exit(1)
	}
}

// run reports on in. failed says that something in it has failed.
func run(in io.Reader, out io.Writer, skippedFile string) (failed bool, err error) {
	r := newReport(out)
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				// The go command's own errors come as they are.
				if _, err := out.Write(line); err != nil {
					return false, err
				}
			} else if err := r.take(e); err != nil {
				return false, err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, fmt.Errorf("read test events: %w", err)
		}
	}
	if err := r.end(); err != nil {
		return false, err
	}
	if skippedFile != "" {
		if err := appendSkips(skippedFile, r.skips); err != nil {
			return false, err
		}
	}
	return r.failed > 0 || r.brokenPackages > 0, nil
}

func appendSkips(path string, skips []skip) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("note skipped tests: %w", err)
	}
	for _, s := range skips {
		if _, err := fmt.Fprintf(f, "%s\t%s\t%s\n", s.reason, s.pkg, s.test); err != nil {
			return fmt.Errorf("note skipped tests: %w", err)
		}
	}
	return f.Close()
}
