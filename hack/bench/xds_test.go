package main

import (
	"testing"
)

// Every system that is compared gives every client what it subscribed to, and
// each change to those whom it concerns: what a benchmark waits for does come.
func TestXDSSystems(t *testing.T) {
	w := world{Services: 30, Endpoints: 10, Clients: 10, OneNode: true}
	c := crowd{Clients: 9, Subscriptions: 12, Services: w.Services, Rare: 3, All: true}
	for _, r := range rivals {
		t.Run(r.system, func(t *testing.T) {
			s, err := startXDSServer(t.Context(), serverBegin{System: r.system, World: w})
			if err != nil {
				t.Fatal(err)
			}
			clients := newXDSClients(c)
			if _, err := clients.gather(t.Context(), s.address); err != nil {
				t.Fatal(err)
			}
			reach := func(what string, resources int, o serverOrder) {
				t.Helper()
				clients.expect(resources)
				a, err := s.obey(o)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got, err := clients.wait(t.Context())
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if got.P50 < a.At || got.Last < got.P50 {
					t.Errorf("%s: began at %d, half arrived at %d, the last at %d", what, a.At, got.P50, got.Last)
				}
			}
			for generation := range 5 {
				// All of the clients are concerned where the service is the common one.
				reach("rare", c.Rare+1, serverOrder{Change: &change{Service: rareService, Generation: 2*generation + 1}})
				reach("common", c.Clients+1, serverOrder{Change: &change{Service: commonService, Generation: 2*generation + 2}})
			}
			if r.system != flatmeshSystem {
				return
			}
			for _, down := range []bool{true, false} {
				reach("flip", c.Subscriptions, serverOrder{Flip: &flip{Client: 0, Down: down}})
				reach("flip of all", w.Services, serverOrder{Flip: &flip{Client: c.Clients, Down: down}})
			}
		})
	}
}
