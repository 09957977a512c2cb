// Package controlplane is the central control plane's loop: it takes in what
// sources and agents say, keeps what must survive in the store, has pkg/overlap,
// pkg/ipam and pkg/mesh decide, and publishes the result over xDS.
//
// One goroutine owns all state (loop.go). Everything else asks it. It makes no
// decision of its own beyond when to hold a removal (hold.go).
package controlplane
