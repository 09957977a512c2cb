// Package build makes the xDS resources of services: listeners, routes, clusters
// and endpoint assignments for proxyless gRPC clients, for Envoys beside a
// workload, and for gateways. It also reads back what its names and assignments
// say.
//
// Its functions are pure: equal values give equal bytes, and with them equal
// versions. It decides no Path (that is pkg/mesh's), keeps no cache and knows no
// streams (those are pkg/xds's).
package build
