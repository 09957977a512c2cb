// Package view is what the control plane serves of services: for each client
// the resources that its own place in the mesh calls for.
//
// A Catalog holds the topology, the services of all clusters and what agents
// report of their tunnels. It answers an xDS server's lookups from them. Bytes
// are assembled once for each service port and view key, the set of decisions
// that clients have in common, and shared by all clients that have that key. A
// change costs what it concerns: the names of the services that it touches, and
// of those only the streams that subscribe to them.
//
// It decides no Path, that is mesh.Resolver's, and builds no resource, that is
// pkg/xds/build's.
package view
