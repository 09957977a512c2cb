package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	types "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// sotwStream is a state-of-the-world client that does only what it is told to.
type sotwStream struct {
	t        testing.TB
	str      discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	cancel   context.CancelFunc
	nonces   map[string]string
	versions map[string]string
	marks    int
}

func (s *service) openSotW(t testing.TB, view string) *sotwStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "view", view), patience)
	t.Cleanup(cancel)
	str, err := discovery.NewAggregatedDiscoveryServiceClient(s.conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &sotwStream{t: t, str: str, cancel: cancel, nonces: map[string]string{}, versions: map[string]string{}}
}

func (r *sotwStream) send(req *discovery.DiscoveryRequest) {
	r.t.Helper()
	req.Node = &core.Node{Id: "x", UserAgentName: "gRPC Go"}
	if req.GetVersionInfo() == "" {
		req.VersionInfo = r.versions[req.GetTypeUrl()]
	}
	if req.GetResponseNonce() == "" {
		req.ResponseNonce = r.nonces[req.GetTypeUrl()]
	}
	if err := r.str.Send(req); err != nil && err != io.EOF {
		r.t.Fatal(err)
	}
}

func (r *sotwStream) ask(typeURL string, names ...string) {
	r.t.Helper()
	r.send(&discovery.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names})
}

func (r *sotwStream) recv() *discovery.DiscoveryResponse {
	r.t.Helper()
	resp, err := r.str.Recv()
	if err != nil {
		r.t.Fatalf("recv: %v", err)
	}
	if resp.GetVersionInfo() == "" || resp.GetNonce() == "" {
		r.t.Fatalf("a response without version or nonce: %v", resp)
	}
	r.nonces[resp.GetTypeUrl()] = resp.GetNonce()
	return resp
}

// quiet expects that nothing waits to be received.
func (r *sotwStream) quiet(sh *shelf) {
	r.t.Helper()
	r.marks++
	name := fmt.Sprintf("mark%d", r.marks)
	sh.put(mark, name+"=1")
	r.ask(mark, name)
	if resp := r.recv(); resp.GetTypeUrl() != mark || showSotW(resp) != name+"=1" {
		r.t.Fatalf("unasked: %s %s", resp.GetTypeUrl(), showSotW(resp))
	}
}

