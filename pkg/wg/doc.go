// Package wg drives one WireGuard device: what it should hold (Desired), what
// it holds (Actual), the difference as an ordered list of operations (Diff),
// and the device that observes and applies (Device).
//
// Diff and the endpoint rule are functions of values. Device speaks through
// wgctrl, so that the kernel's WireGuard and a userspace process behind a UAPI
// socket are the same to it.
//
// It is not for addresses, routes, rules or packet filters, it starts no
// process by itself, and it decides nothing about who is a peer of whom.
package wg
