package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

const (
	snapshotFormat = 1
	// snapshotEvery is how often what is served of services is written, if it
	// changed. It is a cache: what a crash loses of it the sources tell again.
	snapshotEvery = 5 * time.Second
)

// snapshot is the services and gateways of all clusters, so that a control plane
// that starts while a source is away serves what it last said.
type snapshot struct {
	Format   int                       `json:"format"`
	Clusters map[string]clusterDetails `json:"clusters"`
}

// clusterDetails is what one cluster's source last said of services.
type clusterDetails struct {
	Gateways []mesh.Gateway                        `json:"gateways,omitempty"`
	Services map[mesh.ServiceName]mesh.ServicePart `json:"services,omitempty"`
	// Processes are the gateways' processes that have ever spoken, with the
	// addresses that they speak for: one that is gone over a restart is still gone.
	Processes map[string][]netip.Addr `json:"processes,omitempty"`
}

// empty reports whether there is nothing in it.
func (d clusterDetails) empty() bool { return len(d.Gateways)+len(d.Services) == 0 }

func (d clusterDetails) endpoints() int {
	n := 0
	for _, p := range d.Services {
		for _, q := range p.Ports {
			n += len(q.Backends)
		}
	}
	return n
}

func snapshotFile(stateDir string) string { return filepath.Join(stateDir, "services.json") }

// readSnapshot reads the file; one that is not there, or of a later format, is an
// empty one. The first line is the checksum of the rest.
func readSnapshot(path string) (snapshot, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return snapshot{}, nil
	}
	if err != nil {
		return snapshot{}, err
	}
	var sum uint32
	var s snapshot
	if len(b) < 9 {
		return snapshot{}, fmt.Errorf("%s is cut short", path)
	}
	if _, err := fmt.Sscanf(string(b[:8]), "%08x", &sum); err != nil || crc32.ChecksumIEEE(b[9:]) != sum {
		return snapshot{}, fmt.Errorf("%s is damaged: its checksum does not fit", path)
	}
	if err := json.Unmarshal(b[9:], &s); err != nil {
		return snapshot{}, fmt.Errorf("%s: %w", path, err)
	}
	if s.Format != snapshotFormat {
		return snapshot{}, fmt.Errorf("%s is of format %d, this control plane reads %d", path, s.Format, snapshotFormat)
	}
	return s, nil
}

// writeSnapshot replaces the file as a whole.
func writeSnapshot(path string, s snapshot) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%08x\n%s", crc32.ChecksumIEEE(b), b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// keepSnapshot writes what is served of services until ctx ends.
func (l *loop) keepSnapshot(ctx context.Context, path string) {
	tick := time.NewTicker(snapshotEvery)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var s snapshot
		if err := l.do(ctx, func(l *loop) error { s = l.snapshot(); return nil }); err != nil || s.Clusters == nil {
			continue
		}
		err := writeSnapshot(path, s)
		if err != nil {
			_ = l.do(ctx, func(l *loop) error { l.unwritten = true; return nil })
			if !failed {
				l.log.Error("the services cannot be kept on disk; after a restart those of a source that is away would not be served", "err", err)
			}
		}
		failed = err != nil
	}
}

// snapshot returns what is to be written, or nothing where nothing changed.
func (l *loop) snapshot() snapshot {
	if !l.unwritten || !l.begun {
		return snapshot{}
	}
	l.unwritten = false
	s := snapshot{Format: snapshotFormat, Clusters: map[string]clusterDetails{}}
	for name, c := range l.clusters {
		d := c.details()
		d.Processes = map[string][]netip.Addr{}
		for id, g := range l.gatewayStates {
			if id.cluster == name {
				d.Processes[id.name] = g.addrs
			}
		}
		s.Clusters[name] = d
	}
	return s
}

// details is what is in force of a cluster's services.
func (c *cluster) details() clusterDetails {
	if c.restored != nil {
		return *c.restored
	}
	d := clusterDetails{Gateways: c.index.Gateways(), Services: map[mesh.ServiceName]mesh.ServicePart{}}
	for _, n := range c.index.Services() {
		if p, ok := c.index.Part(n); ok {
			d.Services[n] = p
		}
	}
	return d
}

// part returns what is in force of a service in the cluster.
func (c *cluster) part(n mesh.ServiceName) (mesh.ServicePart, bool) {
	if c.restored != nil {
		p, ok := c.restored.Services[n]
		return p, ok
	}
	return c.index.Part(n)
}

// gateways returns those in force.
func (c *cluster) gateways() []mesh.Gateway {
	if c.restored != nil {
		return c.restored.Gateways
	}
	return c.index.Gateways()
}

// restore has the cluster served as an earlier run last knew it, until its source
// has spoken.
func (l *loop) restoreServices(c *cluster, d clusterDetails) {
	for name, addrs := range d.Processes {
		l.gatewayStates[gatewayID{c.decl.Name, name}] = &gatewayState{addrs: addrs, left: l.started.Add(gatewayReturn)}
		time.AfterFunc(gatewayReturn+gatewayGrace, func() {
			_ = l.do(l.life, func(l *loop) error { l.dirty = true; return nil })
		})
	}
	if d.empty() {
		return
	}
	c.restored = &d
	for n := range d.Services {
		l.stale[n] = struct{}{}
	}
}

// heard ends what was restored once the cluster's source has told everything,
// unless that looks like a source that lost its data.
func (l *loop) heard(c *cluster, release bool) {
	if c.restored == nil {
		return
	}
	now := clusterDetails{Services: map[mesh.ServiceName]mesh.ServicePart{}}
	for _, n := range c.index.Services() {
		now.Services[n], _ = c.index.Part(n)
	}
	lost := len(c.restored.Services) > 1 && len(now.Services) == 0 || c.restored.endpoints() > manyEndpoints && now.endpoints() == 0
	switch {
	case !lost || release:
	case c.restoredSince.IsZero():
		c.restoredSince = l.now()
		l.log.Warn("removal held: the source no longer has the services or endpoints that it had before the restart", "cluster", c.decl.Name, "for", l.hold,
			"confirm", "controlplane confirm "+c.decl.Name)
		return
	case l.now().Sub(c.restoredSince) < l.hold:
		return
	}
	for n := range c.restored.Services {
		l.stale[n] = struct{}{}
	}
	for _, n := range c.index.Services() {
		l.stale[n] = struct{}{}
	}
	c.restored, c.restoredSince = nil, time.Time{}
	l.dirty = true // its gateways
}
