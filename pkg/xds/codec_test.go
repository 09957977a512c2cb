package xds

import (
	"bytes"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// What the codec writes reads as what it was given, whatever that is, and only
// large answers of the usual form share their resources' bytes.
func TestCodec(t *testing.T) {
	answer := func(resources, size int, alter func(*discovery.DeltaDiscoveryResponse)) *discovery.DeltaDiscoveryResponse {
		r := &discovery.DeltaDiscoveryResponse{TypeUrl: thing, Nonce: "17", RemovedResources: []string{"gone", "gone-too"}}
		for i := range resources {
			r.Resources = append(r.Resources, &discovery.Resource{
				Name: benchName(i), Version: "0123456789abcdef", Resource: &anypb.Any{TypeUrl: thing, Value: bytes.Repeat([]byte{byte(i)}, size)},
			})
		}
		if alter != nil {
			alter(r)
		}
		return r
	}
	for _, c := range []struct {
		name   string
		m      proto.Message
		shared bool
	}{
		{"large", answer(100, 1500, nil), true},
		{"one", answer(1, sharedFrom, nil), true},
		{"lengths of one byte and more", answer(3*sharedFrom, 1, nil), true},
		{"nothing removed", answer(20, 2000, func(r *discovery.DeltaDiscoveryResponse) { r.RemovedResources = nil }), true},
		{"small", answer(1, sharedFrom-1, nil), false},
		{"empty", &discovery.DeltaDiscoveryResponse{}, false},
		{"no nonce", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.Nonce = "" }), false},
		{"a version of the whole", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.SystemVersionInfo = "7" }), false},
		{"a control plane", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.ControlPlane = &core.ControlPlane{Identifier: "x"} }), false},
		{"a resource without content", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.Resources[3].Resource = nil }), false},
		{"a resource without a version", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.Resources[3].Version = "" }), false},
		{"an alias", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.Resources[3].Aliases = []string{"x"} }), false},
		{"a TTL", answer(100, 1500, func(r *discovery.DeltaDiscoveryResponse) { r.Resources[3].Ttl = durationpb.New(time.Second) }), false},
		{"another message", &discovery.DiscoveryResponse{VersionInfo: "1"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			codec := codec{encoding.GetCodecV2(grpcproto.Name)}
			out, err := codec.Marshal(c.m)
			if err != nil {
				t.Fatal(err)
			}
			if shared := len(out) > 1; shared != c.shared {
				t.Errorf("it has %d pieces", len(out))
			}
			got := c.m.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(out.Materialize(), got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, c.m) {
				t.Errorf("%.300v is not what was marshaled", got)
			}
			if r, ok := c.m.(*discovery.DeltaDiscoveryResponse); ok && c.shared {
				if last, value := out[len(out)-1].ReadOnlyData(), r.GetResources()[len(r.GetResources())-1].GetResource().GetValue(); &last[0] != &value[0] {
					t.Error("the bytes of a resource were copied")
				}
			}
		})
	}
}
