// Package overlap says which claims to address ranges cannot both hold, which
// of them yields, and which prefixes a cluster's nodes may hold.
//
// Everything here is a function of its arguments. The package neither numbers
// claims nor stores their order, and it does not act on a conflict: what follows
// from one is in package mesh.
package overlap
