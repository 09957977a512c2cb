package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/flatmesh/flatmesh/hack/meshecho/report"
)

func callCommand() *cobra.Command {
	var l load
	var c grpcClient
	var web bool
	var output string
	cmd := &cobra.Command{
		Use:   "call TARGET",
		Short: "Call an echo, once or again and again",
		Long: `call calls an echo and prints a line for each call, as it ends, and at the end a
summary. It stops beginning calls at SIGINT or SIGTERM, and ends when those under
way have.

TARGET is xds:///SERVICE.NAMESPACE:PORT, for which GRPC_XDS_BOOTSTRAP must name a
bootstrap file, or the IP:PORT of a pod or of a gateway. With xds the security is
what the control plane says. At an address it is mTLS with the certificate in
--secrets, or --plaintext; with --http it is HTTP, on a connection of its own each
time.

With -o json each line is an object, the last one {"summary": …}. The exit code is
1 when a call failed.`,
		Example: `  meshecho call xds:///echo.demo:80
  meshecho call xds:///echo.demo:80 --count 0 --interval 10ms --concurrency 16 -o json
  meshecho call 10.2.0.2:50051 --plaintext
  meshecho call 100.66.240.1:15443 --server-name outbound_.80_._.echo.demo.svc.cluster.local
  meshecho call 10.2.0.2:8080 --http`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := l.validate(); err != nil {
				return err
			}
			if output != "" && output != "json" {
				return fmt.Errorf("output %q: want json, or nothing for people", output)
			}
			c.target = args[0]
			var call caller
			if web {
				if strings.HasPrefix(c.target, "xds:") {
					return errors.New("--http calls an address, IP:PORT")
				}
				call = httpCaller(c.target)
			} else {
				cc, err := c.dial()
				if err != nil {
					return err
				}
				defer cc.close()
				call = cc.call
			}
			out := &printer{w: cmd.OutOrStdout(), json: output == "json", summary: report.NewSummary()}
			l.run(cmd.Context(), call, out.call)
			return out.end()
		},
	}
	f := cmd.Flags()
	f.IntVar(&l.count, "count", 1, "how many calls to make; 0 goes on until it is stopped")
	f.DurationVar(&l.interval, "interval", 0, "time between the beginnings of two calls; 0 begins one as soon as another has ended")
	f.DurationVar(&l.timeout, "timeout", 2*time.Second, "how long to wait for each answer")
	f.IntVar(&l.concurrency, "concurrency", 1, "how many calls may be under way; the next then waits")
	f.BoolVar(&web, "http", false, "call over HTTP")
	f.BoolVar(&c.plaintext, "plaintext", false, "no TLS, for calls at an address")
	f.BoolVar(&c.waitForReady, "wait-for-ready", false, "wait for a connection rather than fail at once when there is none")
	f.DurationVar(&c.delay, "delay", 0, "how long the echo is to wait before it answers")
	f.StringVar(&c.serverName, "server-name", "", "server name (SNI) to send, for calls at an address")
	f.StringVar(&c.secrets, "secrets", secrets, "folder of tls.crt, tls.key and ca.crt, for calls at an address")
	f.StringVarP(&output, "output", "o", "", "output format: json (default: for people)")
	return cmd
}

// printer writes a line for each call as it ends. It is safe for concurrent use.
type printer struct {
	w       io.Writer
	json    bool
	mu      sync.Mutex
	summary report.Summary
	err     error
}

func (p *printer) call(c report.Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.summary.Add(c)
	if p.json {
		p.line(report.Line{Call: &c})
		return
	}
	took := time.Duration(c.LatencySeconds * float64(time.Second)).Round(100 * time.Microsecond)
	if !c.OK {
		p.printf("%d failed after %v: %s: %s\n", c.N, took, c.Code, c.Error)
		return
	}
	security := "in plaintext"
	if c.ClientID != "" {
		security = "to " + c.ClientID
	}
	p.printf("%d %s answered, %s at %s, %s, in %v\n", c.N, c.Pod, c.Via, c.Peer, security, took)
}

func (p *printer) end() error {
	s := p.summary
	if p.json {
		p.line(report.Line{Summary: &s})
	} else if s.Calls != 1 {
		p.printf("%d of %d calls answered; by pods %v; on the way %v; failures %v\n", s.OK, s.Calls, s.Pods, s.Via, s.Codes)
	}
	switch {
	case p.err != nil:
		return p.err
	case s.Failed > 0:
		return errCalls
	}
	return nil
}

func (p *printer) line(v any) {
	if err := json.NewEncoder(p.w).Encode(v); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *printer) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); err != nil && p.err == nil {
		p.err = err
	}
}
