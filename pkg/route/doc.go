// Package route keeps the addresses, routes, rules and interface settings that
// lead a node's traffic for remote ranges into its WireGuard interface.
//
// The routes lie in a table of flatmesh's own: one into the interface for each
// of the peers' prefixes, above an unreachable one for each remote range, so
// that traffic which has no tunnel is refused at once and never leaves in
// plaintext by the default route. One rule a family leads everything there
// except what carries WireGuard's firewall mark.
//
// Packets to a peer whose tunnel is Down would be lost in silence. Refuse has the
// node answer them instead, by an nftables table of its own.
//
// Safe, which judges what may be routed at all, and Diff, which compares what is
// with what should be, are functions of values. A Table reads the kernel and
// applies what Diff found; it decides nothing.
//
// It is not for making the interface (its kind, keys, peers and MTU), for deciding
// which tunnels are Down, for filtering what passes, or for anything in the main
// table: that it only reads.
package route
