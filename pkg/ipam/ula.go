package ipam

import (
	"crypto/sha256"
	"net/netip"
)

// MeshULA returns the IPv6 tunnel range of the mesh of that name: a /64 of the
// unique local addresses, fd00::/8 (RFC 4193, 3.1). Its 40-bit global ID and the
// 16-bit subnet ID are the first 56 bits of SHA-256 over "flatmesh tunnel range "
// and the name, where the RFC takes a random number, so that every control plane
// of a mesh comes to the same range with nothing stored, and two meshes to
// different ones.
func MeshULA(mesh string) netip.Prefix {
	sum := sha256.Sum256([]byte("flatmesh tunnel range " + mesh))
	a := [16]byte{0: 0xfd}
	copy(a[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}
