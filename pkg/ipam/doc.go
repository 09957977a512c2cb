// Package ipam hands out tunnel addresses and finds free address ranges: a
// net/netip façade over github.com/cilium/ipam, which canonicalises what goes in
// and checks what that library takes on trust.
//
// It stores nothing: who owns a Pool restores it with AllocateExact. Which ranges
// conflict is package overlap's business.
package ipam
