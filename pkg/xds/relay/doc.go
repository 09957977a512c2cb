// Package relay serves xDS to the workloads of one node, on a Unix socket, from
// a cache of what the control plane told: whoever runs on the node is served
// while the control plane is away, and also who starts then, as far as someone on
// the node has asked for the same names before.
//
// Upstream it is one client for each kind of client on the node, with the union
// of what those ask for. Downstream it is a server of pkg/xds. In between it
// takes back what the control plane cannot know yet: an endpoint behind a tunnel
// that does not work from here is given as one behind its cluster's gateways,
// until the tunnel works again. It never makes an endpoint direct.
//
// It judges no tunnel, which is the agent's, and makes no resource of its own:
// what an assignment becomes without some tunnels is pkg/xds/build's to say.
package relay
