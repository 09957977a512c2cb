package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// podReady is what meshecho says when it listens.
const podReady = "listening"

// Answer is what a pod says to whoever calls it over HTTP.
type Answer struct {
	// Pod and Node are host names, CLUSTER/NODE/POD and CLUSTER/NODE.
	Pod     string `json:"pod"`
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	// Caller is the source address that the pod saw.
	Caller netip.Addr `json:"caller"`
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
