package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/xds"
)

// mirrorFormat is the version of the file.
const mirrorFormat = 1

// mirror is what the control plane told, in memory and on disk: the agent comes
// up with it when the control plane is away, and resumes from its versions.
type mirror struct {
	path string
	node mesh.NodeID

	mu sync.Mutex
	// content is what the file holds.
	content content
	// complete holds the types of which everything there is has come, on this
	// run or an earlier one. Nothing is removed before that.
	complete map[string]bool
	// told holds the types of which everything has come on this run.
	told    map[string]bool
	changed chan struct{} // one slot
	unsaved bool
}

// content is the file's, and memory's: parsed resources with their versions.
type content struct {
	Format int `json:"format"`
	// Key is the one that the node had registered when it was told all this.
	Key      mesh.PublicKey                  `json:"key"`
	Node     mesh.NodeID                     `json:"node"`
	Own      *versioned[mesh.NodeConfig]     `json:"own,omitempty"`
	Cluster  *versioned[mesh.ClusterConfig]  `json:"cluster,omitempty"`
	Peers    map[string]versioned[mesh.Peer] `json:"peers"`
	Complete []string                        `json:"complete"`
}

type versioned[T any] struct {
	Version string `json:"version"`
	Value   T      `json:"value"`
}

// corruptError says that a file was set aside because it could not be read.
type corruptError struct {
	path, setAside string
	reason         error
}

func (e *corruptError) Error() string {
	return fmt.Sprintf("%s cannot be read and was set aside as %s: %v", e.path, e.setAside, e.reason)
}

func (e *corruptError) Unwrap() error { return e.reason }

