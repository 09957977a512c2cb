package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
	pb "github.com/flatmesh/flatmesh/hack/meshecho/v1"
	"github.com/flatmesh/flatmesh/internal/testcert"
)

// asProgram has the test binary be meshecho: gRPC reads its environment when the
// process starts.
const asProgram = "MESHECHO_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Unsetenv(asProgram)
		main()
	}
	os.Exit(m.Run())
}

// echo is a server that runs as a process of its own.
type echo struct {
	t          *testing.T
	http, grpc string
	cmd        *exec.Cmd
	ended      chan error
}

// serve starts one and returns when it listens.
func serve(t *testing.T, args ...string) *echo {
	t.Helper()
	e := &echo{t: t, http: freeAddress(t), grpc: freeAddress(t), ended: make(chan error, 1)}
	e.start(args...)
	return e
}

func (e *echo) start(args ...string) {
	e.t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		e.t.Fatal(err)
	}
	defer read.Close()
	e.cmd = program(e.t, append([]string{"serve", "--pod", "c/n/p", "--node", "c/n", "--cluster", "c", "--ready-fd", "3",
		"--http", e.http, "--grpc", e.grpc}, args...)...)
	e.cmd.ExtraFiles = []*os.File{write}
	err = e.cmd.Start()
	write.Close()
	if err != nil {
		e.t.Fatal(err)
	}
	go func() { e.ended <- e.cmd.Wait() }()
	said, err := bufio.NewReader(read).ReadString(0)
	if said != "listening" {
		e.t.Fatalf("it said %q, %v", said, err)
	}
}

// end asks it to end and returns how it did.
func (e *echo) end() error {
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return <-e.ended
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = os.Stderr
	t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	return cmd
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// call runs "meshecho call" in this process and returns what it printed.
func call(t *testing.T, args ...string) ([]report.Call, report.Summary, int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), append([]string{"call", "-o", "json"}, args...), &stdout, &stderr)
	if stderr.Len() > 0 {
		t.Fatalf("%v: %s", args, &stderr)
	}
	calls, summary := parse(t, stdout.Bytes())
	return calls, summary, code
}

func parse(t *testing.T, out []byte) ([]report.Call, report.Summary) {
	t.Helper()
	var calls []report.Call
	for line := range bytes.Lines(out) {
		var l report.Line
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if l.Summary != nil {
			return calls, *l.Summary
		}
		calls = append(calls, *l.Call)
	}
	t.Fatalf("no summary in %s", out)
	return nil, report.Summary{}
}

// one makes one call that must be answered.
func one(t *testing.T, args ...string) report.Call {
	t.Helper()
	calls, _, code := call(t, args...)
	if code != 0 || len(calls) != 1 || !calls[0].OK {
		t.Fatalf("%v: exit code %d, %+v", args, code, calls)
	}
	return calls[0]
}

// failed makes one call that must not be.
func failed(t *testing.T, args ...string) report.Call {
	t.Helper()
	calls, s, code := call(t, args...)
	if code != exitWrong || len(calls) != 1 || calls[0].OK || s.Failed != 1 || s.Codes[calls[0].Code] != 1 {
		t.Fatalf("%v: exit code %d, %+v, %+v", args, code, calls, s)
	}
	return calls[0]
}

// await waits until check holds.
func await(t *testing.T, check func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); !check(); {
		select {
		case <-ctx.Done():
			t.Fatal("it never came about")
		case <-tick.C:
		}
	}
}

