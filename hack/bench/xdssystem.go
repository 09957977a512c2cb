package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
	"github.com/flatmesh/flatmesh/pkg/xds/view"
)

// The ways of serving assignments that are compared.
const (
	flatmeshSystem  = "flatmesh"
	linearSystem    = "LinearCache for all"
	linearsSystem   = "LinearCache per node"
	snapshotsSystem = "SnapshotCache"
)

// xdsSystem serves a world.
type xdsSystem struct {
	ads discovery.AggregatedDiscoveryServiceServer
	// change prepares another generation of a service, and returns what puts it in
	// force: that alone is measured.
	change func(service, generation int) (func() error, error)
	// flip does the same with a client's tunnel to the first far node.
	flip func(client int, down bool) (func() error, error)
}

// catalogOf returns a catalog that holds all of a world.
func catalogOf(ctx context.Context, w world) *view.Catalog {
	c := view.New(ctx, view.Options{TrustDomain: "bench.local", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	c.SetTopology(w.topology())
	all := make(map[mesh.ServiceName]*mesh.Service, w.Services)
	for i := range w.Services {
		all[serviceName(i)] = w.service(i, 0)
	}
	c.SetServices(all)
	for i := range w.Clients {
		c.SetReport(nearNode(i), w.report(i, false))
	}
	for i := range farNodes {
		c.SetReport(farNode(i), w.farReport())
	}
	c.Begin(nil)
	return c
}

func newXDSSystem(ctx context.Context, kind string, w world) (xdsSystem, error) {
	c := catalogOf(ctx, w)
	if kind == flatmeshSystem {
		return flatmeshServer(c, w), nil
	}
	// The others serve what flatmesh gives the client on the first node.
	message := func(i, generation int) (types.Resource, error) {
		if generation > 0 {
			c.SetServices(map[mesh.ServiceName]*mesh.Service{serviceName(i): w.service(i, generation)})
		}
		r, answer := c.Lookup(view.Of(build.GRPC, nearNode(0)), resource.EndpointType, assignmentName(i))
		if answer != xds.Found {
			return nil, fmt.Errorf("the assignment %s is %v", assignmentName(i), answer)
		}
		var m endpoint.ClusterLoadAssignment
		return &m, r.GetResource().UnmarshalTo(&m)
	}
	items := make(map[string]types.Resource, w.Services)
	for i := range w.Services {
		m, err := message(i, 0)
		if err != nil {
			return xdsSystem{}, err
		}
		items[assignmentName(i)] = m
	}
	var set func(name string, m types.Resource) error
	var caches cache.Cache
	switch kind {
	case linearSystem:
		caches, set = linearCaches(items, 1, func(*core.Node) string { return nearNode(0).String() })
	case linearsSystem:
		caches, set = linearCaches(items, w.Clients, (*core.Node).GetId)
	case snapshotsSystem:
		var err error
		if caches, set, err = snapshotCache(ctx, items, w.Clients); err != nil {
			return xdsSystem{}, err
		}
	default:
		return xdsSystem{}, fmt.Errorf("no system %q", kind)
	}
	return xdsSystem{ads: server.NewServer(ctx, caches, nil), change: func(i, generation int) (func() error, error) {
		m, err := message(i, generation)
		return func() error { return set(assignmentName(i), m) }, err
	}}, nil
}

func flatmeshServer(c *view.Catalog, w world) xdsSystem {
	identify := func(ctx context.Context) (xds.Client, context.Context, func(), error) {
		return xds.Client{Name: "a client", View: func(n *core.Node, _ string) (string, bool) {
			id, err := mesh.ParseNodeID(n.GetId())
			return view.Of(build.GRPC, id), err == nil
		}}, ctx, func() {}, nil
	}
	s := xds.NewServer(c, slog.New(slog.NewTextHandler(os.Stderr, nil)), identify, func(string) {})
	c.Attach(s)
	return xdsSystem{
		ads: s,
		change: func(i, generation int) (func() error, error) {
			services := map[mesh.ServiceName]*mesh.Service{serviceName(i): w.service(i, generation)}
			return func() error { c.SetServices(services); return nil }, nil
		},
		flip: func(client int, down bool) (func() error, error) {
			report := w.report(client, down)
			return func() error { c.SetReport(nearNode(client), report); return nil }, nil
		},
	}
}

// linearCaches makes one LinearCache for each view: it shows all its clients the
// same.
func linearCaches(items map[string]types.Resource, views int, viewOf func(*core.Node) string) (cache.Cache, func(string, types.Resource) error) {
	mux := &cache.MuxCache{
		Classify:      func(r *cache.Request) string { return viewOf(r.GetNode()) },
		ClassifyDelta: func(r *cache.DeltaRequest) string { return viewOf(r.GetNode()) },
		Caches:        map[string]cache.Cache{},
	}
	var all []*cache.LinearCache
	for i := range views {
		c := cache.NewLinearCache(resource.EndpointType, cache.WithInitialResources(items), cache.WithLogger(log.NewDefaultLogger()))
		mux.Caches[nearNode(i).String()] = c
		all = append(all, c)
	}
	return mux, func(name string, m types.Resource) error {
		var errs []error
		for _, c := range all {
			errs = append(errs, c.UpdateResource(name, m))
		}
		return errors.Join(errs...)
	}
}

// snapshotCache holds a snapshot for each node, which differ in nothing but might.
func snapshotCache(ctx context.Context, items map[string]types.Resource, nodes int) (cache.Cache, func(string, types.Resource) error, error) {
	c := cache.NewSnapshotCache(false, cache.IDHash{}, log.NewDefaultLogger())
	current := make(map[string]types.ResourceWithTTL, len(items))
	for name, m := range items {
		current[name] = types.ResourceWithTTL{Resource: m}
	}
	version := 0
	set := func(name string, m types.Resource) error {
		next := maps.Clone(current)
		next[name] = types.ResourceWithTTL{Resource: m}
		current = next
		version++
		for i := range nodes {
			s := &cache.Snapshot{}
			s.Resources[types.Endpoint] = cache.Resources{Version: fmt.Sprint(version), Items: current}
			if err := c.SetSnapshot(ctx, nearNode(i).String(), s); err != nil {
				return err
			}
		}
		return nil
	}
	for name, m := range items {
		return c, set, set(name, m)
	}
	return nil, nil, errors.New("a world without services")
}
