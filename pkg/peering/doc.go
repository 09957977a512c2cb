// Package peering is what agents and gateways say to the control plane beside
// xDS: joining with a token, renewing certificates, registering a node's
// WireGuard, reporting tunnel states, certificates for the node's pods, and how
// the node reaches a service.
//
// It holds the client and the server of that conversation and what is checked
// about every message. Who may do what is asked of the Authority, what follows
// of the Backend; both are the control plane's.
package peering
