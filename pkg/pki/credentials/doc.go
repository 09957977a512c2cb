// Package credentials keeps the certificate of a member of the mesh, an agent or
// a gateway: on disk, got by a join token where there is none that is good, and
// renewed with a new key at half of its life.
//
// It speaks no gRPC: how the control plane is asked is passed in. It is not for
// workloads, whose certificates their node's agent gets, and it decides nothing
// about who may be what: that is the control plane's.
package credentials
