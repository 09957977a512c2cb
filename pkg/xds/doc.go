// Package xds serves resources over the xDS protocol and reads them: a server of
// ADS in both protocols, delta and state of the world, over go-control-plane's;
// its index of who watches what; sources of resources; and a delta client. It
// also holds the resources that agents receive (pure builders and parsers).
//
// A view is what a group of clients sees alike: the agents of one cluster, or
// one node. The server asks a [Source] for each name that a client of a view
// wants, and is told what changed; it stores no resource itself. What a change
// costs depends on the watches that it concerns, not on how many there are.
//
// # Order
//
// Changes of different types that one goroutine announces one after the other
// reach a client in that order where the client has acknowledged what it was
// sent before: each stream has one queue. A client that has not is sent one
// type's news while that of another waits for its acknowledgement. Who needs
// more, to make before breaking, waits for [Server.Settled] in between.
//
// # Not for
//
// It decides nothing: who is a peer of whom and which path leads to an endpoint
// is pkg/mesh's, how resources for Envoy and gRPC look is pkg/xds/build's, and
// who a client is comes from its caller.
package xds
