package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what -o json prints.
type report struct {
	Machine machine  `json:"machine"`
	Quick   bool     `json:"quick"`
	Tables  []*table `json:"benchmarks"`
}

// machine says where and when the numbers were measured.
type machine struct {
	CPUs   int       `json:"cpus"`
	CPU    string    `json:"cpu"`
	Kernel string    `json:"kernel"`
	Go     string    `json:"go"`
	At     time.Time `json:"at"`
	// Load is the load average of the last minute, before the run: what else the
	// machine was doing.
	Load string `json:"load"`
}

func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), CPU: "unknown", Kernel: "unknown", Go: runtime.Version(), At: time.Now().UTC(), Load: "unknown"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(b), " ")
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if k, v, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	return m
}

func (m machine) print(w io.Writer, quick bool) {
	short := ""
	if quick {
		short = " A quick run: few and short measurements."
	}
	fmt.Fprintf(w, "%d CPUs (%s), Linux %s, %s, %s; load average %s before the run.%s\n",
		m.CPUs, m.CPU, m.Kernel, m.Go, m.At.Format(time.DateOnly), m.Load, short)
}

// table is the result of one benchmark.
type table struct {
	Name    string     `json:"name"`
	Title   string     `json:"title"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
	Notes   []string   `json:"notes"`
	// Samples are the single measurements behind the rows.
	Samples map[string]series `json:"samples"`
	Seconds float64           `json:"seconds"`
}

func newTable(title string, columns ...string) *table {
	return &table{Title: title, Columns: columns, Rows: [][]string{}, Notes: []string{}, Samples: map[string]series{}}
}

func (t *table) row(cells ...string) { t.Rows = append(t.Rows, cells) }

func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

func (t *table) sample(name string, s series) series {
	if len(s) > 0 {
		t.Samples[name] = s
	}
	return s
}

// print writes Markdown.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n### %s\n\n", t.Title)
	line := func(cells []string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.Columns)
	rule := make([]string, len(t.Columns))
	for i := range rule {
		rule[i] = "---"
	}
	line(rule)
	for _, r := range t.Rows {
		line(r)
	}
	fmt.Fprintln(w)
	for _, n := range t.Notes {
		fmt.Fprintf(w, "- %s\n", n)
	}
	fmt.Fprintf(w, "- Measured in %.0f s (`--only %s`).\n", t.Seconds, t.Name)
}
