package build

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// metadataKey is the filter_metadata key under which our own metadata lies.
const metadataKey = "flatmesh.io"

// The keys of that metadata. An endpoint has keyPath ("local", "native",
// "tunnel", "gateway" or "standby") and keyNode ("cluster/name", for pods) or
// keyCluster (for gateways). The first locality has what Demote needs.
const (
	keyCluster  = "cluster"
	keyLevel    = "gatewayPriority"
	keyNode     = "node"
	keyPath     = "path"
	keyPods     = "pods"
	keyReason   = "reason"
	keyRemotes  = "remotes"
	keyServing  = "serving"
	keyStandby  = "standby"
	keyStandbys = "standbyAddresses"

	pathGateway = "gateway"
	pathStandby = "standby"
)

// The fields of envoy.config.endpoint.v3.
const (
	claName          protowire.Number = 1 // ClusterLoadAssignment.cluster_name
	claLocalities    protowire.Number = 2 // ClusterLoadAssignment.endpoints
	localityLocality protowire.Number = 1 // LocalityLbEndpoints.locality
	localityBackends protowire.Number = 2 // LocalityLbEndpoints.lb_endpoints
	localityWeight   protowire.Number = 3 // LocalityLbEndpoints.load_balancing_weight
	localityPriority protowire.Number = 5 // LocalityLbEndpoints.priority
	localityMetadata protowire.Number = 9 // LocalityLbEndpoints.metadata
	backendEndpoint  protowire.Number = 1 // LbEndpoint.endpoint
	backendMetadata  protowire.Number = 3 // LbEndpoint.metadata
	endpointAddress  protowire.Number = 1 // Endpoint.address
)

// EDS returns the ClusterLoadAssignment of a's normal form.
//
// Priority 0 and, where the service prefers, the next ones hold the pods by
// region and zone. At GatewayPriority each port of the gateways of a cluster is a
// locality of its own (gRPC weighs localities, not endpoints) and takes its part
// of the weight of the pods behind it. A last priority holds the standby ports,
// with the weight of all pods of their cluster. Where there is nothing to give
// the assignment is empty: clients then fail at once and with a reason, and wait
// for no address that cannot be reached.
//
// An error means a name that no source lets through.
func EDS(a Assignment) (*discovery.Resource, error) {
	a = a.Normal()
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("assignment %q: %w", a.Name, err)
	}
	w := edsWriter{a: &a}
	b := str(make([]byte, 0, a.size()), claName, a.Name)
	return wrap(a.Name, resource.EndpointType, w.levels(b)), nil
}

// size estimates the bytes of an assignment, a little too high: they are kept as
// long as some client has them, so much room at their end would be waste.
func (a *Assignment) size() int {
	const perPod, perPort, perRemote, fixed = 70, 140, 80, 200
	n := fixed + len(a.Name)
	for i := range a.Direct {
		d := &a.Direct[i]
		n += perPod + len(d.Node.Cluster) + len(d.Node.Name) + len(d.Reason)
	}
	for i := range a.Remote {
		r := &a.Remote[i]
		n += perRemote + len(r.Cluster) + len(r.Reason) + (perPort+2*len(r.Cluster))*(len(r.Serving)+len(r.StandbyAddrs))
	}
	return n
}

// check refuses what would not come back from ParseEDS as it was.
func (a *Assignment) check() error {
	if a.Name == "" {
		return errors.New("no name")
	}
	if !utf8.ValidString(a.Name) {
		return errors.New("not UTF-8")
	}
	for i := range a.Direct {
		d := &a.Direct[i]
		for _, s := range [...]string{d.Node.Cluster, d.Node.Name, d.Region, d.Zone, string(d.Reason)} {
			if !utf8.ValidString(s) {
				return fmt.Errorf("pod %v: %q is not UTF-8", d.Addr, s)
			}
		}
		if strings.IndexByte(d.Node.Cluster, '/') >= 0 {
			return fmt.Errorf("pod %v: cluster %q has a slash", d.Addr, d.Node.Cluster)
		}
	}
	for i := range a.Remote {
		r := &a.Remote[i]
		if !utf8.ValidString(r.Cluster) || !utf8.ValidString(string(r.Reason)) {
			return fmt.Errorf("cluster %q: not UTF-8", r.Cluster)
		}
		if i > 0 && a.Remote[i-1].Cluster == r.Cluster {
			return fmt.Errorf("cluster %q: twice", r.Cluster)
		}
	}
	return nil
}

// member is pods of one region and zone, or the ports of one cluster's gateways.
type member struct {
	pods    []Direct
	cluster string
	ports   []netip.AddrPort
	path    string
}

// edsWriter writes the localities of an Assignment in its normal form.
type edsWriter struct {
	a        *Assignment
	priority uint64
	// Those of the priority being gathered.
	members []member
	shares  []share
}

func (w *edsWriter) levels(b []byte) []byte {
	ds := w.a.Direct
	for level := 0; len(ds) > 0 || level <= int(w.a.GatewayPriority); level++ {
		for len(ds) > 0 && int(ds[0].Priority) == level {
			n := 1
			for n < len(ds) && ds[n].Priority == ds[0].Priority && ds[n].Region == ds[0].Region && ds[n].Zone == ds[0].Zone {
				n++
			}
			w.add(member{pods: ds[:n]}, share{pods: uint64(n), ports: 1})
			ds = ds[n:]
		}
		if level == int(w.a.GatewayPriority) {
			for i := range w.a.Remote {
				r := &w.a.Remote[i]
				w.addPorts(r.Cluster, r.Serving, r.Pods, pathGateway)
			}
		}
		b = w.flush(b)
	}
	return w.standbys(b)
}

