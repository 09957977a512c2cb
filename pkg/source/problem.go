package source

import (
	"fmt"
	"slices"
)

// Problem is something about an object that keeps it, or a part of it, from
// being used as it says. The rest of it is used.
type Problem struct {
	Object Key
	// Err says what is wrong and what follows; it is a FieldError where one field
	// is at fault.
	Err error
}

// Error reads "Service shop/web: spec.ports: …".
func (p Problem) Error() string { return p.Object.String() + ": " + p.Err.Error() }

// Unwrap returns what is wrong, without the object.
func (p Problem) Unwrap() error { return p.Err }

// maxProblems is how many problems of one object are told: an object may hold a
// thousand addresses that are wrong in the same way.
const maxProblems = 5

// problems collects what is wrong with one object.
type problems struct {
	object Key
	errs   []error
	more   int
}

func (p *problems) add(err error, field string, args ...any) {
	switch {
	case err == nil:
	case len(p.errs) == maxProblems:
		p.more++
	default:
		p.errs = append(p.errs, &FieldError{Field: fmt.Sprintf(field, args...), Err: err})
	}
}

// list returns what was collected.
func (p *problems) list() []Problem {
	var out []Problem
	for _, err := range p.errs {
		out = append(out, Problem{Object: p.object, Err: err})
	}
	if p.more > 0 {
		out = append(out, Problem{Object: p.object, Err: fmt.Errorf("and %d more", p.more)})
	}
	return out
}

// sortProblems orders by object, and leaves those of one object as they are.
func sortProblems(list []Problem) []Problem {
	slices.SortStableFunc(list, func(a, b Problem) int { return a.Object.Compare(b.Object) })
	return list
}
