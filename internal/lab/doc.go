// Package lab makes clusters of nodes and pods out of network namespaces on one
// Linux machine, joins them by an underlay of routers, and runs the real agents
// and the real control plane in them. It backs the command in hack/lab, the
// demo and the end-to-end tests, and it injects the faults that those need.
//
//	east/n1/p1 ─┐                                        ┌─ west/n1/p1
//	east/n1/p2 ─┴ east/n1 ─┐                  ┌─ west/n1 ┴─ west/n1/p2
//	                       ├ router/east ─ core ─ router/west
//	east/n2/p1 ── east/n2 ─┘        │         └─ west/n2 ── west/n2/p1
//	                           controlplane
//
// Each box is a named network namespace. A router serves one network and knows
// its nodes' addresses and pod prefixes, so pods of one network reach each other
// natively. The core knows node addresses alone: a pod's packet that leaves its
// network in plaintext is lost, as it would be between two VPCs.
//
// A host needs no process to keep it alive. Whatever runs in it gets a mount
// namespace of its own, in which folders of the lab lie over /run/wireguard,
// /run/flatmesh and /var/lib/flatmesh.
//
// The package is not for production, and it does not imitate Kubernetes beyond
// the YAML that it writes for the control plane.
package lab
