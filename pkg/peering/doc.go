// Package peering is what agents and the control plane say to each other beside
// xDS: joining with a token, renewing certificates, registering a node's
// WireGuard, and reporting tunnel states.
//
// It holds the client and the server of that conversation and what is checked
// about every message. Who may do what is asked of the Authority, what follows
// of the Backend; both are the control plane's.
package peering
