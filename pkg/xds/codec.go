package xds

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// ServerOptions are those of a gRPC server that keeps streams of thousands of
// clients open: large answers refer to the resources that a [Source] holds and do
// not copy them. A client that connects is sent all
// that it subscribes to at once; without this thousands of such answers are in
// memory when all connect again, and for as long as slow ones read.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(grpcproto.Name)})}
}

// codec is gRPC's for protobuf, except for large answers of the delta protocol.
type codec struct{ encoding.CodecV2 }

// sharedFrom is the size of resources, in bytes, from which an answer refers to
// them: below, one piece is cheaper to send than many.
const sharedFrom = 16 << 10

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*discovery.DeltaDiscoveryResponse); ok && payload(r) >= sharedFrom {
		// What it does not write would make the message longer.
		if out := marshalShared(r); out.Len() == proto.Size(r) {
			return out, nil
		}
	}
	return c.CodecV2.Marshal(v)
}

// payload returns the bytes of an answer's resources.
func payload(r *discovery.DeltaDiscoveryResponse) (size int) {
	for _, x := range r.GetResources() {
		size += len(x.GetResource().GetValue())
	}
	return size
}

// The fields of envoy.service.discovery.v3 and google.protobuf.Any that answers
// have.
const (
	responseResources protowire.Number = 2 // DeltaDiscoveryResponse.resources
	responseType      protowire.Number = 4 // DeltaDiscoveryResponse.type_url
	responseNonce     protowire.Number = 5 // DeltaDiscoveryResponse.nonce
	responseRemoved   protowire.Number = 6 // DeltaDiscoveryResponse.removed_resources
	resourceVersion   protowire.Number = 1 // Resource.version
	resourceAny       protowire.Number = 2 // Resource.resource
	resourceName      protowire.Number = 3 // Resource.name
	anyType           protowire.Number = 1 // Any.type_url
	anyValue          protowire.Number = 2 // Any.value
)

// marshalShared writes the fields that answers of a [Server] have: what is small,
// and after each piece of that a resource's bytes, which stay where they are.
func marshalShared(r *discovery.DeltaDiscoveryResponse) mem.BufferSlice {
	n := fieldSize(len(r.GetTypeUrl())) + fieldSize(len(r.GetNonce()))
	for _, name := range r.GetRemovedResources() {
		n += fieldSize(len(name))
	}
	for _, x := range r.GetResources() {
		_, whole := resourceSizes(x)
		n += fieldSize(whole) - len(x.GetResource().GetValue())
	}
	b := make([]byte, 0, n)
	b = appendString(b, responseType, r.GetTypeUrl())
	b = appendString(b, responseNonce, r.GetNonce())
	for _, name := range r.GetRemovedResources() {
		b = appendString(b, responseRemoved, name)
	}
	out := make(mem.BufferSlice, 0, 2*len(r.GetResources()))
	begin := 0
	for _, x := range r.GetResources() {
		inner, whole := resourceSizes(x)
		b = appendLength(b, responseResources, whole)
		b = appendString(b, resourceVersion, x.GetVersion())
		b = appendString(b, resourceName, x.GetName())
		b = appendLength(b, resourceAny, inner)
		b = appendString(b, anyType, x.GetResource().GetTypeUrl())
		b = appendLength(b, anyValue, len(x.GetResource().GetValue()))
		out = append(out, mem.SliceBuffer(b[begin:len(b):len(b)]), mem.SliceBuffer(x.GetResource().GetValue()))
		begin = len(b)
	}
	return out
}

// resourceSizes returns how many bytes the Any of a resource takes, and how many
// the resource.
func resourceSizes(r *discovery.Resource) (inner, whole int) {
	inner = fieldSize(len(r.GetResource().GetTypeUrl())) + fieldSize(len(r.GetResource().GetValue()))
	return inner, fieldSize(len(r.GetVersion())) + fieldSize(len(r.GetName())) + fieldSize(inner)
}

// fieldSize is what a field with n bytes of content takes: the tags of all that
// are written are of one byte.
func fieldSize(n int) int { return 1 + protowire.SizeBytes(n) }

func appendLength(b []byte, field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return append(appendLength(b, field, len(s)), s...)
}
