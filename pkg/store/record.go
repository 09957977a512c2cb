package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// FormatVersion is the version of the records in a file. A file of a later one
// is refused, ErrNewerFormat. Under the same version fields may be added that an
// older reader may ignore.
const FormatVersion = 1

// Registration is what an agent said of its node.
type Registration struct {
	Node mesh.NodeID    `json:"node"`
	Key  mesh.PublicKey `json:"key"`
	// Endpoints are where the node's WireGuard may be reached, best first.
	Endpoints  []netip.AddrPort `json:"endpoints,omitempty"`
	ListenPort uint16           `json:"listenPort,omitempty"`
	// TunnelAddrs holds at most one address of each family.
	TunnelAddrs []netip.Addr `json:"tunnelAddrs,omitempty"`
	// Device is "kernel" or "userspace".
	Device string `json:"device,omitempty"`
	// Version is the agent's.
	Version string `json:"version,omitempty"`
	// Certificates identifies the agent's, the one in use first, then later ones
	// that were issued. None: any of the node's counts.
	Certificates []string `json:"certificates,omitempty"`
	// Registered is when the node first registered under this key; stored in UTC.
	Registered time.Time `json:"registered,omitzero"`
}

// Cluster is the last known declaration of a cluster, and where it came from.
type Cluster struct {
	mesh.Cluster
	// Source is what the control plane calls the source: a folder, a kubeconfig.
	Source string `json:"source,omitempty"`
}

// Node is what Kubernetes last said of a node.
type Node struct {
	ID        mesh.NodeID    `json:"id"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs,omitempty"`
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	Region    string         `json:"region,omitempty"`
	Zone      string         `json:"zone,omitempty"`
}

// Mesh is what the mesh was set up with.
type Mesh struct {
	Name         string         `json:"name"`
	TunnelRanges []netip.Prefix `json:"tunnelRanges,omitempty"`
}

// Snapshot is everything in the store at one moment.
type Snapshot struct {
	// Mesh is zero until it has been put.
	Mesh Mesh
	// Each is sorted by its node's ID or its name.
	Registrations []Registration
	Clusters      []Cluster
	Nodes         []Node
	// Orders are the keys that Order has numbered.
	Orders map[string]uint64

	// last is the highest number that Order has ever given.
	last uint64
}

// The buckets, and the keys of metaBucket.
const (
	metaBucket          = "meta"
	registrationsBucket = "registrations"
	clustersBucket      = "clusters"
	nodesBucket         = "nodes"
	ordersBucket        = "orders"

	formatKey    = "format"
	meshKey      = "mesh"
	lastOrderKey = "lastOrder"
	totalKey     = "total"
)

// buckets lists all of them, sorted.
func buckets() []string {
	return []string{clustersBucket, metaBucket, nodesBucket, ordersBucket, registrationsBucket}
}

// id is where a record lies.
type id struct{ bucket, key string }

func (i id) String() string { return fmt.Sprintf("bucket %q, key %q", i.bucket, i.key) }

// record is one stored value.
type record struct {
	id
	value []byte
}

// sumLength is the length of "01234567 ", the checksum before the JSON.
const sumLength = 9

// sum covers the place too, so that a record under a damaged key is noticed.
func (i id) sum(text []byte) string {
	table := crc32.MakeTable(crc32.Castagnoli)
	c := crc32.Update(0, table, []byte(i.bucket+"\x00"+i.key+"\x00"))
	return fmt.Sprintf("%08x ", crc32.Update(c, table, text))
}

func encode(at id, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", at, err)
	}
	return append([]byte(at.sum(text)), text...), nil
}

func (r record) decode(v any) error {
	if len(r.value) < sumLength || string(r.value[:sumLength]) != r.sum(r.value[sumLength:]) {
		return fmt.Errorf("%v: the checksum is wrong", r.id)
	}
	if err := json.Unmarshal(r.value[sumLength:], v); err != nil {
		return fmt.Errorf("%v: %w", r.id, err)
	}
	return nil
}

