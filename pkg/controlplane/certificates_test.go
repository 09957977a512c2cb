package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/peering"
)

// TestCertificates follows who may speak for west/n1. Its steps: "issue c", a
// certificate is handed out; "use c", an agent registers with it; "ok c" and
// "not c", it is taken and refused; restart.
func TestCertificates(t *testing.T) {
	for name, steps := range map[string][]string{
		"the first one to register has the name":         {"issue a", "issue b", "ok a", "ok b", "use a", "ok a", "not b"},
		"renewed":                                        {"use a", "issue b", "ok a", "ok b", "use b", "ok b", "not a"},
		"also over a restart":                            {"use a", "issue b", "restart", "ok a", "ok b", "use b", "restart", "ok b", "not a"},
		"the answer was lost, once or twice":             {"use a", "issue b", "ok a", "issue c", "ok a", "use c", "ok c", "not a", "not b"},
		"lost as often as can be: the one in use counts": {"use a", "issue b", "issue c", "issue d", "issue e", "issue f", "issue g", "issue h", "issue i", "issue j", "ok a", "ok j", "not b", "use a", "ok a", "use j", "not a"},
		"it goes on with the old one":                    {"use a", "issue b", "use a", "ok a", "ok b"},
		"another host joins as the node":                 {"use a", "issue b", "use b", "not a", "issue c", "ok b", "ok c"},
		"the disk is full":                               {"use a", "full", "issue! b", "heal", "ok a", "not b", "restart", "ok a"},
		"the disk is full when it is used":               {"use a", "issue b", "full", "use b", "not a", "ok b", "restart", "ok b"},
	} {
		t.Run(name, func(t *testing.T) {
			p := twoClusters(t)
			node := id("west/n1")
			heal := func() {}
			for i, s := range steps {
				var word, cert string
				_, _ = fmt.Sscan(s, &word, &cert)
				var err error
				fails := false
				switch word {
				case "issue", "issue!":
					fails = word == "issue!"
					err = p.turn1(func(l *loop) error { l.issued(node, cert); return nil })
				case "use":
					_, _, err = p.registerWith(node, cert)
				case "ok":
					err = p.turn1(func(l *loop) error { return l.notReplaced(node, cert) })
				case "not":
					expect(t, p.turn1(func(l *loop) error { return l.notReplaced(node, cert) }), codes.Unauthenticated, "another agent has joined as west/n1")
				case "restart":
					p.restart()
					p.tell()
				case "full":
					heal = p.full()
				case "heal":
					heal()
					p.after(retryAfter)
				}
				if (err != nil) != fails || err != nil && !errors.Is(err, errFull) {
					t.Errorf("step %d, %s: %v", i, s, err)
				}
			}
		})
	}
}

func (p *plane) registerWith(node mesh.NodeID, cert string) ([]netip.Addr, []string, error) {
	stop := p.background()
	defer stop()
	svc := &service{loop: p.loop, cert: func(context.Context) string { return cert }}
	return svc.Register(p.t.Context(), peering.Registration{Node: node, Key: keyOf(node.String()), ListenPort: 51830})
}

func TestAnotherKeyEndsTheStreamsOfTheOne(t *testing.T) {
	p := twoClusters(t)
	p.mustJoin("west/n1")
	s := p.attach("west/n1")
	register := func(key string) {
		stop := p.background()
		defer stop()
		if _, _, err := (&service{loop: p.loop}).Register(t.Context(), peering.Registration{Node: id("west/n1"), Key: keyOf(key), ListenPort: 51830}); err != nil {
			t.Fatal(err)
		}
	}
	register("west/n1")
	if s.ctx.Err() != nil {
		t.Errorf("the same key: %v", context.Cause(s.ctx))
	}
	register("new")
	<-s.ctx.Done()
	expect(t, context.Cause(s.ctx), codes.Unauthenticated, "another key")
	p.see("west/n1", "connected=false up=0 down=0 unknown=0 map[]")
	p.close(s)
}

// To register is a sign of life: right after it nobody takes the name over, though
// no report stream is open yet.
func TestRegistrationIsASignOfLife(t *testing.T) {
	p := twoClusters(t)
	p.after(time.Hour)
	if _, _, err := p.registerWith(id("east/n1"), "a"); err != nil {
		t.Fatal(err)
	}
	stop := p.background()
	defer stop()
	err := (&service{loop: p.loop}).MayJoin(t.Context(), id("east/n1"), keyOf("new"))
	expect(t, err, codes.PermissionDenied, "held by the live key")
}

func TestFaultsAreTold(t *testing.T) {
	p := newPlane(t)
	p.put("A", declare("east", "10.1.0.0/16"), "n1", "n2=10.9.0.0/24", "n3=")
	p.tell()
	var got []string
	for k := range faults(p.topology.Nodes) {
		got = append(got, k)
	}
	slices.Sort(got)
	want := "[node east/n3 has no podCIDRs prefix 10.9.0.0/24 of east/n2 is refused, outside-range: lies in none of the pod ranges that east declares: 10.1.0.0/16]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v", got)
	}
	if p.status("v").Healthy() {
		t.Error("healthy")
	}
}
