// Package lab makes clusters of nodes and pods out of network namespaces on one
// Linux machine, joins them by an underlay of routers, and runs the real agents,
// gateways and control plane in them. It backs the command in hack/lab, the
// demo and the end-to-end tests, and it injects the faults that those need.
//
//	east/n1/p1 ─┐                                        ┌─ west/n1/p1
//	east/n1/p2 ─┴ east/n1 ─┐                  ┌─ west/n1 ┴─ west/n1/p2
//	                       ├ router/east ─ core ─ router/west
//	east/n2/p1 ── east/n2 ─┤        │         ├─ west/n2 ── west/n2/p1
//	      gateway/east/gw1 ┘   controlplane   └ gateway/west/gw1
//
// Each box is a named network namespace. A router serves one network and knows
// its nodes' addresses and pod prefixes, so pods of one network reach each other
// natively. The core knows node addresses alone: a pod's packet that leaves its
// network in plaintext is lost, as it would be between two VPCs. To hosts of the
// underlay a node sends it with its own address, as a CNI does.
//
// A host needs no process to keep it alive. Whatever runs in it gets a mount
// namespace of its own, in which folders of the lab lie over /run/wireguard,
// /run/flatmesh, /var/lib/flatmesh and /run/secrets/flatmesh.io. A pod sees its
// node's /run/flatmesh/xds, and its own certificate where its node's agent keeps
// it, both read-only.
//
// Services exist in the YAML that the control plane reads, and as the echo that
// every pod runs (hack/meshecho). There is no kube-proxy: a ClusterIP leads nowhere.
//
// The package is not for production, and it does not imitate Kubernetes beyond
// that YAML.
package lab
