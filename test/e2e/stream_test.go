package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// roleVariable makes the test binary play a part in a pod instead of testing.
const roleVariable = "FLATMESH_E2E_ROLE"

const streamPort = "9100"

// play runs one of the parts.
func play(role string, args []string) int {
	var err error
	switch role {
	case "echo":
		err = echoUDP()
	case "sniff":
		err = sniff(args)
	case "busy":
		err = holdPort()
	case "stream":
		err = streamUDP(args[0], os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// echoUDP sends every datagram back, until its stdin closes.
func echoUDP() error {
	conn, err := net.ListenPacket("udp", ":"+streamPort)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		conn.Close()
	}()
	fmt.Println("ready")
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return nil
		}
		_, _ = conn.WriteTo(buf[:n], from)
	}
}

// holdPort keeps WireGuard's port busy until its stdin closes.
func holdPort() error {
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := net.ListenPacket(network, ":51830")
		if err != nil {
			return err
		}
		defer conn.Close()
	}
	fmt.Println("held")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// streamed is what a stream counted.
type streamed struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
	// Errors counts sends that the kernel refused.
	Errors int `json:"errors"`
	// LongestGap is the longest time between two answers.
	LongestGap time.Duration `json:"longestGap"`
}

// streamUDP sends a numbered datagram every 5 ms and counts those that come
// back, until its stdin closes; then it waits for what is still under way.
func streamUDP(to string, stop io.Reader, out io.Writer) error {
	conn, err := net.Dial("udp", net.JoinHostPort(to, streamPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	var mu sync.Mutex
	var r streamed
	seen := map[uint64]bool{}
	last := time.Time{}
	go func() {
		told := false
		buf := make([]byte, 64)
		for {
			n, err := conn.Read(buf)
			if err != nil && !isTransient(err) {
				return
			}
			if n != 8 {
				continue
			}
			mu.Lock()
			if k := binary.BigEndian.Uint64(buf); !seen[k] {
				seen[k] = true
				r.Received++
				now := time.Now()
				if !last.IsZero() {
					r.LongestGap = max(r.LongestGap, now.Sub(last))
				}
				last = now
			}
			if r.Received == 1 && !told {
				told = true
				fmt.Fprintln(out, "flowing")
			}
			mu.Unlock()
		}
	}()
	stopped := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stop)
		close(stopped)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-stopped:
			running = false
		case <-tick.C:
			mu.Lock()
			k := uint64(r.Sent)
			r.Sent++
			mu.Unlock()
			if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, k)); err != nil {
				mu.Lock()
				r.Errors++
				mu.Unlock()
			}
		}
	}
	deadline := time.NewTimer(2 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		mu.Lock()
		done := r
		done.Received = len(seen)
		mu.Unlock()
		if done.Received == done.Sent {
			return json.NewEncoder(out).Encode(done)
		}
		select {
		case <-deadline.C:
			return json.NewEncoder(out).Encode(done)
		case <-poll.C:
		}
	}
}

// isTransient: an ICMP error of an earlier datagram, told on this read.
func isTransient(err error) bool {
	op, ok := err.(*net.OpError)
	return ok && op.Op == "read" && !op.Timeout() && op.Err.Error() != "use of closed network connection" && op.Err != net.ErrClosed
}

// part is a process that plays a role in a host until its stdin is closed.
type part struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

// begin starts a part and returns once it has said its first line.
func (f *fixture) begin(host, role, name string, argv ...string) *part {
	f.t.Helper()
	cmd, err := f.Command(f.t.Context(), host, argv...)
	if err != nil {
		f.t.Fatal(err)
	}
	p := &part{t: f.t, name: name, cmd: cmd}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		f.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		p.stdin.Close()
		_ = cmd.Wait() // it was asked to end
	})
	if !p.lines.Scan() {
		f.t.Fatalf("%s in %s ended: %v", role, host, p.lines.Err())
	}
	return p
}

// finish asks the part to end and decodes the result that it prints.
func (p *part) finish(result any) {
	p.t.Helper()
	p.stdin.Close()
	for p.lines.Scan() {
		if err := json.Unmarshal(p.lines.Bytes(), result); err == nil {
			return
		}
	}
	p.t.Fatalf("%s: no result: %v", p.name, p.lines.Err())
}

// stream begins a flow from one pod to another and returns once it flows.
func (f *fixture) stream(from, to string) *part {
	f.t.Helper()
	self, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	f.begin(to, "echo", to, "env", roleVariable+"=echo", self)
	return f.begin(from, "stream", from+" to "+to, "env", roleVariable+"=stream", self, f.addrs(to)[0].String())
}

// end stops a flow and returns what it counted.
func (p *part) end() streamed {
	p.t.Helper()
	var r streamed
	p.finish(&r)
	p.t.Logf("%s: %d sent, %d came back, longest gap %v", p.name, r.Sent, r.Received, r.LongestGap)
	return r
}

// lostNone ends the flow and fails the test if a datagram was lost.
func (p *part) lostNone() {
	p.t.Helper()
	if r := p.end(); r.Received != r.Sent || r.Sent == 0 {
		p.t.Errorf("%s: %d of %d datagrams were lost", p.name, r.Sent-r.Received, r.Sent)
	}
}