// sumIn returns the checksum that a stored value begins with, 0 for none.
func sumIn(value []byte) uint32 {
	if len(value) < sumLength {
		return 0
	}
	n, _ := strconv.ParseUint(string(value[:sumLength-1]), 16, 32) // damage shows as another number
	return uint32(n)
}

// checkTotal compares the checksums of all records, taken together, with what
// the last commit left: a bbolt page that was cut short by a damaged count
// loses records and leaves the others in order.
func checkTotal(records []record) error {
	var total, want uint32
	for _, r := range records {
		if r.id == (id{metaBucket, totalKey}) {
			if err := r.decode(&want); err != nil {
				return err
			}
			continue
		}
		total ^= sumIn(r.value)
	}
	if total != want {
		return errors.New("records are missing: their checksums do not add up")
	}
	return nil
}

// checkFormat reads the version before anything else is understood.
func checkFormat(records []record) error {
	i := slices.IndexFunc(records, func(r record) bool { return r.id == id{metaBucket, formatKey} })
	if i < 0 {
		return errors.New("no format version: not a file of flatmesh")
	}
	var format int
	if err := records[i].decode(&format); err != nil {
		return err
	}
	switch {
	case format > FormatVersion:
		return fmt.Errorf("%w: %d, this version reads %d: run the newer control plane, or move the file away to begin anew", ErrNewerFormat, format, FormatVersion)
	case format < 1:
		return fmt.Errorf("format version %d", format)
	}
	return nil
}

// snapshotOf reads all records. Errors name the bucket and the key.
func snapshotOf(records []record) (Snapshot, error) {
	s := Snapshot{Orders: map[string]uint64{}}
	if err := checkFormat(records); err != nil {
		return Snapshot{}, err
	}
	for _, r := range records {
		if err := s.add(r); err != nil {
			return Snapshot{}, err
		}
	}
	seen := map[uint64]string{}
	for key, n := range s.Orders {
		if other, dup := seen[n]; dup || n == 0 || n > s.last {
			return Snapshot{}, fmt.Errorf("%v: number %d, with %d the last one given, and %q the same one", id{ordersBucket, key}, n, s.last, other)
		}
		seen[n] = key
	}
	slices.SortFunc(s.Registrations, func(a, b Registration) int { return a.Node.Compare(b.Node) })
	slices.SortFunc(s.Clusters, func(a, b Cluster) int { return a.Compare(b.Cluster) })
	slices.SortFunc(s.Nodes, func(a, b Node) int { return a.ID.Compare(b.ID) })
	return s, nil
}

func (s *Snapshot) add(r record) error {
	switch r.bucket {
	case metaBucket:
		switch r.key {
		case formatKey, totalKey:
			return nil // read apart
		case meshKey:
			return r.decode(&s.Mesh)
		case lastOrderKey:
			return r.decode(&s.last)
		}
	case registrationsBucket:
		var v Registration
		if err := r.decode(&v); err != nil {
			return err
		}
		s.Registrations = append(s.Registrations, v)
		return r.holds(v.Node.String())
	case clustersBucket:
		var v Cluster
		if err := r.decode(&v); err != nil {
			return err
		}
		s.Clusters = append(s.Clusters, v)
		return r.holds(v.Name)
	case nodesBucket:
		var v Node
		if err := r.decode(&v); err != nil {
			return err
		}
		s.Nodes = append(s.Nodes, v)
		return r.holds(v.ID.String())
	case ordersBucket:
		var n uint64
		if err := r.decode(&n); err != nil {
			return err
		}
		s.Orders[r.key] = n
		return nil
	}
	return fmt.Errorf("%v: unknown", r.id)
}

// holds refuses a record that lies under another's key.
func (r record) holds(name string) error {
	if name != r.key {
		return fmt.Errorf("%v: holds the record of %s", r.id, strconv.Quote(name))
	}
	return nil
}
