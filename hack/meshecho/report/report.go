// Package report holds what `meshecho call -o json` prints, one line a value, for
// the programs that read it. It is not for making calls.
package report

import "time"

// Via says on which way a call reached its pod.
type Via string

// The ways.
const (
	// Direct: at the pod's own address.
	Direct Via = "direct"
	// Gateway: at another address, from which it was passed on.
	Gateway Via = "gateway"
)

// Line is one line of the output: a Call, or in the last one the Summary.
type Line struct {
	*Call
	Summary *Summary `json:"summary,omitempty"`
}

// Call is one call and what came of it. What only the pod knows is empty where
// it did not answer.
type Call struct {
	// N counts calls from 1, in the order in which they began.
	N int `json:"n"`
	// Start is when it began; LatencySeconds, how long it took.
	Start          time.Time `json:"start"`
	LatencySeconds float64   `json:"latencySeconds"`
	OK             bool      `json:"ok"`
	// Code is gRPC's name of the status code of a failed call ("Unavailable");
	// "HTTP" for one without gRPC.
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
	// Pod, Node and Cluster say who answered.
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	Cluster string `json:"cluster,omitempty"`
	Via     Via    `json:"via,omitempty"`
	// Peer is the other end of the connection, IP:PORT, as the caller sees it;
	// empty where the call was never sent.
	Peer string `json:"peer,omitempty"`
	// Caller is the caller's end of the connection as the pod sees it.
	Caller string `json:"caller,omitempty"`
	// ServerID and ClientID are the SPIFFE IDs that each side has proved to the
	// other; empty in plaintext. ServerName is the SNI that arrived at the pod.
	ServerID   string `json:"serverId,omitempty"`
	ClientID   string `json:"clientId,omitempty"`
	ServerName string `json:"serverName,omitempty"`
}

// Summary counts all calls.
type Summary struct {
	Calls  int `json:"calls"`
	OK     int `json:"ok"`
	Failed int `json:"failed"`
	// Pods, Clusters and Via count the good ones, Codes the failed ones.
	Pods     map[string]int `json:"pods"`
	Clusters map[string]int `json:"clusters"`
	Via      map[Via]int    `json:"via"`
	Codes    map[string]int `json:"codes"`
}

// NewSummary returns one of no calls.
func NewSummary() Summary {
	return Summary{Pods: map[string]int{}, Clusters: map[string]int{}, Via: map[Via]int{}, Codes: map[string]int{}}
}

// Add counts a call.
func (s *Summary) Add(c Call) {
	s.Calls++
	if !c.OK {
		s.Failed++
		s.Codes[c.Code]++
		return
	}
	s.OK++
	s.Pods[c.Pod]++
	s.Clusters[c.Cluster]++
	s.Via[c.Via]++
}
