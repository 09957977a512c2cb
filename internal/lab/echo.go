package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"
)

// PodPort is the TCP port on which every pod answers.
const PodPort = 8080

const podReady = "listening"

// Answer is what a pod says to whoever calls it.
type Answer struct {
	// Pod and Node are host names, CLUSTER/NODE/POD and CLUSTER/NODE.
	Pod     string `json:"pod"`
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	// Caller is the source address that the pod saw.
	Caller netip.Addr `json:"caller"`
}

// ServePod answers HTTP on PodPort of all addresses until ctx ends. It closes
// ready, if given, as soon as it listens.
func ServePod(ctx context.Context, self Answer, ready io.WriteCloser) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", PodPort))
	if err != nil {
		return err
	}
	if ready != nil {
		_, err := io.WriteString(ready, podReady)
		if err := errors.Join(err, ready.Close()); err != nil {
			return err
		}
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer := self
			if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
				answer.Caller = from.Addr().Unmap()
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(answer); err != nil {
				fmt.Fprintln(os.Stderr, "answer", r.RemoteAddr, err)
			}
		}),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Call asks the pod at url, on a connection of its own, who it is. It is for use
// inside a host; see Lab.Call for calls from outside.
func Call(ctx context.Context, url string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Answer{}, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	var a Answer
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&a); err != nil || resp.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("%s answered %s, which is not what a pod of a lab says", url, resp.Status)
	}
	return a, nil
}

// Call has a host call a pod's address and returns the answer. It gives up after
// the timeout.
func (l *Lab) Call(ctx context.Context, host string, to netip.Addr, timeout time.Duration) (Answer, error) {
	url := "http://" + netip.AddrPortFrom(to, PodPort).String()
	out, err := l.Exec(ctx, host, "lab", "call", "-o", "json", "--timeout", timeout.String(), url)
	if err != nil {
		return Answer{}, err
	}
	var a Answer
	if err := json.Unmarshal(out, &a); err != nil {
		return Answer{}, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return a, nil
}
