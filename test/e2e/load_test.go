package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
	"github.com/flatmesh/flatmesh/internal/lab"
)

// load is a gRPC client in a pod that calls a service at a steady rate. It is
// plain grpc-go: what it knows of the mesh it is told over xDS.
type load struct {
	f    *fixture
	host string
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	calls []report.Call
}

// echoService is the target of all clients.
const echoService = "xds:///echo.demo:80"

// load starts a client in a pod; it is ended with the test.
func (f *fixture) load(host string, args ...string) *load {
	f.t.Helper()
	argv := append([]string{"meshecho", "call", echoService, "--count", "0", "--interval", "10ms", "--timeout", "3s", "--concurrency", "512", "-o", "json"}, args...)
	// It outlives the test's context by a moment, so that it is ended in order.
	cmd, err := f.Command(context.WithoutCancel(f.t.Context()), host, argv...)
	if err != nil {
		f.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	l := &load{f: f, host: host, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			var line report.Line
			if json.Unmarshal(scanner.Bytes(), &line) != nil || line.Call == nil {
				continue
			}
			l.mu.Lock()
			l.calls = append(l.calls, *line.Call)
			l.mu.Unlock()
		}
	}()
	f.t.Cleanup(func() { l.stop() })
	return l
}

// served waits until clients in the hosts are served by all pods, and all pods by
// their gateways: they listen once they have their certificates, and what fails
// before that is no loss.
func (f *fixture) served(hosts ...string) {
	f.t.Helper()
	for _, h := range hosts {
		f.answers(h, echoService, "--count", "60")
	}
	all, err := f.Hosts()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, g := range all {
		if g.Kind != lab.KindGateway {
			continue
		}
		f.await("all pods answer through "+g.Name, func() error {
			pods := map[string]bool{}
			for range 8 {
				out, code := f.try(hosts[0], "meshecho", "call", g.Addresses[0].String()+":15443", "--server-name", "outbound_.80_._.echo.demo.svc.cluster.local", "-o", "json")
				if code != 0 {
					return fmt.Errorf("exit code %d: %s", code, out)
				}
				var line report.Line
				if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &line); err != nil || line.Call == nil {
					return fmt.Errorf("%s: %w", out, err)
				}
				pods[line.Call.Pod] = true
			}
			for _, p := range f.pods() {
				if strings.HasPrefix(p, g.Cluster+"/") && !pods[p] {
					return fmt.Errorf("%s does not: %v", p, pods)
				}
			}
			return nil
		})
	}
}

// answers waits until all of a client's calls are answered.
func (f *fixture) answers(host string, args ...string) {
	f.t.Helper()
	f.await(host+" is served", func() error {
		out, code := f.try(host, append([]string{"meshecho", "call"}, args...)...)
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, out[max(0, len(out)-300):])
		}
		return nil
	})
}

// stop ends the client, which first waits for what is under way, and returns all
// of its calls.
func (l *load) stop() []report.Call {
	if l.cmd != nil {
		_ = l.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-l.done
		_ = l.cmd.Wait() // exit code 1 says that a call failed, which the calls do too
		l.cmd = nil
	}
	return l.seen()
}

// seen returns the calls that have ended.
func (l *load) seen() []report.Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]report.Call(nil), l.calls...)
}

// awaitWays waits until calls that begin from now on have reached each of the
// pods on its way, "west/n1/p1 direct", and none has reached a pod on another.
func (l *load) awaitWays(ways ...string) {
	l.f.t.Helper()
	from := time.Now()
	l.f.await(fmt.Sprintf("%s calls %s", l.host, strings.Join(ways, ", ")), func() error {
		got := map[string]bool{}
		for _, c := range l.seen() {
			if c.OK && c.Start.After(from) {
				got[c.Pod+" "+string(c.Via)] = true
			}
		}
		for _, w := range ways {
			if !got[w] {
				return fmt.Errorf("no call has reached %s: %v", w, got)
			}
		}
		for g := range got {
			pod, _, _ := strings.Cut(g, " ")
			for _, w := range ways {
				if strings.HasPrefix(w, pod+" ") && w != g {
					from = time.Now() // on the old way still: count anew
					return fmt.Errorf("a call has reached %s", g)
				}
			}
		}
		return nil
	})
}

// failures returns the calls that failed, a line each.
func failures(calls []report.Call) []string {
	var out []string
	for _, c := range calls {
		if !c.OK {
			out = append(out, fmt.Sprintf("%d at %s to %s after %.3f s: %s: %s", c.N, c.Start.Format("05.000"), c.Peer, c.LatencySeconds, c.Code, c.Error))
		}
	}
	return out
}
