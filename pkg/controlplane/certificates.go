package controlplane

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
	"github.com/flatmesh/flatmesh/pkg/store"
)

// maxCertificates bounds those that are out for one node: renewed ones whose
// answer was lost, and those of joins that went no further.
const maxCertificates = 8

// fingerprint identifies a certificate (DER).
func fingerprint(leaf []byte) string {
	sum := sha256.Sum256(leaf)
	return hex.EncodeToString(sum[:8])
}

// issued notes a certificate that is about to be handed out for a node's agent.
// One that cannot be written is not: after a restart it would be refused.
func (l *loop) issued(node mesh.NodeID, cert string) {
	r, ok := l.registrations[node]
	if !ok {
		return // whoever registers first has the name
	}
	certs := append(slices.Clone(r.Certificates), cert)
	if n := len(certs); n > maxCertificates {
		// The first is the one in use.
		certs = slices.Delete(certs, 1, 1+n-maxCertificates)
	}
	l.setCertificates(node, certs, func() {
		if r, ok := l.registrations[node]; ok {
			r.Certificates = slices.DeleteFunc(slices.Clone(r.Certificates), func(c string) bool { return c == cert })
			l.registrations[node] = r
		}
	})
}

// inUse notes with which certificate an agent has registered. It ends those that
// were issued before: two hosts that take the same node's name must not both
// speak for it, and a join that was allowed replaces the agent before.
func (l *loop) inUse(node mesh.NodeID, cert string) {
	certs := l.registrations[node].Certificates
	if cert == "" || (len(certs) > 0 && certs[0] == cert) {
		return
	}
	l.setCertificates(node, append([]string{cert}, certs[slices.Index(certs, cert)+1:]...), nil)
}

func (l *loop) setCertificates(node mesh.NodeID, certs []string, undo func()) {
	r := l.registrations[node]
	r.Certificates = certs
	l.registrations[node] = r
	l.pending = append(l.pending, write{undo: undo, put: func(tx *store.Tx) {
		// As it is by then: what else was to be written may have been taken back.
		if r, ok := l.registrations[node]; ok {
			tx.PutRegistration(r)
		}
	}})
}

// notReplaced refuses a certificate after a later one of the node came into use.
func (l *loop) notReplaced(node mesh.NodeID, cert string) error {
	r, ok := l.registrations[node]
	if !ok || cert == "" || len(r.Certificates) == 0 || slices.Contains(r.Certificates, cert) {
		return nil
	}
	return status.Errorf(codes.Unauthenticated,
		"another agent has joined as %s since, with the key %s: one of the two hosts has the wrong node name, or this one needs a token of its own, from: controlplane token create --cluster %s --node %s",
		node, r.Key, node.Cluster, node.Name)
}