// openMirror reads the file. Where it is corrupt, or of another node, an empty
// mirror is returned together with a *corruptError. What was told to another key
// is left: whoever holds this one must register before it takes anyone's place.
func openMirror(path string, node mesh.NodeID, key mesh.PublicKey) (*mirror, error) {
	m := &mirror{path: path, node: node, complete: map[string]bool{}, told: map[string]bool{}, changed: make(chan struct{}, 1)}
	m.content = content{Format: mirrorFormat, Node: node, Key: key, Peers: map[string]versioned[mesh.Peer]{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the peers kept on disk: %w", err)
	}
	c, err := decodeContent(b, node)
	if errors.Is(err, errNewerFormat) {
		return nil, fmt.Errorf("%s: %w: use the newer agent, or remove the file to fetch the peers anew", path, err)
	}
	if err != nil {
		aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
		if rerr := os.Rename(path, aside); rerr != nil {
			return nil, fmt.Errorf("%s cannot be read (%w) and not be set aside: %w", path, err, rerr)
		}
		return m, &corruptError{path: path, setAside: aside, reason: err}
	}
	if c.Key != key {
		return m, nil
	}
	m.content = c
	for _, t := range c.Complete {
		m.complete[t] = true
	}
	return m, nil
}

var errNewerFormat = errors.New("written by a newer agent")

// decodeContent reads a file's content and checks that it is whole and node's.
func decodeContent(b []byte, node mesh.NodeID) (content, error) {
	var c content
	err := json.Unmarshal(b, &c)
	switch {
	case err != nil:
	case c.Format > mirrorFormat:
		err = fmt.Errorf("%w: it is of format %d, this agent reads up to %d", errNewerFormat, c.Format, mirrorFormat)
	case c.Node != node:
		err = fmt.Errorf("it is of node %s, this is %s", c.Node, node)
	case c.Format != mirrorFormat || c.Peers == nil:
		err = errors.New("it is not complete")
	}
	return c, err
}

// subscriptions returns what to ask the control plane for, with the versions
// that are here already.
func (m *mirror) subscriptions() []xds.Subscription {
	m.mu.Lock()
	defer m.mu.Unlock()
	versions := func() map[string]string { return map[string]string{} }
	own, cluster, peers := versions(), versions(), versions()
	if m.content.Own != nil {
		own[m.node.String()] = m.content.Own.Version
	}
	if m.content.Cluster != nil {
		cluster[m.node.Cluster] = m.content.Cluster.Version
	}
	for name, p := range m.content.Peers {
		peers[name] = p.Version
	}
	return []xds.Subscription{
		{TypeURL: xds.NodeConfigType, Names: []string{m.node.String()}, Versions: own},
		{TypeURL: xds.ClusterConfigType, Names: []string{m.node.Cluster}, Versions: cluster},
		{TypeURL: xds.PeerType, Names: []string{"*"}, Versions: peers},
	}
}

// apply takes in one response. A response of which one resource is wrong is
// refused as a whole.
func (m *mirror) apply(u xds.Update) error {
	var own *versioned[mesh.NodeConfig]
	var cluster *versioned[mesh.ClusterConfig]
	peers := map[string]versioned[mesh.Peer]{}
	var errs []error
	for _, r := range u.Resources {
		var err error
		switch u.TypeURL {
		case xds.NodeConfigType:
			own, err = parse(r, xds.ParseNodeConfig)
			if err == nil && own.Value.Node != m.node {
				err = fmt.Errorf("node config of %s", own.Value.Node)
			}
		case xds.ClusterConfigType:
			cluster, err = parse(r, xds.ParseClusterConfig)
			if err == nil && cluster.Value.Cluster != m.node.Cluster {
				err = fmt.Errorf("cluster config of %s", cluster.Value.Cluster)
			}
		case xds.PeerType:
			var p *versioned[mesh.Peer]
			if p, err = parse(r, xds.ParsePeer); err == nil {
				peers[r.GetName()] = *p
			}
		default:
			err = fmt.Errorf("type %s was not asked for", u.TypeURL)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// That this node's own or its cluster's configuration is gone changes nothing
	// here: the control plane ends the streams of a node that was removed, and
	// what stands stays until someone says what instead.
	if own != nil {
		m.content.Own = own
	}
	if cluster != nil {
		m.content.Cluster = cluster
	}
	maps.Copy(m.content.Peers, peers)
	if u.TypeURL == xds.PeerType {
		for _, name := range u.Removed {
			delete(m.content.Peers, name)
		}
	}
	first := !m.told[u.TypeURL]
	m.told[u.TypeURL] = true
	if !m.complete[u.TypeURL] {
		m.complete[u.TypeURL] = true
		m.content.Complete = slices.Sorted(maps.Keys(m.complete))
	} else if len(u.Resources)+len(u.Removed) == 0 {
		if first {
			mark(m.changed) // what stands has been confirmed
		}
		return nil
	}
	m.unsaved = true
	mark(m.changed)
	return nil
}

func parse[T any](r *discovery.Resource, read func(*discovery.Resource) (T, error)) (*versioned[T], error) {
	v, err := read(r)
	if err != nil {
		return nil, err
	}
	return &versioned[T]{Version: r.GetVersion(), Value: v}, nil
}

// view returns what was told, and whether it is complete: until then nothing on
// the node is changed.
func (m *mirror) view() (view, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.content.Own == nil || m.content.Cluster == nil || !m.complete[xds.PeerType] {
		return view{}, false
	}
	v := view{node: m.content.Own.Value, cluster: m.content.Cluster.Value, peers: make([]mesh.Peer, 0, len(m.content.Peers))}
	for _, p := range m.content.Peers {
		v.peers = append(v.peers, p.Value)
	}
	slices.SortFunc(v.peers, func(a, b mesh.Peer) int { return a.Node.Compare(b.Node) })
	return v, true
}

// confirmed reports whether the control plane has told everything on this run:
// until then what came from disk may be old, and nothing is removed.
func (m *mirror) confirmed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told[xds.NodeConfigType] && m.told[xds.ClusterConfigType] && m.told[xds.PeerType]
}

// own returns the node's own configuration, as last told.
func (m *mirror) own() (mesh.NodeConfig, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.content.Own == nil {
		return mesh.NodeConfig{}, false
	}
	return m.content.Own.Value, true
}

// save writes the file if anything changed since it was last written. The
// content is encoded under the lock and written outside it.
func (m *mirror) save() error {
	m.mu.Lock()
	if !m.unsaved {
		m.mu.Unlock()
		return nil
	}
	b, err := json.MarshalIndent(m.content, "", " ")
	m.unsaved = false
	m.mu.Unlock()
	if err == nil {
		err = writeFile(m.path, b)
	}
	if err != nil {
		m.mu.Lock()
		m.unsaved = true
		m.mu.Unlock()
		return fmt.Errorf("keep the peers on disk: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole: after a crash at any moment it holds the
// old content or the new.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