// showSotW reads "a=1 b=1".
func showSotW(resp *discovery.DiscoveryResponse) string {
	var out []string
	for _, a := range resp.GetResources() {
		out = append(out, string(a.GetValue()))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// Each script is one client's stream of one type. Its lines are
//
//	put a=1 b c?         a is found, b is missing, c is not known from now on
//	tell a               the server is told that a may have changed, without one
//	list, unlist         the type's names are known, or not
//	ask a b              a request with these names
//	stale a b            the same, with the nonce of an older response
//	resume a b           the same, as the first of a client that was connected before
//	ack, nack            answer the last response
//	want a=1             this, in one response, comes next
//	quiet                nothing comes
//	other                ask for a type that is not served
var (
	// For listeners and clusters.
	fullScripts = map[string]string{
		"everything asked for is in each response":    "put a=1 b=1 c=1; ask a b; want a=1 b=1; ack; put b=2; want a=1 b=2; ack; quiet",
		"what is missing is left out":                 "put a=1 b; ask a b; want a=1; ack; quiet",
		"also where that is everything":               "put a; ask a; want; ack; quiet; tell a; quiet",
		"removed and back":                            "put a=1 b=1; ask a b; want a=1 b=1; ack; put b; want a=1; ack; put b=1; want a=1 b=1; ack; quiet",
		"nothing is said before anything is known":    "ask a; quiet; put a=1; want a=1; ack; quiet",
		"what is not known holds up nothing else":     "put a=1; ask a b; want a=1; ack; quiet; put b=1; want a=1 b=1; ack; put b=2; want a=1 b=2",
		"but is not left out where the client has it": "put a=1 b=1; ask a b; want a=1 b=1; ack; put b?; quiet; put a=2; quiet; put b=1; want a=2 b=1; ack; quiet",
		"nor where it may have it":                    "put a=1; resume a b; quiet; put b=1; want a=1 b=1; ack; quiet",
		"who resumes hears what is gone":              "put a; resume a; want; ack; quiet",

		"names are added":                             "put a=1 b=1; ask a; want a=1; ask a b; want a=1 b=1; ack; quiet",
		"a name is added that is missing":             "put a=1 b; ask a; want a=1; ask a b; want a=1; ack; quiet; put b=1; want a=1 b=1",
		"names are taken away: the client knows":      "put a=1 b=1; ask a b; want a=1 b=1; ask a; quiet; put b=2; quiet; put a=2; want a=2",
		"and come back":                               "put a=1 b=1; ask a b; want a=1 b=1; ask a; quiet; ask a b; want a=1 b=1",
		"all are taken away, which is not everything": "put a=1; ask a; want a=1; ask; quiet; put a=2; quiet; ask a; want a=2",
		"nothing is asked for, which is not either":   "put a=1; ask; quiet; put a=2; quiet; ask a; want a=2",

		"the wildcard":                          "put a=1 b=1; ask *; want a=1 b=1; ack; put a; want b=1; ack; put c=1; want b=1 c=1; ack; quiet",
		"an empty set is an answer":             "ask *; want; ack; quiet; put a=1; want a=1",
		"a set is not known":                    "unlist; put a=1; ask *; quiet; list; tell a; want a=1",
		"it becomes unknown":                    "put a=1; ask *; want a=1; ack; unlist; put a=2; quiet; list; tell a; want a=2; ack; quiet",
		"a name under the wildcard is unknown":  "put a=1 b=1; ask *; want a=1 b=1; ack; put b?; quiet; put a=2; quiet; put b=1; want a=2 b=1; ack; quiet",
		"a name beside the wildcard":            "put a=1 x; ask * x; want a=1; ack; quiet; put x=1; want a=1 x=1",
		"the wildcard is let go but for a name": "put a=1 b=1; ask *; want a=1 b=1; ask a; quiet; put b=2; quiet; put a=2; want a=2",
	}
	// For endpoints, routes and all others.
	changedScripts = map[string]string{
		"only what changed is in a response":      "put a=1 b=1; ask a b; want a=1 b=1; ack; put b=2; want b=2; ack; quiet",
		"of what is not there nothing is said":    "put a=1 b; ask a b; want a=1; ack; put a; quiet; put b=1; want b=1; ack; quiet",
		"gone and back as it was":                 "put a=1; ask a; want a=1; ack; put a; quiet; put a=1; quiet; put a=2; want a=2",
		"what is not known holds up nothing":      "put a=1; ask a b; want a=1; ack; quiet; put b=1; want b=1; ack; put a?; quiet; put a=1; quiet; put a=2; want a=2",
		"names are added: only they are answered": "put a=1 b=1; ask a; want a=1; ask a b; want b=1; ack; quiet",
		"names are taken away":                    "put a=1 b=1; ask a b; want a=1 b=1; ask b; quiet; put a=2; quiet; ask a b; want a=2; ack; quiet",
		"and come back as they were":              "put a=1 b=1; ask a b; want a=1 b=1; ask b; quiet; ask a b; want a=1; ack; quiet",
		"all are taken away":                      "put a=1; ask a; want a=1; ask; quiet; put a=2; quiet; ask a; want a=2",
		"nothing is asked for":                    "put a=1; ask; quiet; put a=2; quiet; ask a; want a=2",
		"who resumes is sent all":                 "put a=1 b; resume a b; want a=1; ack; quiet",
		"the wildcard":                            "put a=1 b=1; ask *; want a=1 b=1; ack; put a=2; want a=2; ack; put b; quiet; put c=1; want c=1",
		"an empty set is an answer":               "ask *; want; ack; quiet; put a=1; want a=1",
	}
	// For both.
	sotwScripts = map[string]string{
		"one response to each request":                      "put a=1; ask a; want a=1; put a=2; put a=3; quiet; ack; want a=3; ack; quiet",
		"there and back before the ACK":                     "put a=1; ask a; want a=1; put a=2; put a=1; ack; quiet",
		"the names of others do not wake":                   "put a=1 b=1; ask a; want a=1; ack; put b=2; quiet; tell a; quiet; put a=2; want a=2",
		"a refusal is not answered with the same again":     "put a=1; ask a; want a=1; nack; quiet; tell a; quiet; put a=2; want a=2; nack; quiet",
		"a request that crossed a response is passed over":  "put a=1 b=1; ask a; want a=1; ack; put a=2; want a=2; stale a b; quiet; ask a; quiet",
		"a request before the answer":                       "ask a; ask a b; quiet; put a=1 b=1; want a=1 b=1; ack; quiet",
		"a type that is not served does not end the stream": "other; other; put a=1; ask a; want a=1; ack; other; put a=2; want a=2",
	}
)

func TestStateOfTheWorld(t *testing.T) {
	all := func(scripts ...map[string]string) map[string]string {
		out := map[string]string{}
		for _, m := range scripts {
			for name, script := range m {
				out[name] = script
			}
		}
		return out
	}
	for typeURL, scripts := range map[string]map[string]string{
		types.ClusterType:  all(fullScripts, sotwScripts),
		types.ListenerType: all(fullScripts, sotwScripts),
		thing:              all(changedScripts, sotwScripts),
	} {
		for name, script := range scripts {
			t.Run(typeURL+"/"+name, func(t *testing.T) { runSotW(t, typeURL, script) })
		}
	}
}

func runSotW(t *testing.T, typeURL, script string) {
	s, sh := serveShelf(t)
	c := s.openSotW(t, "v")
	nacks := 0
	var names []string // of the last request
	var last *discovery.DiscoveryResponse
	older := ""
	for line := range strings.SplitSeq(script, ";") {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		args := strings.Fields(rest)
		switch word {
		case "put":
			s.change(sh, typeURL, args...)
		case "tell":
			s.server.Changed(typeURL, args...)
		case "list", "unlist":
			sh.list(word == "list")
		case "ask":
			names = args
			c.ask(typeURL, names...)
		case "stale":
			c.send(&discovery.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: args, ResponseNonce: older})
		case "resume":
			names = args
			c.send(&discovery.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names, VersionInfo: "old"})
		case "ack":
			c.versions[typeURL] = last.GetVersionInfo()
			c.ask(typeURL, names...)
		case "nack":
			nacks++
			c.send(&discovery.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names, ErrorDetail: &rpcstatus.Status{Message: "no"}})
		case "other":
			c.ask("type.googleapis.com/test.Unknown", "a")
		case "want":
			older = c.nonces[typeURL]
			last = c.recv()
			if got := showSotW(last); got != rest || last.GetTypeUrl() != typeURL {
				t.Fatalf("after %q: got %s %q", line, last.GetTypeUrl(), got)
			}
		case "quiet":
			c.quiet(sh)
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	s.with(func() {
		if s.nacks[typeURL] != nacks {
			t.Errorf("%d refusals counted, want %d", s.nacks[typeURL], nacks)
		}
	})
	c.cancel()
	eventually(t, "the watches are gone", s.nobody)
}

// The version stands for the content: the same again has the same version, also
// for another client.
func TestVersionInfo(t *testing.T) {
	s, sh := serveShelf(t)
	s.change(sh, thing, "a=1", "b=1")
	var seen []string
	for range 2 {
		c := s.openSotW(t, "v")
		c.ask(thing, "b", "a")
		seen = append(seen, c.recv().GetVersionInfo())
	}
	c := s.openSotW(t, "v")
	c.ask(thing, "a")
	seen = append(seen, c.recv().GetVersionInfo())
	c.ask(thing, "a")
	s.change(sh, thing, "a=2")
	seen = append(seen, c.recv().GetVersionInfo())
	if seen[0] != seen[1] || seen[1] == seen[2] || seen[2] == seen[3] {
		t.Errorf("versions %v", seen)
	}
}

// A response that a request overtakes inside the server is made again: whatever
// the timing, a client that keeps asking for more ends up with everything.
func TestStateOfTheWorldLosesNothing(t *testing.T) {
	for _, typeURL := range []string{thing, types.ClusterType} {
		t.Run(typeURL, func(t *testing.T) {
			s, sh := serveShelf(t)
			c := s.openSotW(t, "v")
			const n = 300
			stop := make(chan struct{})
			writer := make(chan struct{})
			go func() {
				defer close(writer)
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
						s.change(sh, typeURL, fmt.Sprintf("n%d=%d", i%n, i))
					}
				}
			}()
			var names []string
			for i := range n {
				names = append(names, fmt.Sprint("n", i))
				c.ask(typeURL, names...) // without waiting for the answer
			}
			close(stop)
			<-writer
			for i := range n {
				s.change(sh, typeURL, fmt.Sprintf("n%d=last", i))
			}
			got := map[string]bool{}
			for len(got) < n {
				for _, x := range c.recv().GetResources() {
					if name, version, _ := strings.Cut(string(x.GetValue()), "="); version == "last" {
						got[name] = true
					}
				}
				c.ask(typeURL, names...)
			}
		})
	}
}

