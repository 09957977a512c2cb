package dir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Error is one thing that is wrong with a cluster folder, and where. What Load
// returns and what Update.Err holds is several of them, joined.
type Error struct {
	File string // path, as the folder was given
	Line int    // from 1; 0 where the file as a whole is meant
	// Object is "Node n1" or "Service ns/name"; empty outside of one.
	Object string
	// Field is the path of the field as Kubernetes writes it; may be empty.
	Field string
	Err   error
}

// Error reads "east/nodes.yaml:14: Node n2: spec.podCIDRz: unknown field".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	for _, s := range []string{e.Object, e.Field} {
		if s != "" {
			b.WriteString(": ")
			b.WriteString(s)
		}
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns what is wrong, without the place.
func (e *Error) Unwrap() error { return e.Err }

// maxErrors is how many errors of a folder are told at once: enough to work on,
// and no flood from a file that is something else altogether.
const maxErrors = 20

// join makes one error of what was found, in the order of files and lines.
func join(errs []*Error) error {
	slices.SortStableFunc(errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	var out []error
	for i, e := range errs {
		if i == maxErrors {
			out = append(out, errors.New("and more errors"))
			break
		}
		out = append(out, e)
	}
	return errors.Join(out...)
}

// missing is the absence of a cluster folder or of its cluster.yaml: to a caller
// fs.ErrNotExist, to people what it says.
type missing string

func noFolder(path string) error { return missing(path + ": there is no such folder") }

func noClusterFile(path string) error {
	return missing(path + ": there is no such file; it declares the cluster: its name and, where they are known, network, podCIDRs, serviceCIDRs and nodeCIDRs")
}

func (m missing) Error() string { return string(m) }

func (missing) Unwrap() error { return fs.ErrNotExist }
