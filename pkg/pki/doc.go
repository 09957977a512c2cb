// Package pki is the mesh's trust: the CA, identities, join tokens, the TLS
// configurations of the control plane and its clients, the files in which a pod
// finds its certificate, and the proof that an agent holds its WireGuard key.
//
// Identities are SPIFFE IDs in X.509 certificates
// (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md):
//
//	spiffe://MESH.local/flatmesh/controlplane
//	spiffe://MESH.local/flatmesh/agent/CLUSTER/NODE
//	spiffe://MESH.local/flatmesh/gateway/CLUSTER/NAME
//	spiffe://MESH.local/ns/NAMESPACE/sa/SERVICEACCOUNT
//
// Below the mesh's CA, which is made here or brought by the user, each cluster
// has a CA of its own that issues for its agents, gateways and workloads, and may
// speak for no other cluster. Host names are never checked, the SPIFFE ID always
// is: a control plane may be reached by any address.
//
// It holds no policy: who may register as what, and when a certificate is
// renewed, is decided by its callers. It speaks no gRPC and writes no log.
package pki
