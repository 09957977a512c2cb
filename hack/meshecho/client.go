package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds" // the xds resolver and balancers
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
	pb "github.com/flatmesh/flatmesh/hack/meshecho/v1"
)

// grpcClient calls over gRPC.
type grpcClient struct {
	target                  string
	plaintext, waitForReady bool
	delay                   time.Duration
	serverName, secrets     string

	conn *grpc.ClientConn
	id   *identity
}

// dial makes the client's channel; it connects with the first call.
func (c *grpcClient) dial() (*grpcClient, error) {
	creds, err := c.credentials()
	if err != nil {
		return nil, err
	}
	if c.conn, err = grpc.NewClient(c.target, grpc.WithTransportCredentials(creds)); err != nil {
		return nil, fmt.Errorf("target %s: %w", c.target, err)
	}
	return c, nil
}

func (c *grpcClient) credentials() (credentials.TransportCredentials, error) {
	if strings.HasPrefix(c.target, "xds:") {
		if os.Getenv("GRPC_XDS_BOOTSTRAP") == "" && os.Getenv("GRPC_XDS_BOOTSTRAP_CONFIG") == "" {
			return nil, fmt.Errorf("target %s needs GRPC_XDS_BOOTSTRAP to name a bootstrap file", c.target)
		}
		return xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	}
	if c.plaintext {
		return insecure.NewCredentials(), nil
	}
	id, err := openIdentity(c.secrets)
	if err != nil {
		return nil, err
	}
	c.id = id
	return id.client(c.serverName), nil
}

func (c *grpcClient) close() {
	c.conn.Close()
	if c.id != nil {
		c.id.close()
	}
}

func (c *grpcClient) call(ctx context.Context, r *report.Call) {
	req := &pb.CallRequest{}
	if c.delay > 0 {
		req.Delay = durationpb.New(c.delay)
	}
	var p peer.Peer
	reply, err := pb.NewEchoClient(c.conn).Call(ctx, req, grpc.Peer(&p), grpc.WaitForReady(c.waitForReady))
	r.Peer = address(p.Addr)
	r.ServerID, _ = proven(&p)
	if err != nil {
		s := status.Convert(err)
		r.Code, r.Error = s.Code().String(), s.Message()
		return
	}
	r.OK = true
	r.Pod, r.Node, r.Cluster, r.Caller = reply.GetPod(), reply.GetNode(), reply.GetCluster(), reply.GetCaller()
	r.ClientID, r.ServerName = reply.GetClientId(), reply.GetServerName()
	r.Via = via(r.Peer, reply.GetAddress())
}

// via tells the two ways apart: on the direct one both sides see the pod at the
// same address.
func via(peer, pod string) report.Via {
	if peer == pod {
		return report.Direct
	}
	return report.Gateway
}

func httpCaller(target string) caller {
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context, r *report.Call) {
		a, err := get(ctx, client, target, r)
		if err != nil {
			r.Code, r.Error = "HTTP", err.Error()
			return
		}
		r.OK = true
		r.Pod, r.Node, r.Cluster, r.Caller = a.Pod, a.Node, a.Cluster, a.Caller
		r.Via = via(r.Peer, a.Address)
	}
}

func get(ctx context.Context, client *http.Client, url string, r *report.Call) (answer, error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { r.Peer = address(i.Conn.RemoteAddr()) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var a answer
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&a); err != nil || resp.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("%s answered %s, which is not what an echo says", url, resp.Status)
	}
	return a, nil
}