func (w *edsWriter) standbys(b []byte) []byte {
	var direct map[string]int
	for i := range w.a.Remote {
		r := &w.a.Remote[i]
		if len(r.StandbyAddrs) == 0 {
			continue
		}
		if direct == nil {
			direct = make(map[string]int)
			for j := range w.a.Direct {
				direct[w.a.Direct[j].Node.Cluster]++
			}
		}
		w.addPorts(r.Cluster, r.StandbyAddrs, r.Pods+direct[r.Cluster], pathStandby)
	}
	return w.flush(b)
}

func (w *edsWriter) add(m member, s share) {
	w.members, w.shares = append(w.members, m), append(w.shares, s)
}

func (w *edsWriter) addPorts(cluster string, ports []netip.AddrPort, pods int, path string) {
	if pods > 0 && len(ports) > 0 {
		w.add(member{cluster: cluster, ports: ports, path: path}, share{pods: uint64(pods), ports: uint64(len(ports))})
	}
}

// flush writes what was added as one priority.
func (w *edsWriter) flush(b []byte) []byte {
	if len(w.members) == 0 {
		return b
	}
	first := w.priority == 0
	for i, weight := range weights(w.shares) {
		m := &w.members[i]
		if m.path == "" {
			b = w.pods(b, m, weight, first)
			first = false
			continue
		}
		for _, addr := range m.ports {
			b = w.port(b, m, addr, weight, first)
			first = false
		}
	}
	w.priority++
	w.members, w.shares = w.members[:0], w.shares[:0]
	return b
}

// pods writes the locality of a region and zone.
func (w *edsWriter) pods(b []byte, m *member, weight uint32, first bool) []byte {
	b, locality := begin(b, claLocalities)
	b, name := begin(b, localityLocality)
	b = optional(b, regionField, m.pods[0].Region)
	b = end(optional(b, zoneField, m.pods[0].Zone), name)
	for i := range m.pods {
		b = appendPod(b, &m.pods[i])
	}
	return end(w.finish(b, weight, first), locality)
}

// port writes the locality of a gateway's port. Those of pods have no sub-zone, so
// none is ever equal to this one.
func (w *edsWriter) port(b []byte, m *member, addr netip.AddrPort, weight uint32, first bool) []byte {
	b, locality := begin(b, claLocalities)
	b, name := begin(b, localityLocality)
	b, sub := begin(b, subZoneField)
	b = append(append(b, m.cluster...), '/')
	b = end(end(addr.AppendTo(b), sub), name)

	b, backend := begin(b, localityBackends)
	b, meta := beginMetadata(b, backendMetadata)
	b = entryString(b, keyCluster, m.cluster)
	b = endMetadata(entryString(b, keyPath, m.path), meta)
	b = end(appendEndpoint(b, addr), backend)

	return end(w.finish(b, weight, first), locality)
}

// finish writes what follows the endpoints of a locality.
func (w *edsWriter) finish(b []byte, weight uint32, first bool) []byte {
	b, value := begin(b, localityWeight)
	b = end(varint(b, uint32Value, uint64(weight)), value)
	if w.priority > 0 {
		b = varint(b, localityPriority, w.priority)
	}
	if first {
		b = w.remotes(b)
	}
	return b
}

// remotes writes what Demote needs.
func (w *edsWriter) remotes(b []byte) []byte {
	if len(w.a.Remote) == 0 && w.a.GatewayPriority == 0 {
		return b
	}
	b, meta := beginMetadata(b, localityMetadata)
	b = entryNumber(b, keyLevel, int(w.a.GatewayPriority))
	b, all := beginEntry(b, keyRemotes)
	b, list := begin(b, valueList)
	for i := range w.a.Remote {
		var value, fields int
		b, value = begin(b, listValues)
		b, fields = begin(b, valueStruct)
		b = end(end(appendRemote(b, &w.a.Remote[i]), fields), value)
	}
	return endMetadata(endEntry(end(b, list), all), meta)
}

func appendRemote(b []byte, r *Remote) []byte {
	b = entryString(b, keyCluster, r.Cluster)
	if r.Pods > 0 {
		b = entryNumber(b, keyPods, r.Pods)
	}
	if r.Reason != "" {
		b = entryString(b, keyReason, string(r.Reason))
	}
	if len(r.Serving) > 0 {
		b = entryAddrs(b, keyServing, r.Serving)
	}
	if r.Standby {
		b = entryBool(b, keyStandby, true)
	}
	if len(r.StandbyAddrs) > 0 {
		b = entryAddrs(b, keyStandbys, r.StandbyAddrs)
	}
	return b
}

func appendPod(b []byte, d *Direct) []byte {
	b, backend := begin(b, localityBackends)
	b, meta := beginMetadata(b, backendMetadata)
	b, node := beginEntry(b, keyNode)
	b, text := begin(b, valueString)
	b = append(append(append(b, d.Node.Cluster...), '/'), d.Node.Name...)
	b = endEntry(end(b, text), node)
	b = endMetadata(entryString(b, keyPath, string(d.Reason)), meta)
	return end(appendEndpoint(b, d.Addr), backend)
}

// appendEndpoint writes an LbEndpoint's endpoint. It comes behind the metadata:
// Go's protobuf writes what is of a oneof after all else.
func appendEndpoint(b []byte, a netip.AddrPort) []byte {
	b, outer := begin(b, backendEndpoint)
	return end(address(b, endpointAddress, a), outer)
}
