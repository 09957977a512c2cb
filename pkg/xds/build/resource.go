package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// resourceOf wraps a message, deterministically marshaled.
func resourceOf(name, typeURL string, m proto.Message) (*discovery.Resource, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s %s: %w", typeURL, name, err)
	}
	return wrap(name, typeURL, b), nil
}

// wrap makes a resource of bytes. Its version is a hash of them, so that a
// control plane that restarts gives unchanged resources their old versions and
// clients that resume are sent nothing.
func wrap(name, typeURL string, b []byte) *discovery.Resource {
	sum := sha256.Sum256(b)
	return &discovery.Resource{
		Name: name, Version: hex.EncodeToString(sum[:8]),
		Resource: &anypb.Any{TypeUrl: typeURL, Value: b},
	}
}

// packer packs messages into Any and keeps the first error, so that builders can
// be written as one expression and report it at their end.
type packer struct{ err error }

// any packs a message.
func (p *packer) any(m proto.Message) *anypb.Any {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil && p.err == nil {
		p.err = fmt.Errorf("pack %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return a
}

// resource is resourceOf, after what was packed before.
func (p *packer) resource(name, typeURL string, m proto.Message) (*discovery.Resource, error) {
	if p.err != nil {
		return nil, fmt.Errorf("%s %s: %w", typeURL, name, p.err)
	}
	return resourceOf(name, typeURL, m)
}
