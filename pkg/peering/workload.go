package peering

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// podID names a pod in messages.
type podID struct{ namespace, name string }

// String returns "pod namespace/name".
func (p podID) String() string { return "pod " + p.namespace + "/" + p.name }

// validate accepts what Kubernetes does: the namespace is a DNS label, the name a
// DNS subdomain (RFC 1123).
func (p podID) validate() error {
	if mesh.ValidateClusterName(p.namespace) != nil { // the same rule
		return fmt.Errorf("namespace %q: want lower-case letters, digits and dashes, at most 63, beginning and ending with a letter or digit", p.namespace)
	}
	if mesh.ValidateNodeName(p.name) != nil { // the same rule
		return fmt.Errorf("pod name %q: want a lower-case DNS name of at most 253 characters", p.name)
	}
	return nil
}

// IssueWorkload issues a certificate for a pod of the caller's node. Who the pod
// is the backend says, never the caller.
func (s *Server) IssueWorkload(ctx context.Context, req *peeringv1.IssueWorkloadRequest) (*peeringv1.IssueWorkloadResponse, error) {
	node, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	pod := podID{req.GetNamespace(), req.GetPod()}
	if err := pod.validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if len(req.GetUid()) > maxWord {
		return nil, status.Errorf(codes.InvalidArgument, "UID of %s: at most %d bytes are taken", pod, maxWord)
	}
	account, err := s.backend.Workload(ctx, node, pod.namespace, pod.name, req.GetUid())
	if err != nil {
		s.log.Warn("workload certificate refused", "node", node, "pod", pod, "uid", req.GetUid(), "err", status.Convert(err).Message())
		return nil, err
	}
	chain, roots, err := s.authority.IssueWorkload(node.Cluster, pod.namespace, account, req.GetCsr())
	if err != nil {
		return nil, notIssued(pod, err)
	}
	return &peeringv1.IssueWorkloadResponse{Certificates: chain, Roots: roots}, nil
}

// IssueWorkload asks for a certificate for a pod that runs on the agent's node,
// over a key that was made there. uid is empty where the source of pods has none.
// It returns a certificate chain, leaf first, and the mesh's roots; all DER.
func (a *Agent) IssueWorkload(ctx context.Context, namespace, pod, uid string, csr []byte) (chain, roots [][]byte, err error) {
	resp, err := a.rpc.IssueWorkload(ctx, &peeringv1.IssueWorkloadRequest{Namespace: namespace, Pod: pod, Uid: uid, Csr: csr})
	if err != nil {
		return nil, nil, fmt.Errorf("ask for the certificate of %s: %w", podID{namespace, pod}, err)
	}
	return resp.GetCertificates(), resp.GetRoots(), nil
}
