package peering

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestIssueWorkload(t *testing.T) {
	for name, c := range map[string]struct {
		node                mesh.NodeID
		namespace, pod, uid string
		issueErr            error
		code                codes.Code
		says                string
	}{
		"a pod of the node":            {node: n1, namespace: "demo", pod: "echo-0", uid: "u1"},
		"nobody asks":                  {namespace: "demo", pod: "echo-0", uid: "u1", code: codes.Unauthenticated},
		"a node that has gone":         {node: w1, namespace: "demo", pod: "echo-0", uid: "u1", code: codes.FailedPrecondition},
		"a pod of another node":        {node: n2, namespace: "demo", pod: "echo-0", uid: "u1", code: codes.PermissionDenied, says: "no pod demo/echo-0 with the UID \"u1\" runs on east/n2"},
		"an earlier pod of the name":   {node: n1, namespace: "demo", pod: "echo-0", uid: "u0", code: codes.PermissionDenied, says: "u0"},
		"no namespace":                 {node: n1, pod: "echo-0", uid: "u1", code: codes.InvalidArgument, says: `namespace ""`},
		"a bad namespace":              {node: n1, namespace: "demo.x", pod: "echo-0", code: codes.InvalidArgument, says: `namespace "demo.x"`},
		"no pod":                       {node: n1, namespace: "demo", code: codes.InvalidArgument, says: `pod name ""`},
		"a way out":                    {node: n1, namespace: "demo", pod: "../echo", code: codes.InvalidArgument, says: "pod name"},
		"a UID without end":            {node: n1, namespace: "demo", pod: "echo-0", uid: strings.Repeat("u", maxWord+1), code: codes.InvalidArgument, says: "at most 128 bytes"},
		"no certificate can be issued": {node: n1, namespace: "demo", pod: "echo-0", uid: "u1", issueErr: errors.New("not a CSR"), code: codes.InvalidArgument, says: "issue a certificate for pod demo/echo-0: not a CSR"},
		"the control plane's fault":    {node: n1, namespace: "demo", pod: "echo-0", uid: "u1", issueErr: status.Error(codes.Unavailable, "disk full"), code: codes.Unavailable, says: "disk full"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := serve(t, authority{c.issueErr}, &backend{})
			ctx := t.Context()
			if c.node != (mesh.NodeID{}) {
				ctx = as(ctx, c.node)
			}
			chain, roots, err := NewAgent(conn, n1, prover{}).IssueWorkload(ctx, c.namespace, c.pod, c.uid, []byte("csr"))
			if c.code != codes.OK {
				if status.Code(errors.Unwrap(err)) != c.code || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "ask for the certificate of pod") {
					t.Errorf("got %v, want %v: %s", err, c.code, c.says)
				}
				return
			}
			if got := fmt.Sprintf("%s %s", chain, roots); err != nil || got != "[east demo/echo csr] [root]" {
				t.Errorf("got %s %v", got, err)
			}
		})
	}
}
