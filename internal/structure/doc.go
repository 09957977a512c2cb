// Package structure holds the project's rules about its own shape, as tests:
// which package may import which, what every package and exported name owes its
// reader, which modules the project depends on and why, and that the
// documentation points at things that exist.
//
// It is not for rules that a line of text can show, such as forbidden calls:
// those are in hack/lint.sh.
package structure
