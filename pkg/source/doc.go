// Package source holds what every source of clusters has in common: the values
// in which it tells of changes, and the one decoder from Kubernetes API objects
// to the values of package mesh. Index is what the objects of one cluster come to:
// its services, gateways and pods.
//
// A source watches clusters (folders of YAML, or API servers) and sends Updates
// in order; one goroutine of the consumer owns what follows from them. Whether
// a large removal is believed at once is the consumer's decision, not a source's.
package source
