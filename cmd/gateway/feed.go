package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"

	"github.com/flatmesh/flatmesh/pkg/gateway"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// router is what the feed is for: a gateway.Proxy.
type router interface {
	SetRoutes(gateway.Routes)
	Set(sni string, pods []netip.AddrPort)
	Remove(sni string)
}

var _ router = (*gateway.Proxy)(nil)

// feed makes routes of what the control plane serves: of its clusters which server
// names there are, of the assignments by those names their pods. What was known at
// the start stays until the control plane has told everything once.
type feed struct {
	log    *slog.Logger
	router router
	client *xds.DeltaClient

	mu     sync.Mutex
	routes gateway.Routes // what the router has
	// listed are the server names that there are; nil before the first answer.
	listed map[string]bool
	// kept: routes were known at the start. told: everything has come since.
	kept, told bool
	changed    chan struct{} // one slot: the routes on disk are older
}

// newFeed returns a feed that begins with kept routes, nil where there are none.
// heard is called with each answer of the control plane.
func newFeed(r router, kept gateway.Routes, heard func(), log *slog.Logger) *feed {
	f := &feed{log: log, router: r, routes: gateway.Routes{}, kept: kept != nil, changed: make(chan struct{}, 1)}
	if kept != nil {
		f.routes = kept
		r.SetRoutes(kept)
	}
	f.client = xds.NewDeltaClient(func(u xds.Update) error {
		heard()
		return f.apply(u)
	})
	f.client.Add(resource.ClusterType, "*")
	return f
}

// run runs one stream until it ends.
func (f *feed) run(ctx context.Context, conn grpc.ClientConnInterface, node *core.Node) error {
	return f.client.Run(ctx, conn, node)
}

// apply takes one answer in. What is wrong in it is left out and its routes stay,
// and the error says so.
func (f *feed) apply(u xds.Update) error {
	switch u.TypeURL {
	case resource.ClusterType:
		f.list(u)
		return nil
	case resource.EndpointType:
		return f.assign(u)
	default:
		return errors.New("this was not asked for")
	}
}

// list follows which server names there are.
func (f *feed) list(u xds.Update) {
	added, gone := f.relist(u)
	// At once, so that the first request for assignments has all of them.
	if len(added) > 0 {
		f.client.Add(resource.EndpointType, added...)
	}
	if len(gone) > 0 {
		f.client.Remove(resource.EndpointType, gone...)
	}
}

func (f *feed) relist(u xds.Update) (added, gone []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := f.listed == nil
	if first {
		f.listed = map[string]bool{}
	}
	for _, r := range u.Resources {
		name := r.GetName()
		// An Envoy in this place needs clusters that are no services.
		if _, _, err := build.ParseSNI(name); err == nil && !f.listed[name] {
			f.listed[name] = true
			added = append(added, name)
		}
	}
	for _, name := range u.Removed {
		if f.listed[name] {
			delete(f.listed, name)
			gone = append(gone, name)
			f.drop(name)
		}
	}
	if !first {
		return added, gone
	}
	// The first answer to a wildcard has all that there is.
	for name := range f.routes {
		if !f.listed[name] {
			f.drop(name)
		}
	}
	if len(f.listed) == 0 {
		f.complete()
	}
	return added, gone
}

// assign follows the pods of server names.
func (f *feed) assign(u xds.Update) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, r := range u.Resources {
		a, err := build.ParseEDS(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !f.listed[a.Name] {
			continue
		}
		pods := make([]netip.AddrPort, 0, len(a.Direct))
		for _, d := range a.Direct {
			pods = append(pods, d.Addr)
		}
		slices.SortFunc(pods, netip.AddrPort.Compare)
		pods = slices.Compact(pods)
		if have, ok := f.routes[a.Name]; ok && slices.Equal(have, pods) {
			continue
		}
		f.routes[a.Name] = pods
		f.router.Set(a.Name, pods)
		f.mark()
		f.log.Debug("pods of a service", "sni", a.Name, "pods", pods)
	}
	for _, name := range u.Removed {
		f.drop(name)
	}
	if f.listed != nil {
		f.complete()
	}
	return errors.Join(errs...)
}

// drop makes a server name unknown. Must hold f.mu.
func (f *feed) drop(name string) {
	if _, ok := f.routes[name]; !ok {
		return
	}
	delete(f.routes, name)
	f.router.Remove(name)
	f.mark()
	f.log.Debug("service no longer admitted", "sni", name)
}

// complete notes that everything has come. Must hold f.mu.
func (f *feed) complete() {
	if f.told {
		return
	}
	f.told = true
	f.mark() // also where nothing changed: that there is nothing is known now
	f.log.Info("routes known", "services", len(f.routes))
}

// mark says that the routes on disk are older.
func (f *feed) mark() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// Where routes come from, as the status has it.
const (
	routesNone         = "none"
	routesDisk         = "disk"
	routesControlPlane = "control-plane"
)

// snapshot returns the routes and where they come from.
func (f *feed) snapshot() (routes gateway.Routes, from string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.routes), f.from()
}

// source says where the routes come from.
func (f *feed) source() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.from()
}

func (f *feed) from() string {
	switch {
	case f.told:
		return routesControlPlane
	case f.kept:
		return routesDisk
	default:
		return routesNone
	}
}
