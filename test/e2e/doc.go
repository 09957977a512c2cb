// Package e2e holds the tests of the whole: real agents and a real control
// plane in a lab of network namespaces, real packets between pods, and the
// faults that such a mesh meets. It has no code but its tests.
package e2e
