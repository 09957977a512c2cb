// Package mesh holds the values that flatmesh decides on, and the decisions:
// clusters, nodes, claims, peers, tunnels, who is a peer of whom and why not.
//
// It is the leaf of the tree. It does no I/O, reads no clock, writes no log and
// knows nothing of Kubernetes, netlink, WireGuard's wire format or xDS. Every
// decision is a function of values, so that a table can test it and a person
// can repeat it.
package mesh
