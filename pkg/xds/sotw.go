package xds

import (
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	types "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// full reports whether a response of the state-of-the-world protocol holds all
// that the client asked for of a type: only with these can it say that something
// is not there, by leaving it out. Responses of other types hold what changed.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#grouping-resources-into-responses
func full(typeURL string) bool {
	return typeURL == types.ListenerType || typeURL == types.ClusterType
}

// openSotW takes over what a state-of-the-world subscription asks for now, and
// opens the watch for one answer.
func (w *watch) openSotW(first bool, req *cache.Request, sub cache.Subscription, ch chan cache.Response) {
	w.do(func() {
		// go-control-plane drops an answer that a request overtakes.
		for _, a := range w.queued {
			for _, r := range a.found {
				w.soil(r.GetName())
			}
			for _, n := range a.lost {
				w.soil(n)
			}
		}
		w.queued = nil
		old, names := w.names, sub.SubscribedResources()
		w.known, w.names, w.sotwChan = sub.ReturnedResources(), names, ch
		w.setWildcard(sub.IsWildcard())
		for n := range old {
			if _, ok := names[n]; !ok {
				w.index.remove(topic{byName, w.typeURL, n}, w)
			}
		}
		for n := range names {
			if _, ok := old[n]; ok {
				continue
			}
			w.index.add(topic{byName, w.typeURL, n}, w)
			w.soil(n)
			if first && req.GetVersionInfo() != "" && full(w.typeURL) {
				// The client has been connected before and may hold it: to leave it out
				// would read as its removal.
				w.known[n] = ""
			}
		}
		w.open.Store(true)
		w.answer()
	})
}

// composeChanged answers with what differs. That something is not there cannot
// be said. Must hold w.mu.
func (w *watch) composeChanged() {
	var a news
	for n := range w.dirty {
		if r, v := w.look(n); v == differs {
			a.found = append(a.found, r)
		}
	}
	w.dirty = nil
	if len(a.found) > 0 || w.inStep() {
		w.answerSotW(a)
	}
}

// composeFull answers with everything that the client asked for, if any of it
// differs. It waits while it would have to leave out something that the client
// may hold only because it is not known now: to gRPC and Envoy that is its
// removal. A name that the client never had is left out meanwhile; clients wait
// for those up to a timeout of their own. Must hold w.mu.
func (w *watch) composeFull() {
	say := w.inStep()
	for n := range w.dirty {
		if _, v := w.look(n); v == differs || v == lost {
			say = true
			break
		}
	}
	if !say || w.unlisted {
		w.dirty = nil
		return
	}
	wanted := w.names
	if w.wildcard {
		list, ok := w.source.Names(w.view, w.typeURL)
		if !ok {
			w.unlisted, w.dirty = true, nil
			return
		}
		wanted = make(map[string]struct{}, len(list)+len(w.names))
		maps.Copy(wanted, w.names)
		for n := range w.known {
			wanted[n] = struct{}{}
		}
		for _, n := range list {
			wanted[n] = struct{}{}
		}
	}
	var a news
	for n := range wanted {
		r, answer := w.source.Lookup(w.view, w.typeURL, n)
		version, has := w.known[n]
		switch {
		case answer == Found:
			a.found = append(a.found, r)
		case answer == Missing:
			a.lost = append(a.lost, n)
		case w.wildcard, has && version != told:
			return // what is dirty stays so
		}
	}
	w.dirty = nil
	w.answerSotW(a)
}

// inStep reports whether an answer is due that says only that the client is in
// step: the first to a wildcard. Must hold w.mu.
func (w *watch) inStep() bool { return !w.answered && w.wildcard && !w.unlisted }

// answerSotW answers with a. What the client then has is noted when it is sent.
// Must hold w.mu.
func (w *watch) answerSotW(a news) {
	w.open.Store(false)
	w.queued = append(w.queued, a)
	out := &discovery.DiscoveryResponse{TypeUrl: w.typeURL, VersionInfo: versionOf(a.found), Resources: make([]*anypb.Any, 0, len(a.found))}
	for _, r := range a.found {
		out.Resources = append(out.Resources, r.GetResource())
	}
	w.sotwChan <- &cache.PassthroughResponse{
		Request:           &discovery.DiscoveryRequest{TypeUrl: w.typeURL},
		DiscoveryResponse: out,
		ReturnedResources: w.known,
	}
}

// versionOf returns a version that stands for these resources, also after a
// restart. It puts them in order.
func versionOf(resources []*discovery.Resource) string {
	slices.SortFunc(resources, func(a, b *discovery.Resource) int { return strings.Compare(a.GetName(), b.GetName()) })
	h := fnv.New64a()
	for _, r := range resources {
		_, _ = io.WriteString(h, r.GetName())
		_, _ = h.Write([]byte{0})
		_, _ = io.WriteString(h, r.GetVersion())
		_, _ = h.Write([]byte{0})
	}
	return strconv.FormatUint(h.Sum64(), 16)
}