// shakeHands connects to a server with the certificate of a folder, or with none,
// and returns what the server makes of it.
func shakeHands(t *testing.T, id *identity, secrets string) error {
	t.Helper()
	conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if secrets != "" {
		cert, err := tls.LoadX509KeyPair(filepath.Join(secrets, "tls.crt"), filepath.Join(secrets, "tls.key"))
		if err != nil {
			t.Fatal(err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := tls.Dial("tcp", ln.Addr().String(), conf)
		if err == nil {
			_, _ = c.Read(make([]byte, 1))
			c.Close()
		}
	}()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _, err = id.server().ServerHandshake(conn)
	return err
}

func TestPlaintext(t *testing.T) {
	e := serve(t)
	for _, c := range []struct {
		args []string
		at   string
	}{{[]string{e.grpc, "--plaintext"}, e.grpc}, {[]string{e.http, "--http"}, e.http}} {
		got := one(t, c.args...)
		if got.Pod != "c/n/p" || got.Node != "c/n" || got.Cluster != "c" || got.Via != report.Direct || got.Peer != c.at ||
			!strings.HasPrefix(got.Caller, "127.0.0.1") || got.ClientID != "" || got.ServerID != "" || got.LatencySeconds <= 0 {
			t.Errorf("%v: %+v", c.args, got)
		}
	}
	if got := failed(t, freeAddress(t), "--plaintext"); got.Code != "Unavailable" || got.Error == "" {
		t.Errorf("nobody there: %+v", got)
	}
	if got := failed(t, freeAddress(t), "--http"); got.Code != "HTTP" {
		t.Errorf("nobody there: %+v", got)
	}
	if got := failed(t, e.grpc, "--plaintext", "--delay", "1h", "--timeout", "50ms"); got.Code != "DeadlineExceeded" || got.Peer != e.grpc {
		t.Errorf("too slow: %+v", got)
	}
}

// Somebody in between who passes the connection on is a gateway.
func TestViaGateway(t *testing.T) {
	e := serve(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", e.grpc)
			if err != nil {
				in.Close()
				continue
			}
			go func() { _, _ = out.(*net.TCPConn).ReadFrom(in); out.Close() }()
			go func() { _, _ = in.(*net.TCPConn).ReadFrom(out); in.Close() }()
		}
	}()
	if got := one(t, ln.Addr().String(), "--plaintext"); got.Via != report.Gateway || got.Peer != ln.Addr().String() {
		t.Errorf("%+v", got)
	}
}

func TestMTLS(t *testing.T) {
	ca, pod, client := testcert.New(t), t.TempDir(), t.TempDir()
	e := serve(t, "--mtls", "--secrets", pod)
	// It waits for its certificate, and HTTP does not.
	one(t, e.http, "--http")
	failed(t, e.grpc, "--plaintext")
	ca.Write(pod, "spiffe://fm.local/ns/demo/sa/echo")
	ca.Write(client, "spiffe://fm.local/ns/demo/sa/client")
	await(t, func() bool {
		calls, _, _ := call(t, e.grpc, "--secrets", client)
		return calls[0].OK
	})
	got := one(t, e.grpc, "--secrets", client, "--server-name", "outbound_.80_._.echo.demo.svc.cluster.local")
	if got.ServerID != "spiffe://fm.local/ns/demo/sa/echo" || got.ClientID != "spiffe://fm.local/ns/demo/sa/client" ||
		got.ServerName != "outbound_.80_._.echo.demo.svc.cluster.local" || got.Via != report.Direct {
		t.Errorf("%+v", got)
	}
	failed(t, e.grpc, "--plaintext")

	ca.Write(client, "spiffe://other.local/ns/demo/sa/client")
	if got := failed(t, e.grpc, "--secrets", client); !strings.Contains(got.Error, "trust domain") {
		t.Errorf("a server of another trust domain: %+v", got)
	}
	testcert.New(t).Write(client, "spiffe://fm.local/ns/demo/sa/client")
	if got := failed(t, e.grpc, "--secrets", client); !strings.Contains(got.Error, "unknown authority") {
		t.Errorf("a server of another authority: %+v", got)
	}

	ca.Write(client, "spiffe://fm.local/ns/demo/sa/client")
	ca.Write(pod, "spiffe://fm.local/ns/demo/sa/rotated")
	await(t, func() bool {
		calls, _, _ := call(t, e.grpc, "--secrets", client)
		return calls[0].OK && calls[0].ServerID == "spiffe://fm.local/ns/demo/sa/rotated"
	})
}

// The server refuses what a client that does not check would let pass.
func TestServerRefuses(t *testing.T) {
	ca, pod := testcert.New(t), t.TempDir()
	ca.Write(pod, "spiffe://fm.local/ns/demo/sa/echo")
	id, err := openIdentity(pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(id.close)
	stranger, foreign := t.TempDir(), t.TempDir()
	testcert.New(t).Write(stranger, "spiffe://fm.local/ns/demo/sa/client")
	ca.Write(foreign, "spiffe://other.local/ns/demo/sa/client")
	for name, c := range map[string]struct {
		secrets string
		good    bool
	}{"nobody": {"", false}, "of another authority": {stranger, false}, "of another trust domain": {foreign, false}, "the pod itself": {pod, true}} {
		t.Run(name, func(t *testing.T) {
			err := shakeHands(t, id, c.secrets)
			if (err == nil) != c.good {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	e := serve(t)
	calls, s, code := call(t, e.grpc, "--plaintext", "--count", "50", "--concurrency", "8", "--interval", "1ms")
	if code != 0 || len(calls) != 50 || s.Calls != 50 || s.OK != 50 || s.Pods["c/n/p"] != 50 || s.Clusters["c"] != 50 || s.Via[report.Direct] != 50 {
		t.Errorf("exit code %d, %+v", code, s)
	}
	slices.SortFunc(calls, func(a, b report.Call) int { return a.N - b.N })
	for i, c := range calls {
		if c.N != i+1 || i > 0 && c.Start.Before(calls[i-1].Start.Add(-time.Second)) {
			t.Errorf("call %d is number %d, begun %v", i+1, c.N, c.Start)
		}
	}
}

// Lines come as calls end, and a signal ends it without a failure.
func TestStream(t *testing.T) {
	e := serve(t)
	cmd := program(t, "call", "-o", "json", "--count", "0", "--interval", "5ms", "--concurrency", "4", "--delay", "20ms", "--plaintext", e.grpc)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var out bytes.Buffer
	for n := 0; lines.Scan(); n++ {
		fmt.Fprintln(&out, lines.Text())
		if n == 10 {
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	calls, s := parse(t, out.Bytes())
	if err := cmd.Wait(); err != nil || s.Failed != 0 || s.OK != len(calls) || s.OK < 10 {
		t.Errorf("%v, %d lines, %+v", err, len(calls), s)
	}
}

// noticing says when a call has arrived.
type noticing struct {
	pb.EchoServer
	arrived chan struct{}
}

func (n noticing) Call(ctx context.Context, r *pb.CallRequest) (*pb.CallReply, error) {
	close(n.arrived)
	return n.EchoServer.Call(ctx, r)
}

// Calls under way are answered by a server that was told to end.
func TestGracefulStop(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	arrived, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- serveGRPC(ctx, ln, insecure.NewCredentials(), noticing{&server{}, arrived}) }()
	go func() { <-arrived; stop() }()
	one(t, ln.Addr().String(), "--plaintext", "--delay", "100ms")
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestRestart(t *testing.T) {
	e := serve(t)
	one(t, e.grpc, "--plaintext")
	if err := e.end(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	failed(t, e.grpc, "--plaintext")
	e.start()
	one(t, e.grpc, "--plaintext")
	one(t, e.http, "--http")
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"call":                                         "1 arg",
		"call 192.0.2.1:1 --concurrency 0":             "a concurrency of at least 1",
		"call 192.0.2.1:1 -o yaml":                     "want json",
		"call xds:///a:80 --http":                      "IP:PORT",
		"call xds:///a:80":                             "GRPC_XDS_BOOTSTRAP",
		"serve --http 127.0.0.1:-1":                    "invalid port",
		"call 192.0.2.1:1 --timeout 0":                 "a timeout above 0",
		"serve --grpc 127.0.0.1:-1 --http 127.0.0.1:0": "invalid port",
	} {
		var stdout, stderr bytes.Buffer
		code := run(context.Background(), strings.Fields(args), &stdout, &stderr)
		if code != exitFailed || !strings.Contains(stderr.String(), want) || strings.Count(stderr.String(), "\n") != 1 || stdout.Len() > 0 {
			t.Errorf("%s: exit code %d, %q, %q", args, code, &stdout, &stderr)
		}
	}
}

// It stands for a user's own program: nothing of flatmesh is linked into it.
func TestNothingOfFlatmesh(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module, own = "github.com/flatmesh/flatmesh", "github.com/flatmesh/flatmesh/hack/meshecho"
	deps := strings.Fields(string(out))
	for _, d := range deps {
		if strings.HasPrefix(d, module) && d != own && !strings.HasPrefix(d, own+"/") {
			t.Errorf("it imports %s", d)
		}
	}
	if !slices.Contains(deps, own) {
		t.Errorf("the list is wrong: %v", deps)
	}
}
