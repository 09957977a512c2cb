package store

import (
	"errors"
	"fmt"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// Tx collects the changes of one Update. The last change of a record counts.
// Deleting what is not there is not an error. A record that cannot be stored
// (no name, no key) makes the whole Update fail, so its methods return nothing.
type Tx struct {
	changes map[id][]byte // nil deletes
	err     error
}

// PutRegistration stores what an agent said, in place of what it said before.
func (tx *Tx) PutRegistration(r Registration) {
	if r.Key.IsZero() {
		tx.fail(fmt.Errorf("registration of %v: no key", r.Node))
		return
	}
	r.Registered = r.Registered.UTC()
	tx.put(id{registrationsBucket, r.Node.String()}, r, r.Node.Validate())
}

// DeleteRegistration forgets a node's agent.
func (tx *Tx) DeleteRegistration(node mesh.NodeID) {
	tx.delete(id{registrationsBucket, node.String()})
}

// PutCluster stores a cluster's declaration.
func (tx *Tx) PutCluster(c Cluster) {
	tx.put(id{clustersBucket, c.Name}, c, mesh.ValidateClusterName(c.Name))
}

// DeleteCluster forgets a cluster; its nodes and registrations are deleted on
// their own.
func (tx *Tx) DeleteCluster(name string) { tx.delete(id{clustersBucket, name}) }

// PutNode stores what Kubernetes says of a node.
func (tx *Tx) PutNode(n Node) { tx.put(id{nodesBucket, n.ID.String()}, n, n.ID.Validate()) }

// DeleteNode forgets a node; its registration is deleted on its own.
func (tx *Tx) DeleteNode(node mesh.NodeID) { tx.delete(id{nodesBucket, node.String()}) }

// PutMesh stores what the mesh was set up with.
func (tx *Tx) PutMesh(m Mesh) {
	var err error
	if m.Name == "" {
		err = errors.New("mesh: no name")
	}
	tx.put(id{metaBucket, meshKey}, m, err)
}

// ForgetOrder drops keys that Order has numbered. Their numbers are not given
// again.
func (tx *Tx) ForgetOrder(keys ...string) {
	for _, key := range keys {
		tx.delete(id{ordersBucket, key})
	}
}

func (tx *Tx) put(at id, v any, invalid error) {
	if invalid != nil {
		tx.fail(invalid)
		return
	}
	value, err := encode(at, v)
	if err != nil {
		tx.fail(err)
		return
	}
	tx.changes[at] = value
}

func (tx *Tx) delete(at id) { tx.changes[at] = nil }

func (tx *Tx) fail(err error) { tx.err = errors.Join(tx.err, err) }
