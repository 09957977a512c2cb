package relay

import (
	"maps"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// clients are the streams that are open now, by pod.
type clients struct {
	mu       sync.Mutex
	sessions map[*session]struct{}
	pods     map[podID]*pod
}

type pod struct {
	asker   asker
	streams int
}

// maxPodStreams bounds the streams of a pod: as many as connections, since gRPC opens
// one on each.
const maxPodStreams = maxPodConns

// enter notes that a session begins. Its error is a gRPC status.
func (r *Relay) enter(s *session) error {
	r.clients.mu.Lock()
	defer r.clients.mu.Unlock()
	p := r.clients.pods[s.client.pod]
	if p == nil {
		p = &pod{asker: asker{unknown: map[*entry]int{}}}
		r.clients.pods[s.client.pod] = p
	}
	if p.streams == maxPodStreams {
		return status.Errorf(codes.ResourceExhausted, "this pod has %d streams already", maxPodStreams)
	}
	p.streams++
	s.asker = &p.asker
	r.clients.sessions[s] = struct{}{}
	return nil
}

// leave notes that a session has ended.
func (r *Relay) leave(s *session) {
	s.end()
	r.clients.mu.Lock()
	defer r.clients.mu.Unlock()
	delete(r.clients.sessions, s)
	p := r.clients.pods[s.client.pod]
	if p.streams--; p.streams == 0 {
		delete(r.clients.pods, s.client.pod)
	}
}

// counters count by set.
type counters struct {
	mu sync.Mutex
	n  map[setKey]uint64
}

func (c *counters) add(k setKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[k]++
}

func (c *counters) snapshot() map[setKey]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}
