// Package probe tells whether tunnels are usable. It sends UDP echoes between
// tunnel addresses, through the tunnels themselves, answers those of others, and
// judges every tunnel Up, Down or Unknown with a reason.
//
// What decides is pure and takes the time as an argument: Judge turns what was
// seen of one tunnel into its state, the schedule says when which tunnel is
// probed within the node's budget, the tracker holds both together. Prober is
// the edge: sockets, timers, counters.
//
// It is not for configuring WireGuard, for choosing a path, or for reporting to
// the control plane, and it believes nothing that did not come back through the
// tunnel: received bytes or a fresh handshake make no tunnel Up.
package probe
