package probe

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	echov1 "github.com/flatmesh/flatmesh/api/echo/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	// maxDatagram is more than any message of ours takes.
	maxDatagram = 512
	maxVersion  = 64
)

var errMalformed = errors.New("malformed echo")

// appendRequest appends an echo request to b.
func appendRequest(b []byte, seq uint64) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, &echov1.Echo{Kind: &echov1.Echo_Request{Request: &echov1.Request{Sequence: seq}}})
}

// appendReply appends an echo reply to b.
func appendReply(b []byte, seq, applied uint64, notForwarding []mesh.Family, version string) ([]byte, error) {
	r := &echov1.Reply{Sequence: seq, Applied: applied, Version: version[:min(len(version), maxVersion)]}
	for _, f := range notForwarding {
		r.NotForwarding = append(r.NotForwarding, uint32(f))
	}
	return proto.MarshalOptions{}.MarshalAppend(b, &echov1.Echo{Kind: &echov1.Echo_Reply{Reply: r}})
}

// parse reads a datagram: a request (its sequence) or a reply. Fields that it
// does not know are ignored, so that later versions may add some.
func parse(b []byte) (request uint64, reply *answer, err error) {
	var m echov1.Echo
	if err := proto.Unmarshal(b, &m); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	switch k := m.Kind.(type) {
	case *echov1.Echo_Request:
		if k.Request.GetSequence() == 0 {
			return 0, nil, fmt.Errorf("%w: request with no sequence", errMalformed)
		}
		return k.Request.GetSequence(), nil, nil
	case *echov1.Echo_Reply:
		r := k.Reply
		if r.GetSequence() == 0 || len(r.GetVersion()) > maxVersion {
			return 0, nil, fmt.Errorf("%w: reply with no sequence or a version of %d bytes", errMalformed, len(r.GetVersion()))
		}
		return 0, &answer{seq: r.GetSequence(), applied: r.GetApplied(), notForwarding: r.GetNotForwarding(), version: r.GetVersion()}, nil
	default:
		return 0, nil, fmt.Errorf("%w: neither request nor reply", errMalformed)
	}
}
