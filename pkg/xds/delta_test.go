package xds

import (
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
)

// Each script is one client's stream. Its lines are
//
//	set a=1 b=1          the set holds exactly this now
//	drop                 the set is dropped
//	sub a b have a=1     subscribe, with what the client has already
//	sub a without b      subscribe to the one and unsubscribe from the other
//	unsub a              unsubscribe
//	ack, nack            answer the last response
//	want +a=1 -b         this, in one response, comes next
//	quiet                nothing comes
//	other                ask for a type that is not served
var scripts = map[string]string{
	"an empty set is an answer":                      "set; sub *; want; ack; quiet",
	"a set is not served before it was first filled": "sub *; quiet; set a=1; want +a=1",
	"nor to who asks by name":                        "sub a b; quiet; set a=1; want +a=1 -b",
	"also where it is filled with nothing":           "sub *; quiet; set; want",

	"changes":                         "set a=1 b=1; sub *; want +a=1 +b=1; ack; set a=2 b=1; want +a=2; ack; set a=2 b=1 c=1; want +c=1; ack; set c=2; want +c=2 -a -b; ack; quiet",
	"what is equal is not sent":       "set a=1; sub *; want +a=1; ack; set a=1; quiet",
	"one response to each request":    "set a=1; sub *; want +a=1; set a=2; set a=3 b=1; quiet; ack; want +a=3 +b=1; ack; quiet",
	"there and back before the ACK":   "set a=1; sub *; want +a=1; set a=2; set a=1; ack; quiet",
	"gone and back before the ACK":    "set a=1; sub *; want +a=1; set; set a=1; ack; quiet",
	"new and gone before the ACK":     "set a=1; sub *; want +a=1; set a=1 b=1; set a=1; ack; quiet",
	"the names of others do not wake": "set a=1 b=1; sub a; want +a=1; ack; set a=1 b=2 c=1; quiet; set a=2 b=2; want +a=2",

	"a name that is not there is answered as removed": "set a=1; sub x a; want +a=1 -x; ack; quiet; set a=1 x=1; want +x=1; ack; set a=1; want -x",
	"a name that is asked for again is sent again":    "set a=1; sub a; want +a=1; ack; sub a; want +a=1; ack; quiet",
	"also one that is not there":                      "set; sub x; want -x; ack; sub x; want -x; ack; quiet",
	"names are added to names":                        "set a=1 b=1; sub a; want +a=1; sub b; want +b=1; ack; set a=2 b=2; want +a=2 +b=2",
	"a name that is no longer wanted":                 "set a=1 b=1; sub a b; want +a=1 +b=1; unsub a; quiet; set a=2 b=1; quiet; set a=2; want -b",
	"and is wanted again":                             "set a=1; sub a; want +a=1; unsub a; quiet; sub a; want +a=1",
	"nothing is wanted any more":                      "set a=1; sub a; want +a=1; unsub a; quiet; set; quiet; set a=3; quiet",

	"a name beside the wildcard":                            "set a=1; sub * x; want +a=1 -x; ack; set a=1 x=1 b=1; want +b=1 +x=1",
	"a name that came under the wildcard is asked for":      "set a=1 b=1; sub *; want +a=1 +b=1; ack; sub a; want +a=1; ack; quiet",
	"and the wildcard is let go at once":                    "set a=1 b=1; sub *; want +a=1 +b=1; ack; sub a without *; want +a=1; ack; quiet; set a=2 b=2; want +a=2; ack; quiet",
	"it is let go: the client hears what the wildcard says": "set a=1; sub * a; want +a=1; ack; unsub a; want +a=1; ack; quiet",
	"or that it is not there":                               "set; sub * x; want -x; ack; unsub x; want -x; ack; quiet",
	"also of one that was never asked for":                  "set a=1; sub *; want +a=1; ack; unsub a x; want +a=1 -x; ack; quiet",
	"the wildcard is let go":                                "set a=1 b=1; sub *; want +a=1 +b=1; ack; unsub *; quiet; set a=2 b=1; quiet; sub a; want +a=2; sub b; want +b=1; ack; quiet",
	"but for a name":                                        "set a=1 b=1; sub * a; want +a=1 +b=1; ack; unsub *; quiet; set a=2 b=2; want +a=2; ack; quiet",
	"and taken again":                                       "set a=1; sub *; want +a=1; ack; unsub *; quiet; set a=2; sub *; want +a=2",

	"resume: nothing is sent where all is equal, but an answer": "set a=1 b=1; sub * have a=1 b=1; want; ack; quiet; set a=2 b=1; want +a=2",
	"resume: only what differs":                                 "set a=2 b=1 c=1; sub * have a=1 b=1 d=1 e=1; want +a=2 +c=1 -d -e; ack; quiet",
	"resume by name":                                            "set a=1 b=2; sub a b c have a=1 b=1 c=1; want +b=2 -c; ack; quiet",
	"resume before the set is filled":                           "sub * have a=1 b=1; quiet; set a=1 c=1; want +c=1 -b; ack; quiet",

	"a refusal is not answered with the same again": "set a=1; sub *; want +a=1; nack; quiet; set a=2; want +a=2; nack; quiet",

	"a dropped set: the client keeps what it has": "set a=1 b=1; sub *; want +a=1 +b=1; ack; drop; quiet",
	"and hears the difference when it comes back": "set a=1 b=1; sub *; want +a=1 +b=1; ack; drop; quiet; set a=1 c=1; want +c=1 -b; ack; quiet",
	"also by name":                                 "set a=1 b=1; sub a b; want +a=1 +b=1; ack; drop; set a=1; want -b; ack; quiet",
	"also what changed just before":                "set a=1; sub *; want +a=1; set a=2; drop; ack; quiet; set a=2; want +a=2",
	"who comes while it is dropped is not served":  "set a=1; drop; sub *; quiet; set b=1; want +b=1",
	"dropped twice, and once where there was none": "drop; set a=1; drop; drop; sub *; quiet; set; want",

	"a type that is not served does not end the stream": "other; other; set a=1; sub *; want +a=1; ack; other; set a=2; want +a=2",
}

