package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is a line of "go test -json" (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Output     string
}

// test names a test; its Test is empty for the package itself.
type test struct{ pkg, name string }

// skip is a skipped test and why.
type skip struct{ pkg, test, reason string }

// report is what has been seen so far.
type report struct {
	out io.Writer
	// said holds the output of tests that have not ended.
	said                   map[test]string
	skips                  []skip
	passed, failed         int
	packages               int // that have tests
	brokenPackages         int
	failedTests, failedPkg []string
}

func newReport(out io.Writer) *report { return &report{out: out, said: map[test]string{}} }

// closing is the last line that go test prints for a package.
var closing = regexp.MustCompile(`^(ok|FAIL|\?)\s+\S+\s`)

// place is what testing puts in front of a reason: "    file_test.go:12: ".
var place = regexp.MustCompile(`(?m)^\s*\S+\.go:\d+: `)

func (r *report) take(e event) error {
	k := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		return r.print(e.Output)
	case "output":
		if e.Test == "" && closing.MatchString(e.Output) {
			return r.print(e.Output)
		}
		r.said[k] += e.Output
	case "pass", "fail", "skip":
		said := r.said[k]
		delete(r.said, k)
		if e.Test == "" {
			return r.takePackage(e, said)
		}
		return r.takeTest(e, said)
	}
	return nil
}

func (r *report) takeTest(e event, said string) error {
	switch e.Action {
	case "pass":
		r.passed++
	case "skip":
		r.skips = append(r.skips, skip{e.Package, e.Test, reasonOf(said)})
	case "fail":
		r.failed++
		r.failedTests = append(r.failedTests, e.Package+" "+e.Test)
		return r.print(said)
	}
	return nil
}

func (r *report) takePackage(e event, said string) error {
	if e.Action != "skip" {
		r.packages++
	}
	if e.Action != "fail" {
		return nil
	}
	r.brokenPackages++
	r.failedPkg = append(r.failedPkg, e.Package)
	// A panic or a timeout leaves tests that never ended: what they said last is
	// what matters.
	for _, k := range slices.SortedFunc(maps.Keys(r.said), func(a, b test) int { return strings.Compare(a.name, b.name) }) {
		if k.pkg != e.Package {
			continue
		}
		if err := r.print(r.said[k]); err != nil {
			return err
		}
		r.failed++
		r.failedTests = append(r.failedTests, k.pkg+" "+k.name+" (did not end)")
		delete(r.said, k)
	}
	return r.print(strings.TrimPrefix(said, "FAIL\n"))
}

// reasonOf finds what a test said about why it skips.
func reasonOf(said string) string {
	var words []string
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "=== ") || strings.HasPrefix(strings.TrimSpace(line), "--- SKIP") {
			continue
		}
		words = append(words, strings.TrimSpace(place.ReplaceAllString(line, "")))
	}
	if s := strings.TrimSpace(strings.Join(words, " ")); s != "" {
		return s
	}
	return "no reason given"
}

// end prints the sums.
func (r *report) end() error {
	s := fmt.Sprintf("%d packages: %d tests passed, %d failed, %d skipped\n", r.packages, r.passed, r.failed, len(r.skips))
	for _, t := range r.failedTests {
		s += "failed: " + t + "\n"
	}
	if len(r.failedTests) == 0 {
		for _, p := range r.failedPkg {
			s += "failed: " + p + "\n"
		}
	}
	return r.print(s)
}

func (r *report) print(s string) error {
	_, err := io.WriteString(r.out, s)
	return err
}
