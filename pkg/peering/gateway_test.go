package peering

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
)

func TestJoinGateway(t *testing.T) {
	for name, c := range map[string]struct {
		cluster, name, token string
		issueErr             error
		code                 codes.Code
		says                 string
	}{
		"its own token":                {cluster: "east", name: "gw", token: "gateway:east/gw"},
		"a name with dots":             {cluster: "east", name: "gw-0.edge", token: "gateway:east/gw-0.edge"},
		"no token":                     {cluster: "east", name: "gw", code: codes.Unauthenticated, says: "no gateway's"},
		"an agent's token":             {cluster: "east", name: "gw", token: "east/gw", code: codes.Unauthenticated, says: "no gateway's"},
		"another gateway's token":      {cluster: "east", name: "gw", token: "gateway:east/other", code: codes.PermissionDenied, says: "the token is for the gateway east/other, not for the gateway east/gw: make one with: controlplane token create --cluster east --gateway gw"},
		"another cluster's token":      {cluster: "east", name: "gw", token: "gateway:west/gw", code: codes.PermissionDenied, says: "gateway west/gw"},
		"a token with no name":         {cluster: "east", name: "gw", token: "gateway:east", code: codes.PermissionDenied, says: "not for the gateway east/gw"},
		"a cluster that is not there":  {cluster: "west", name: "gw", token: "gateway:west/gw", code: codes.FailedPrecondition, says: "cluster west is not known"},
		"no cluster":                   {name: "gw", token: "gateway:/gw", code: codes.InvalidArgument, says: "cluster name"},
		"no name":                      {cluster: "east", token: "gateway:east/", code: codes.InvalidArgument, says: "gateway name"},
		"a name with a slash":          {cluster: "east", name: "gw/x", token: "gateway:east/gw/x", code: codes.InvalidArgument, says: "gateway name"},
		"a name without end":           {cluster: "east", name: strings.Repeat("a", 254), code: codes.InvalidArgument, says: "at most 253"},
		"no certificate can be issued": {cluster: "east", name: "gw", token: "gateway:east/gw", issueErr: errors.New("not a CSR"), code: codes.InvalidArgument, says: "issue a certificate for gateway east/gw: not a CSR"},
		"the control plane's fault":    {cluster: "east", name: "gw", token: "gateway:east/gw", issueErr: status.Error(codes.Unavailable, "disk full"), code: codes.Unavailable, says: "disk full"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := serve(t, authority{c.issueErr}, &backend{})
			chain, roots, err := NewGateway(conn, c.cluster, c.name).Join(t.Context(), c.token, []byte("csr"))
			if c.code != codes.OK {
				if status.Code(errors.Unwrap(err)) != c.code || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want %v: %s", err, c.code, c.says)
				}
				return
			}
			if want := fmt.Sprintf("[gateway %s/%s csr] [root]", c.cluster, c.name); err != nil || fmt.Sprintf("%s %s", chain, roots) != want {
				t.Errorf("got %s %s %v, want %s", chain, roots, err, want)
			}
		})
	}
}

// No gateway's token makes an agent.
func TestJoinWithAGatewaysToken(t *testing.T) {
	conn, _ := serve(t, authority{}, &backend{})
	_, _, err := NewAgent(conn, n1, prover{}).Join(t.Context(), "gateway:east/n1", []byte("csr"))
	if code := status.Code(errors.Unwrap(err)); code != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
}

func TestRenewGateway(t *testing.T) {
	conn, _ := serve(t, authority{}, &backend{})
	g := NewGateway(conn, "east", "gw")
	chain, roots, err := g.Renew(asGateway(t.Context(), "east/gw"), []byte("csr2"))
	if err != nil || fmt.Sprintf("%s %s", chain, roots) != "[gateway east/gw csr2] [root]" {
		t.Errorf("got %s %s %v", chain, roots, err)
	}
	// Whose it is the caller's certificate says, not the client.
	if chain, _, err = g.Renew(asGateway(t.Context(), "east/other"), nil); err != nil || string(chain[0]) != "gateway east/other" {
		t.Errorf("got %s %v", chain, err)
	}
	if _, _, err := g.Renew(t.Context(), nil); status.Code(errors.Unwrap(err)) != codes.Unauthenticated || !strings.Contains(err.Error(), "renew the certificate of gateway east/gw") {
		t.Errorf("nobody: %v", err)
	}
	if _, _, err := g.Renew(asGateway(t.Context(), "west/gw"), nil); status.Code(errors.Unwrap(err)) != codes.FailedPrecondition {
		t.Errorf("of a cluster that has gone: %v", err)
	}
	bad, _ := serve(t, authority{errors.New("not a CSR")}, &backend{})
	if _, _, err := NewGateway(bad, "east", "gw").Renew(asGateway(t.Context(), "east/gw"), nil); status.Code(errors.Unwrap(err)) != codes.InvalidArgument {
		t.Errorf("a bad CSR: %v", err)
	}
}

// What is an agent's to do no gateway does.
func TestGatewayIsNoAgent(t *testing.T) {
	conn, _ := serve(t, authority{}, &backend{})
	ctx := asGateway(t.Context(), "east/n1")
	rpc := peeringv1.NewPeeringClient(conn)
	for name, try := range map[string]func(context.Context) error{
		"register": func(ctx context.Context) error {
			_, err := rpc.Register(ctx, &peeringv1.RegisterRequest{ListenPort: 1})
			return err
		},
		"report": func(ctx context.Context) error {
			str, err := rpc.Report(ctx)
			if err == nil {
				_, err = str.Recv()
			}
			return err
		},
		"a workload": func(ctx context.Context) error {
			_, err := rpc.IssueWorkload(ctx, &peeringv1.IssueWorkloadRequest{})
			return err
		},
		"paths": func(ctx context.Context) error { _, err := rpc.Paths(ctx, &peeringv1.PathsRequest{}); return err },
	} {
		if err := try(ctx); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
}