func TestDelta(t *testing.T) {
	s := serve(t)
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			view := strings.ReplaceAll(t.Name(), "/", " ")
			set := SetKey{thing, view}
			s.cache.Replace(SetKey{mark, view}, nil)
			c := s.open(t, view)
			nacks := 0
			for line := range strings.SplitSeq(script, ";") {
				word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch word {
				case "set":
					s.cache.Replace(set, things(strings.Fields(rest)...))
				case "drop":
					s.cache.Drop(set)
				case "sub":
					names, have, _ := strings.Cut(rest, "have")
					names, without, _ := strings.Cut(names, "without")
					req := &discovery.DeltaDiscoveryRequest{
						TypeUrl: thing, ResourceNamesSubscribe: strings.Fields(names), ResourceNamesUnsubscribe: strings.Fields(without),
						InitialResourceVersions: map[string]string{},
					}
					for _, r := range things(strings.Fields(have)...) {
						req.InitialResourceVersions[r.GetName()] = r.GetVersion()
					}
					c.send(req)
				case "unsub":
					c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ResourceNamesUnsubscribe: strings.Fields(rest)})
				case "ack":
					c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing})
				case "nack":
					nacks++
					c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: thing, ErrorDetail: &rpcstatus.Status{Message: "no"}})
				case "other":
					c.subscribe("type.googleapis.com/test.Unknown", "*")
				case "want":
					if got := showResponse(c.recv()); got != rest {
						t.Fatalf("after %q: got %q", line, got)
					}
				case "quiet":
					c.quiet()
				default:
					t.Fatalf("what is %q?", line)
				}
			}
			s.with(func() {
				if s.nacks[thing] != nacks {
					t.Errorf("%d refusals counted, want %d", s.nacks[thing], nacks)
				}
				s.nacks[thing] = 0
			})
			c.cancel()
			eventually(t, "the watches are gone", func() bool { return s.nobody() })
		})
	}
}