func TestStateOfTheWorldBounds(t *testing.T) {
	names := make([]string, maxNames+2)
	for i := range names {
		names[i] = fmt.Sprint("n", i)
	}
	for name, c := range map[string]struct {
		do   func(*sotwStream)
		code codes.Code
	}{
		"names":                     {func(r *sotwStream) { r.ask(thing, names[:maxNames+1]...) }, codes.ResourceExhausted},
		"more names":                {func(r *sotwStream) { r.ask(thing, names...) }, codes.ResourceExhausted},
		"a long name":               {func(r *sotwStream) { r.ask(thing, strings.Repeat("n", maxName+1)) }, codes.InvalidArgument},
		"no type":                   {func(r *sotwStream) { r.ask("", "a") }, codes.InvalidArgument},
		"types that are not served": {func(r *sotwStream) { askMany(r, "type", maxTypes+1) }, codes.ResourceExhausted},
		"types that are":            {func(r *sotwStream) { askMany(r, "served/", maxServed+1) }, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := serveShelf(t)
			r := s.openSotW(t, "v")
			c.do(r)
			if _, err := r.str.Recv(); status.Code(err) != c.code {
				t.Errorf("stream ends with %v, want %v", err, c.code)
			}
			eventually(t, "the watches are gone", s.nobody)
		})
	}
}

func askMany(r *sotwStream, prefix string, n int) {
	for i := range n {
		r.ask(fmt.Sprint(prefix, i), "a")
	}
}

func TestStateOfTheWorldEndsWithTheIdentity(t *testing.T) {
	s, sh := serveShelf(t)
	s.change(sh, thing, "a=1")
	r := s.openSotW(t, "v")
	r.ask(thing, "a")
	r.recv()
	s.with(func() { s.revoke["v"](errors.New("no more")) })
	if _, err := r.str.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
	eventually(t, "no watch is left", s.nobody)
}
