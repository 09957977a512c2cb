package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
	"github.com/flatmesh/flatmesh/internal/testcert"
)

const withServices = `
clusters:
  - {name: east, podCIDRs: [10.1.0.0/16, "fd00:1::/48"], serviceCIDRs: [10.101.0.0/16], nodes: 2, podsPerNode: 2, gateways: 2}
  - {name: west, podCIDRs: [10.2.0.0/16, "fd00:2::/48"], serviceCIDRs: [10.102.0.0/16], gateways: 1}
services:
  - {name: echo, pods: [p1]}
  - {name: plain, pods: [p2], annotations: {flatmesh.io/tls: "false"}}
`

// call runs meshecho in a host for one call, and returns what came of it.
func call(ctx context.Context, l *Lab, host string, args ...string) (report.Call, error) {
	out, err := l.Exec(ctx, host, append([]string{"meshecho", "call", "-o", "json"}, args...)...)
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return report.Call{}, err
	}
	line, _, _ := strings.Cut(string(out), "\n")
	var c report.Line
	if err := json.Unmarshal([]byte(line), &c); err != nil {
		return report.Call{}, fmt.Errorf("%w in %s", err, out)
	}
	if !c.OK {
		return *c.Call, errors.New(c.Error)
	}
	return *c.Call, nil
}

