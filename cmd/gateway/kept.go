package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/flatmesh/flatmesh/pkg/gateway"
	"github.com/flatmesh/flatmesh/pkg/xds/build"
)

// keptFormat is the version of the file.
const keptFormat = 1

// keepEvery is how often the routes are written, at most. What a crash loses of
// them comes from the control plane again.
const keepEvery = time.Second

// kept is the file with the last known routes.
type kept struct {
	Format  int            `json:"format"`
	Cluster string         `json:"cluster"`
	Routes  gateway.Routes `json:"routes"`
}

// loadRoutes reads the routes that an earlier run kept, nil where there are none.
// A file that cannot be used is set aside, and the problem says so.
func loadRoutes(path, cluster string) (routes gateway.Routes, problem, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the routes kept on disk: %w", err)
	}
	routes, err = decodeRoutes(b, cluster)
	if err == nil {
		return routes, nil, nil
	}
	aside := path + ".corrupt"
	if rerr := os.Rename(path, aside); rerr != nil {
		return nil, nil, fmt.Errorf("%s cannot be used (%w) and not be set aside: %w", path, err, rerr)
	}
	return nil, fmt.Errorf("%s cannot be used and was set aside as %s: %w", path, aside, err), nil
}

func decodeRoutes(b []byte, cluster string) (gateway.Routes, error) {
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		// Of another format, it may still say which.
		if k.Format > keptFormat {
			return nil, fmt.Errorf("it is of format %d, this gateway reads %d", k.Format, keptFormat)
		}
		return nil, err
	}
	switch {
	case k.Format != keptFormat:
		return nil, fmt.Errorf("it is of format %d, this gateway reads %d", k.Format, keptFormat)
	case k.Cluster != cluster:
		return nil, fmt.Errorf("it is of cluster %s, this gateway is of %s", k.Cluster, cluster)
	case k.Routes == nil:
		return nil, errors.New("it is not complete")
	}
	for name, pods := range k.Routes {
		if _, _, err := build.ParseSNI(name); err != nil {
			return nil, err
		}
		for _, p := range pods {
			if !p.IsValid() || p.Port() == 0 {
				return nil, fmt.Errorf("%s: pod %v", name, p)
			}
		}
	}
	return k.Routes, nil
}

func saveRoutes(path, cluster string, routes gateway.Routes) error {
	b, err := json.Marshal(kept{Format: keptFormat, Cluster: cluster, Routes: routes})
	if err == nil {
		err = writeFile(path, b)
	}
	if err != nil {
		return fmt.Errorf("keep the routes on disk: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole: after a crash at any moment it holds the
// old content or the new. One process at a time may do so.
func writeFile(path string, b []byte) error {
	// A fixed name: what a crash leaves behind is overwritten and never piles up.
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// keep writes the feed's routes to disk as they change, and once more when ctx
// ends. problem is told how each try went.
func (f *feed) keep(ctx context.Context, path, cluster string, problem func(error)) {
	save := func() {
		routes, _ := f.snapshot()
		err := saveRoutes(path, cluster, routes)
		if err != nil {
			f.mark()
		}
		problem(err)
	}
	pause := time.NewTicker(keepEvery)
	defer pause.Stop()
	for ctx.Err() == nil {
		select {
		case <-f.changed:
			save()
		case <-ctx.Done():
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
	select {
	case <-f.changed:
		save()
	default:
	}
}
