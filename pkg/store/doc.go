// Package store keeps what must survive a restart of the control plane, kill -9
// at any moment included: registrations, the order of claims, and the last
// known clusters, nodes and mesh.
//
// It is one bbolt file. Every record is JSON behind a checksum, since bbolt has
// none for its data, and can be read at night with any bbolt tool. The file is
// checked from end to end before bbolt maps it: bbolt trusts its pages, and a
// damaged one can end the process where nothing can be recovered.
//
// It knows records, not their meaning: what is worth keeping, and what to do
// with it after a restart, is the control plane's business. Tunnel states are
// not kept: they are reported anew.
package store