// await waits until check holds.
func awaitNil(t *testing.T, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

func TestPlaintextService(t *testing.T) {
	l := up(t, withServices, Options{NoAgents: true})
	ctx := t.Context()
	for _, c := range []struct{ from, to, pod, caller string }{
		{"east/n1/p1", "10.1.1.3:50051", "east/n2/p2", "10.1.0.2"},
		{"east/n2/p1", "[fd00:1::3]:50051", "east/n1/p2", "fd00:1:0:1::2"},
		{"gateway/east/gw1", "10.1.1.3:50051", "east/n2/p2", "100.65.240.1"},
	} {
		got, err := call(ctx, l, c.from, c.to, "--plaintext")
		must(t, err)
		at, err := netip.ParseAddrPort(got.Caller)
		must(t, err)
		if got.Pod != c.pod || got.Cluster != "east" || at.Addr().String() != c.caller || got.Via != report.Direct {
			t.Errorf("%s calls %s: %+v", c.from, c.to, got)
		}
	}
	// A pod that waits for its certificate answers HTTP alone.
	if a := answers(t, l, "east/n1/p2", "10.1.1.2"); a.Pod != "east/n2/p1" {
		t.Errorf("%+v", a)
	}
	if _, err := call(ctx, l, "east/n1/p2", "10.1.1.2:50051", "--plaintext"); err == nil {
		t.Error("plaintext was answered by a pod that speaks mTLS")
	}

	before := pids(t, l, "east/n2/p2", Pod)
	must(t, l.Kill(ctx, Pod, "east/n2/p2"))
	if _, err := call(ctx, l, "east/n1/p2", "10.1.1.3:50051", "--plaintext"); err == nil {
		t.Error("a pod without a process answered")
	}
	if st, err := l.Status(ctx); err != nil || !slices.Equal(st.Missing, []string{"east/n2/p2 pod"}) {
		t.Errorf("%+v, %v", st, err)
	}
	for range 2 {
		must(t, l.Restart(ctx, Pod, "east/n2/p2"))
		if now := pids(t, l, "east/n2/p2", Pod); len(now) != 1 || slices.Equal(now, before) {
			t.Errorf("%v after %v", now, before)
		}
		if _, err := call(ctx, l, "east/n1/p2", "10.1.1.3:50051", "--plaintext"); err != nil {
			t.Error(err)
		}
	}
}

// workload is where a node's agent puts a pod's certificate.
func workload(l *Lab, node, pod string) string {
	return filepath.Join(l.Dir(), "hosts", node, "var/lib/flatmesh/workloads", "demo_"+pod)
}

// A pod sees what its node's agent writes for it, when it writes it.
func TestPodMounts(t *testing.T) {
	l := up(t, withServices, Options{NoAgents: true})
	ctx := t.Context()
	xds := filepath.Join(l.Dir(), "hosts/east/n1/run/flatmesh/xds")
	shell := func(script string) (string, error) {
		out, err := l.Exec(ctx, "east/n1/p1", "sh", "-c", script)
		return strings.TrimSpace(string(out)), err
	}
	const variables = "echo $GRPC_XDS_BOOTSTRAP $GRPC_EXPERIMENTAL_XDS_SNI $OTHER"
	if got, err := shell(variables); err != nil || got != "/run/flatmesh/xds/bootstrap.json true" {
		t.Errorf("%q, %v", got, err)
	}
	must(t, os.WriteFile(filepath.Join(xds, "env"), []byte("# by the agent\nGRPC_XDS_BOOTSTRAP=/run/flatmesh/xds/other.json\nGRPC_EXPERIMENTAL_XDS_SNI=true\nOTHER=a=b\n"), 0o600))
	if got, err := shell(variables); err != nil || got != "/run/flatmesh/xds/other.json true a=b" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := shell("echo x > /run/flatmesh/xds/y"); err == nil {
		t.Errorf("the folder can be written: %s", got)
	}
	if got, err := shell("echo x > /run/secrets/flatmesh.io/y"); err == nil {
		t.Errorf("the secrets can be written: %s", got)
	}
	// A socket can be used all the same, also one that came later.
	ln, err := net.Listen("unix", filepath.Join(xds, "xds.sock"))
	must(t, err)
	defer ln.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	// The client asks the socket for what the bootstrap file says, which fails, but
	// not before it has connected.
	must(t, os.WriteFile(filepath.Join(xds, "other.json"),
		[]byte(`{"xds_servers": [{"server_uri": "unix:///run/flatmesh/xds/xds.sock", "channel_creds": [{"type": "insecure"}]}], "node": {"id": "n"}}`), 0o600))
	if c, err := call(ctx, l, "east/n1/p1", "xds:///echo.demo:80", "--timeout", "1s"); err == nil {
		t.Errorf("answered by nobody: %+v", c)
	}
	must(t, <-accepted)
}

func TestMTLSService(t *testing.T) {
	l := up(t, withServices, Options{NoAgents: true})
	ctx := t.Context()
	ca := testcert.New(t)
	ca.Write(workload(l, "east/n1", "n1-p1"), "spiffe://fm.local/ns/demo/sa/client")
	ca.Write(workload(l, "east/n2", "n2-p1"), "spiffe://fm.local/ns/demo/sa/echo")
	var got report.Call
	awaitNil(t, func() (err error) {
		got, err = call(ctx, l, "east/n1/p1", "10.1.1.2:50051")
		return err
	})
	if got.Pod != "east/n2/p1" || got.ClientID != "spiffe://fm.local/ns/demo/sa/client" || got.ServerID != "spiffe://fm.local/ns/demo/sa/echo" {
		t.Errorf("%+v", got)
	}
	// A pod sees its own certificate alone.
	if out, err := l.Exec(ctx, "east/n2/p2", "ls", secretsPath); err != nil || len(out) > 0 {
		t.Errorf("another pod has %q, %v", out, err)
	}
	ca.Write(workload(l, "east/n2", "n2-p1"), "spiffe://fm.local/ns/demo/sa/rotated")
	awaitNil(t, func() error {
		got, err := call(ctx, l, "east/n1/p1", "10.1.1.2:50051")
		if err == nil && got.ServerID != "spiffe://fm.local/ns/demo/sa/rotated" {
			err = fmt.Errorf("the old certificate is in use: %+v", got)
		}
		return err
	})
}

// Gateways are hosts of the underlay: pods of every cluster reach them, and they
// reach the pods of their own.
func TestGatewayHosts(t *testing.T) {
	l := up(t, withServices, Options{NoAgents: true})
	ctx := t.Context()
	serve := func(host, at string) {
		t.Helper()
		cmd, err := l.Command(ctx, host, "sh", "-c", "exec meshecho serve --pod $LAB_HOST --http "+at+" --grpc "+at[:len(at)-1]+"4 --ready-fd 1")
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		b := make([]byte, 16)
		if n, err := out.Read(b); string(b[:n]) != podReady {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	serve("gateway/west/gw1", "[::]:15443")
	for _, from := range []string{"east/n1/p1", "east/n1", "west/n1/p1", "gateway/east/gw2"} {
		for _, to := range []string{"100.66.240.1:15443", "[fd00:100:2::f001]:15443"} {
			c, err := call(ctx, l, from, to, "--http")
			if err != nil || c.Pod != "gateway/west/gw1" {
				t.Errorf("%s calls %s: %+v, %v", from, to, c, err)
			}
			// A pod is seen as its node.
			if from == "east/n1/p1" && c.Caller != "100.65.0.1" && c.Caller != "fd00:100:1::1" {
				t.Errorf("%s is seen as %s", from, c.Caller)
			}
		}
	}
	silent(t, l, "gateway/west/gw1", "10.1.0.2")
	silent(t, l, "east/n1/p1", "10.2.0.2")

	must(t, l.Cut(ctx, "east/n1", "gateway/west/gw1", false))
	if _, err := call(ctx, l, "east/n1/p1", "100.66.240.1:15443", "--http", "--timeout", "200ms"); err == nil {
		t.Error("answered across a cut")
	}
	if _, err := call(ctx, l, "east/n2/p1", "100.66.240.1:15443", "--http"); err != nil {
		t.Error(err)
	}
	if cuts, err := l.Cuts(); err != nil || len(cuts) != 2 || cuts[0] != (Direction{"east/n1", "gateway/west/gw1"}) {
		t.Errorf("%v, %v", cuts, err)
	}
	must(t, l.Heal(ctx, "gateway/west/gw1", "east/n1", false))
	if _, err := call(ctx, l, "east/n1/p1", "100.66.240.1:15443", "--http"); err != nil {
		t.Error(err)
	}
}

func TestGatewayProcesses(t *testing.T) {
	l := up(t, withServices, Options{})
	ctx := t.Context()
	before := pids(t, l, "gateway/east/gw2", Gateway)
	if len(before) != 1 {
		t.Fatal(before)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", before[0]))
	must(t, err)
	if got, want := strings.Join(strings.Split(string(cmdline), "\x00"), " "),
		"gateway run --cluster east --name gw2 --control-plane 100.127.0.1:15012 --token-file "+l.Dir()+"/token/gateway/east/gw2"+
			" --state-dir /var/lib/flatmesh/gateway --drain-time 5s --address 100.65.240.2 --address fd00:100:1::f002 "; got != want {
		t.Errorf("it runs %s\nwant %s", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(l.Dir(), "token/gateway/east/gw2")); err != nil || string(b) != "token-of-gw2\n" {
		t.Errorf("token %q, %v", b, err)
	}
	must(t, l.Kill(ctx, Gateway, "gateway/east/gw2"))
	st, err := l.Status(ctx)
	if err != nil || st.OK() || !slices.Equal(st.Missing, []string{"gateway/east/gw2 gateway"}) || st.Clusters[0].Gateways != 2 || st.Clusters[0].GatewaysAlive != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	must(t, l.Restart(ctx, Gateway, "gateway/east/gw2"))
	if now := pids(t, l, "gateway/east/gw2", Gateway); len(now) != 1 || slices.Equal(now, before) {
		t.Errorf("%v after %v", now, before)
	}
	if logs, err := l.Logs("gateway/east/gw2"); err != nil || !slices.Equal(logs, []string{Gateway}) {
		t.Errorf("%v, %v", logs, err)
	}

	ingress := func() int {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(clusterDir(l.Name(), "east"), "services.yaml"))
		must(t, err)
		return strings.Count(string(b), "ip: 100.65.240.")
	}
	host, err := l.AddGateway(ctx, "east")
	must(t, err)
	if host != "gateway/east/gw3" || ingress() != 3 || len(pids(t, l, host, Gateway)) != 1 {
		t.Errorf("%s, %d addresses", host, ingress())
	}
	if _, err := l.AddGateway(ctx, "east/gw3"); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("twice: %v", err)
	}
	for _, bad := range []string{"north", "east/n1", "east/gw17"} {
		if host, err := l.AddGateway(ctx, bad); err == nil {
			t.Errorf("added %s", host)
		}
	}
	must(t, l.RemoveGateway(ctx, host))
	must(t, l.RemoveGateway(ctx, "east/gw1"))
	if err := l.RemoveGateway(ctx, "east/gw1"); err == nil {
		t.Error("removed twice")
	}
	if ingress() != 1 {
		t.Errorf("%d addresses", ingress())
	}
	if host, err := l.AddGateway(ctx, "east"); err != nil || host != "gateway/east/gw1" {
		t.Errorf("%s, %v", host, err)
	}
	must(t, l.RemoveCluster(ctx, "east"))
	hosts, err := l.Hosts()
	must(t, err)
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	if want := "core controlplane router/west gateway/west/gw1 west/n1 west/n1/p1"; strings.Join(names, " ") != want {
		t.Errorf("hosts: %v", names)
	}
}

func TestGatewayProgramMissing(t *testing.T) {
	some := t.TempDir()
	for _, p := range []string{"lab", "meshecho", "agent", "controlplane"} {
		must(t, os.WriteFile(filepath.Join(some, p), nil, 0o700))
	}
	topology := parse(t, withServices)
	err := checkPrograms(topology, some, false)
	if err == nil || !strings.Contains(err.Error(), some+"/gateway") || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
	if err := checkPrograms(topology, some, true); err != nil {
		t.Errorf("without agents: %v", err)
	}
}

func TestServiceChanges(t *testing.T) {
	l := up(t, withServices, Options{NoAgents: true})
	ctx := t.Context()
	read := func(cluster string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(clusterDir(l.Name(), cluster), "services.yaml"))
		must(t, err)
		return string(b)
	}
	must(t, l.AddService(ctx, Service{Name: "late", Clusters: []string{"west"}, Pods: []string{"p1"}}))
	if !strings.Contains(read("west"), "name: late") || strings.Contains(read("east"), "name: late") {
		t.Errorf("west:\n%s", read("west"))
	}
	for _, bad := range []Service{{Name: "late"}, {Name: "x", Clusters: []string{"north"}}, {Name: "X"}, {Name: "x", Namespace: "other"}} {
		if err := l.AddService(ctx, bad); err == nil {
			t.Errorf("added %+v", bad)
		}
	}
	if svs, err := l.Services(); err != nil || len(svs) != 3 {
		t.Errorf("%+v, %v", svs, err)
	}
	must(t, l.RemoveService(ctx, "late"))
	must(t, l.RemoveService(ctx, "demo/plain"))
	if err := l.RemoveService(ctx, "plain"); err == nil {
		t.Error("removed twice")
	}
	if strings.Contains(read("west")+read("east"), "late") || !strings.Contains(read("west"), "name: echo") {
		t.Errorf("west:\n%s", read("west"))
	}

	unready := func() int { return strings.Count(read("east"), "ready: false") }
	must(t, l.SetReady(ctx, "east/n2/p1", false))
	if unready() != 2 { // in each family's slice
		t.Errorf("%d are not ready", unready())
	}
	must(t, l.SetReady(ctx, "east/n2/p1", true))
	if unready() != 0 {
		t.Errorf("%d are not ready", unready())
	}
	if err := l.SetReady(ctx, "east/n2", false); err == nil {
		t.Error("a node was made unready")
	}

	uid := func() string {
		s, err := loadState(l.Name())
		must(t, err)
		return s.Clusters[1].Pods["n1-p1"].UID
	}
	first := uid()
	must(t, l.RemoveNode(ctx, "west/n1"))
	if strings.Contains(read("west"), "n1-p1") || uid() != "" {
		t.Errorf("west:\n%s", read("west"))
	}
	_, err := l.AddNode(ctx, "west")
	must(t, err)
	if uid() == first || uid() == "" || !strings.Contains(read("west"), uid()) {
		t.Errorf("the new pod has UID %s, the old one had %s", uid(), first)
	}
	if _, err := l.AddClusters(ctx, parse(t, `
clusters: [{name: north, podCIDRs: [10.3.0.0/16], serviceCIDRs: [10.103.0.0/16]}]
services: [{name: new}]`)); err == nil || !strings.Contains(err.Error(), "lab add service") {
		t.Errorf("a service that comes with a cluster: %v", err)
	}
	_, err = l.AddClusters(ctx, parse(t, `
clusters: [{name: north, podCIDRs: [10.3.0.0/16], serviceCIDRs: [10.103.0.0/16], gateways: 1}]
services: [{name: echo}]`))
	must(t, err)
	if !strings.Contains(read("north"), "name: echo") || !strings.Contains(read("north"), "100.67.240.1") {
		t.Errorf("north:\n%s", read("north"))
	}
	must(t, l.RemoveCluster(ctx, "north"))
}
