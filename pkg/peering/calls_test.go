package peering

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	peeringv1 "github.com/flatmesh/flatmesh/api/peering/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

func TestJoin(t *testing.T) {
	csr := []byte("csr")
	proof := func(node mesh.NodeID) *peeringv1.KeyProof {
		return &peeringv1.KeyProof{PublicKey: key[:], Cookie: []byte("cookie"), Mac: proofOf(key, []byte("cookie"), node, csr)}
	}
	held := status.Error(codes.PermissionDenied, "held by a live key")
	for name, c := range map[string]struct {
		node, token string
		proof       *peeringv1.KeyProof
		mayJoin     error
		issueErr    error
		code        codes.Code
		says        string
	}{
		"a token for the cluster":        {node: "east/n1", token: "east", proof: proof(n1)},
		"a token for the node":           {node: "east/n1", token: "east/n1", proof: proof(n1)},
		"also where the name is held":    {node: "east/n1", token: "east/n1", proof: proof(n1), mayJoin: held},
		"but not with a cluster's":       {node: "east/n1", token: "east", proof: proof(n1), mayJoin: held, code: codes.PermissionDenied, says: "held by a live key"},
		"no node":                        {node: "east", token: "east", proof: proof(n1), code: codes.InvalidArgument, says: "CLUSTER/NODE"},
		"a bad node":                     {node: "east/N1", token: "east", proof: proof(n1), code: codes.InvalidArgument, says: "node name"},
		"a node that is not there":       {node: "east/n9", token: "east", proof: proof(mesh.NodeID{Cluster: "east", Name: "n9"}), code: codes.FailedPrecondition, says: "not known"},
		"no token":                       {node: "east/n1", proof: proof(n1), code: codes.Unauthenticated, says: "token is bad"},
		"a bad token":                    {node: "east/n1", token: "bad", proof: proof(n1), code: codes.Unauthenticated, says: "token is bad"},
		"another node's token":           {node: "east/n1", token: "east/n2", proof: proof(n1), code: codes.PermissionDenied, says: "the token is for east/n2, not for east/n1: make one with: controlplane token create --cluster east --node n1"},
		"another cluster's token":        {node: "east/n1", token: "west", proof: proof(n1), code: codes.PermissionDenied, says: "the token is for west"},
		"another cluster, the same name": {node: "east/n1", token: "west/n1", proof: proof(n1), code: codes.PermissionDenied, says: "the token is for west/n1"},
		"no proof":                       {node: "east/n1", token: "east", code: codes.InvalidArgument, says: "public key has 0 bytes"},
		"another node's proof":           {node: "east/n1", token: "east", proof: proof(n2), code: codes.Unauthenticated, says: "the proof is wrong"},
		"no certificate can be issued":   {node: "east/n1", token: "east", proof: proof(n1), issueErr: errors.New("not a CSR"), code: codes.InvalidArgument, says: "not a CSR"},
		"it cannot be written down":      {node: "east/n1", token: "east", proof: proof(n1), issueErr: status.Error(codes.Unavailable, "disk full"), code: codes.Unavailable, says: "disk full"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _ := serve(t, authority{c.issueErr}, &backend{mayJoin: c.mayJoin})
			resp, err := peeringv1.NewPeeringClient(conn).Join(t.Context(), &peeringv1.JoinRequest{Token: c.token, Node: c.node, Csr: csr, Proof: c.proof})
			if status.Code(err) != c.code || c.says != "" && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %v: %s", err, c.code, c.says)
			}
			if err == nil && (len(resp.GetCertificates()) != 2 || string(resp.GetCertificates()[0]) != c.node || string(resp.GetRoots()[0]) != "root") {
				t.Errorf("got %v", resp)
			}
		})
	}
}

