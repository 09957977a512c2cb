// Package xds serves resources over the xDS protocol and reads them: the
// resources themselves (pure builders), a cache keyed by view behind
// go-control-plane's delta server, and a delta client.
//
// A view is what a group of clients sees alike: the agents of one cluster, or
// one node. A resource's bytes are made once for each view and shared by all of
// its clients.
//
// It decides nothing: who is a peer of whom is pkg/mesh's, and who a client is
// comes from its caller.
package xds
