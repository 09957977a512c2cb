// Package agent is the node agent's loop: it learns its node's peers from the
// control plane, makes the kernel and the WireGuard device agree with them,
// probes every tunnel and reports what it sees.
//
// The loop is level-triggered. Whatever happens marks it dirty; it then plans
// from all it knows (plan.go, a pure function), observes the kernel, and applies
// the difference. A resync does the same every few seconds, so that nothing
// depends on an event that was missed.
package agent
