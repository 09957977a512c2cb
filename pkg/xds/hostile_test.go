package xds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// big is a resource that no flow-control window holds.
func big(version string) []*discovery.Resource {
	return []*discovery.Resource{{Name: "big", Version: version, Resource: &anypb.Any{TypeUrl: thing, Value: bytes.Repeat([]byte{'x'}, 1<<20)}}}
}

func TestSlowClientsDelayNobody(t *testing.T) {
	s := serve(t)
	set := SetKey{thing, "v"}
	s.cache.Replace(set, big("0"))

	// One that does not read, one that reads and does not answer.
	deaf, mute := s.open(t, "v"), s.open(t, "v")
	deaf.subscribe(thing, "*")
	mute.subscribe(thing, "*")
	mute.recv()
	eventually(t, "both watch", func() bool { return s.watchers() == 2 })

	m := newMirror("v", "*")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.run(ctx, s) }()
	for i := range 50 {
		version := fmt.Sprint(i)
		s.cache.Replace(set, big(version))
		m.until(t, "version "+version, func(state map[string]string) bool { return state["big"] == version })
	}
	cancel()
	<-ended

	// What they missed they get in one piece once they wake.
	mute.subscribe(thing)
	if got := showResponse(mute.recv()); got != "+big=49" {
		t.Errorf("the mute one: got %s", got)
	}
	if got := showResponse(deaf.recv()); got != "+big=0" {
		t.Errorf("the deaf one: got %s", got)
	}
	deaf.subscribe(thing)
	if got := showResponse(deaf.recv()); got != "+big=49" {
		t.Errorf("the deaf one: got %s", got)
	}
}

// A client that loses its right ends at once, also where it does not read and so
// holds its handler in Send.
func TestDeafClientCanBeRevoked(t *testing.T) {
	s := serve(t)
	s.cache.Replace(SetKey{thing, "v"}, big("0"))
	deaf := s.open(t, "v")
	deaf.subscribe(thing, "*")
	eventually(t, "it watches", func() bool { return s.watchers() == 1 })
	s.with(func() { s.revoke["v"](errors.New("no more")) })
	eventually(t, "its watch is gone", func() bool { return s.nobody() })
	eventually(t, "it is released", func() (done bool) {
		s.with(func() { done = s.released["v"] == 1 })
		return done
	})
}

func TestEndOfIdentity(t *testing.T) {
	s := serve(t)
	for name, c := range map[string]struct {
		cause   error
		code    codes.Code
		message string
	}{
		"any cause is a refusal": {errors.New("node east/n1 is gone"), codes.PermissionDenied, "node east/n1 is gone"},
		"a status stays":         {status.Error(codes.Unauthenticated, "the certificate has expired"), codes.Unauthenticated, "the certificate has expired"},
		"a status inside too":    {fmt.Errorf("x: %w", status.Error(codes.Aborted, "y")), codes.Aborted, "x: rpc error: code = Aborted desc = y"},
	} {
		t.Run(name, func(t *testing.T) {
			s.cache.Replace(SetKey{thing, name}, nil)
			r := s.open(t, name)
			r.subscribe(thing, "*")
			r.recv()
			s.with(func() { s.revoke[name](c.cause) })
			_, err := r.str.Recv()
			if got := status.Convert(err); got.Code() != c.code || got.Message() != c.message {
				t.Errorf("got %v", err)
			}
			eventually(t, "no watch is left", func() bool { return s.nobody() })
		})
	}
}

func TestWhoIsNobodyIsRefused(t *testing.T) {
	s := serve(t)
	r := s.open(t, "")
	r.fails(codes.Unauthenticated)
}

func TestBounds(t *testing.T) {
	names := func(from, n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprint("n", from+i)
		}
		return out
	}
	for name, c := range map[string]struct {
		do   func(*rawStream)
		code codes.Code
	}{
		"names at once": {func(r *rawStream) { r.subscribe(thing, names(0, maxNames+1)...) }, codes.ResourceExhausted},
		"names bit by bit": {func(r *rawStream) {
			r.subscribe(thing, names(0, maxNames)...)
			r.recv()
			r.subscribe(thing, names(maxNames, 1)...)
		}, codes.ResourceExhausted},
		"names of a type that is not served": {func(r *rawStream) { r.subscribe("x", names(0, maxNames+1)...) }, codes.ResourceExhausted},
		"a long name":                        {func(r *rawStream) { r.subscribe(thing, strings.Repeat("n", maxName+1)) }, codes.InvalidArgument},
		"a long type":                        {func(r *rawStream) { r.subscribe(strings.Repeat("t", maxName+1), "*") }, codes.InvalidArgument},
		"no type":                            {func(r *rawStream) { r.subscribe("", "*") }, codes.InvalidArgument},
		"versions": {func(r *rawStream) {
			req := &discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{}}
			for _, n := range names(0, maxNames+1) {
				req.InitialResourceVersions[n] = ""
			}
			r.send(req)
		}, codes.ResourceExhausted},
		"types that are not served": {func(r *rawStream) {
			for i := range maxTypes + 1 {
				r.subscribe(fmt.Sprint("type", i), "*")
			}
		}, codes.ResourceExhausted},
		"types that are": {func(r *rawStream) {
			for i := range maxTypes {
				r.subscribe(fmt.Sprint("served/", i), "*")
			}
		}, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.cache.Replace(SetKey{thing, "v"}, nil)
			other := s.open(t, "v")
			other.subscribe(thing, "*")
			other.recv()

			r := s.open(t, "v")
			c.do(r)
			r.fails(c.code)

			other.subscribe(thing)
			s.cache.Replace(SetKey{thing, "v"}, things("a=1"))
			if got := showResponse(other.recv()); got != "+a=1" {
				t.Errorf("another client: got %s", got)
			}
		})
	}
}

// Requests may come as fast as a client likes, and types in any mixture.
func TestEagerClient(t *testing.T) {
	s := serve(t)
	s.cache.Replace(SetKey{thing, "v"}, things("a=1"))
	s.cache.Replace(SetKey{mark, "v"}, nil)
	r := s.open(t, "v")
	for range 200 {
		r.subscribe(thing, "a") // each is answered
		r.subscribe(mark, "a")
	}
	for got := map[string]int{}; got[thing] < 200 || got[mark] < 200; {
		got[r.recv().GetTypeUrl()]++
	}
	s.cache.Replace(SetKey{thing, "v"}, things("a=2"))
	r.subscribe(thing)
	if got := showResponse(r.recv()); got != "+a=2" {
		t.Errorf("got %s", got)
	}
}