func TestRegister(t *testing.T) {
	good := func() *peeringv1.RegisterRequest {
		return &peeringv1.RegisterRequest{
			Proof:      &peeringv1.KeyProof{PublicKey: key[:], Cookie: []byte("cookie"), Mac: proofOf(key, []byte("cookie"), n1, nil)},
			ListenPort: 51830, Device: "kernel", Version: "v1",
			Endpoints: []string{"192.168.1.1:51830", "[::ffff:192.168.1.2]:51830", "[2001:db8::1]:1"}, TunnelAddresses: []string{"198.19.0.9", "fd19::9"},
		}
	}
	many := func(n int) []string { return slices.Repeat([]string{"192.168.1.1:1"}, n) }
	for name, c := range map[string]struct {
		node   mesh.NodeID
		change func(*peeringv1.RegisterRequest)
		code   codes.Code
		says   string
	}{
		"good":                       {node: n1, change: func(*peeringv1.RegisterRequest) {}},
		"as many as are taken":       {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Endpoints = many(32) }},
		"nobody":                     {change: func(*peeringv1.RegisterRequest) {}, code: codes.Unauthenticated, says: "no certificate"},
		"a node that has gone":       {node: w1, change: func(*peeringv1.RegisterRequest) {}, code: codes.FailedPrecondition, says: "not known"},
		"with another node's proof":  {node: n2, change: func(*peeringv1.RegisterRequest) {}, code: codes.Unauthenticated, says: "does not prove that it holds the key"},
		"no proof":                   {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Proof = nil }, code: codes.InvalidArgument, says: "0 bytes"},
		"the zero key":               {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Proof.PublicKey = make([]byte, 32) }, code: codes.InvalidArgument, says: "zeros"},
		"a bad proof":                {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Proof.Mac[0]++ }, code: codes.Unauthenticated, says: "the proof is wrong"},
		"port 0":                     {node: n1, change: func(r *peeringv1.RegisterRequest) { r.ListenPort = 0 }, code: codes.InvalidArgument, says: "listen port 0"},
		"a port that wraps":          {node: n1, change: func(r *peeringv1.RegisterRequest) { r.ListenPort = 1<<16 + 51830 }, code: codes.InvalidArgument, says: "listen port"},
		"too many endpoints":         {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Endpoints = many(33) }, code: codes.InvalidArgument, says: "at most 32"},
		"too many tunnel addresses":  {node: n1, change: func(r *peeringv1.RegisterRequest) { r.TunnelAddresses = append(r.TunnelAddresses, "198.19.0.1") }, code: codes.InvalidArgument, says: "2 tunnel addresses"},
		"a name as endpoint":         {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Endpoints[0] = "n1:51830" }, code: codes.InvalidArgument, says: `endpoint "n1:51830"`},
		"a range as tunnel address":  {node: n1, change: func(r *peeringv1.RegisterRequest) { r.TunnelAddresses[0] = "198.19.0.0/24" }, code: codes.InvalidArgument, says: "tunnel address"},
		"a version without end":      {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Version = strings.Repeat("v", maxWord+1) }, code: codes.InvalidArgument, says: "bytes"},
		"a device without end":       {node: n1, change: func(r *peeringv1.RegisterRequest) { r.Device = strings.Repeat("v", maxWord+1) }, code: codes.InvalidArgument, says: "bytes"},
		"something newer than today": {node: n1, change: func(r *peeringv1.RegisterRequest) { r.ProtoReflect().SetUnknown([]byte{0x98, 0x06, 1}) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := &backend{refused: []string{"one of them"}}
			conn, _ := serve(t, authority{}, b)
			req := good()
			c.change(req)
			ctx := t.Context()
			if c.node != (mesh.NodeID{}) {
				ctx = as(ctx, c.node)
			}
			resp, err := peeringv1.NewPeeringClient(conn).Register(ctx, req)
			if status.Code(err) != c.code || c.says != "" && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %v: %s", err, c.code, c.says)
			}
			if (len(b.registered) == 1) != (err == nil) {
				t.Errorf("the backend was told %v", b.registered)
			}
			if err == nil && fmt.Sprintf("%v %v %v", resp.GetTunnelAddresses(), resp.GetVersion(), resp.GetRefusedEndpoints()) != "[198.19.0.2 fd19::2] v9 [one of them]" {
				t.Errorf("got %v", resp)
			}
		})
	}
}

func TestRenew(t *testing.T) {
	conn, _ := serve(t, authority{}, &backend{})
	rpc := peeringv1.NewPeeringClient(conn)
	resp, err := rpc.Renew(as(t.Context(), n1), &peeringv1.RenewRequest{Csr: []byte("csr")})
	if err != nil || string(resp.GetCertificates()[0]) != "east/n1" {
		t.Errorf("got %v, %v", resp, err)
	}
	if _, err := rpc.Renew(t.Context(), &peeringv1.RenewRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
	if _, err := rpc.Renew(as(t.Context(), w1), &peeringv1.RenewRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a node that has gone: %v", err)
	}
	bad, _ := serve(t, authority{errors.New("not a CSR")}, &backend{})
	if _, err := peeringv1.NewPeeringClient(bad).Renew(as(t.Context(), n1), &peeringv1.RenewRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad CSR: %v", err)
	}
}

// The client's side of the same calls.
func TestAgentCalls(t *testing.T) {
	b := &backend{refused: []string{"one of them"}}
	conn, _ := serve(t, authority{}, b)
	a := NewAgent(conn, n1, prover{})

	chain, roots, err := a.Join(t.Context(), "east", []byte("csr"))
	if err != nil || fmt.Sprintf("%s %s", chain, roots) != "[east/n1 csr] [root]" {
		t.Errorf("join: %s %s %v", chain, roots, err)
	}
	ctx := as(t.Context(), n1)
	if chain, _, err = a.Renew(ctx, []byte("csr2")); err != nil || string(chain[1]) != "csr2" {
		t.Errorf("renew: %s %v", chain, err)
	}
	want := Registration{
		Node: n1, Key: key, ListenPort: 51830, Device: "kernel", Version: "v1",
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.168.1.1:51830")}, TunnelAddrs: []netip.Addr{netip.MustParseAddr("198.19.0.9")},
	}
	addrs, version, refused, err := a.Register(ctx, want)
	if err != nil || fmt.Sprintf("%v %v %v", addrs, version, refused) != "[198.19.0.2 fd19::2] v9 [one of them]" {
		t.Errorf("register: %v %v %v %v", addrs, version, refused, err)
	}
	if fmt.Sprint(b.registered) != fmt.Sprint([]Registration{want}) {
		t.Errorf("the backend was told %v, want %v", b.registered, want)
	}

	if _, _, err := a.Join(t.Context(), "east/n2", nil); status.Code(errors.Unwrap(err)) != codes.PermissionDenied || !strings.Contains(err.Error(), "join as east/n1") {
		t.Errorf("refused: %v", err)
	}
	if _, _, err := NewAgent(conn, n1, prover{wrong: true}).Join(t.Context(), "east", nil); status.Code(errors.Unwrap(err)) != codes.Unauthenticated {
		t.Errorf("a wrong proof: %v", err)
	}
}
