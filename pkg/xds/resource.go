package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	peerv1 "github.com/flatmesh/flatmesh/api/peer/v1"
	"github.com/flatmesh/flatmesh/pkg/mesh"
)

// The type URLs of what agents receive.
const (
	PeerType          = "type.googleapis.com/flatmesh.peer.v1.Peer"
	NodeConfigType    = "type.googleapis.com/flatmesh.peer.v1.NodeConfig"
	ClusterConfigType = "type.googleapis.com/flatmesh.peer.v1.ClusterConfig"
)

// resource wraps a message. Its version is a hash of its bytes, so that a
// control plane that restarts gives unchanged resources their old versions and
// clients that resume are sent nothing.
func resource(name, typeURL string, m proto.Message) (*discovery.Resource, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s %s: %w", typeURL, name, err)
	}
	sum := sha256.Sum256(b)
	return &discovery.Resource{
		Name: name, Version: hex.EncodeToString(sum[:8]),
		Resource: &anypb.Any{TypeUrl: typeURL, Value: b},
	}, nil
}

// PeerResource returns p as a resource named for its node.
func PeerResource(p mesh.Peer) (*discovery.Resource, error) {
	return resource(p.Node.String(), PeerType, &peerv1.Peer{
		Node: p.Node.String(), PublicKey: p.Key[:],
		Endpoints: texts(p.Endpoints), TunnelAddresses: texts(p.TunnelAddrs), Prefixes: texts(p.Prefixes),
	})
}

// ParsePeer reads what PeerResource made, and checks it as a stranger's.
func ParsePeer(r *discovery.Resource) (mesh.Peer, error) {
	var m peerv1.Peer
	if err := unmarshal(r, PeerType, &m); err != nil {
		return mesh.Peer{}, err
	}
	var p mesh.Peer
	var errs [5]error
	p.Node, errs[0] = mesh.ParseNodeID(m.GetNode())
	p.Key, errs[1] = mesh.PublicKeyFrom(m.GetPublicKey())
	p.Endpoints, errs[2] = parseAll(m.GetEndpoints(), parseEndpoint)
	p.TunnelAddrs, errs[3] = parseAll(m.GetTunnelAddresses(), parseAddr)
	p.Prefixes, errs[4] = parseAll(m.GetPrefixes(), parsePrefix)
	if err := errors.Join(errs[:]...); err != nil {
		return mesh.Peer{}, fmt.Errorf("peer %s: %w", r.GetName(), err)
	}
	if p.Node.String() != r.GetName() {
		return mesh.Peer{}, fmt.Errorf("peer %s: the resource is of %s", r.GetName(), p.Node)
	}
	return p, nil
}

// NodeConfigResource returns c as a resource named for its node.
func NodeConfigResource(c mesh.NodeConfig) (*discovery.Resource, error) {
	m := &peerv1.NodeConfig{Node: c.Node.String(), TunnelAddresses: texts(c.TunnelAddrs), Prefixes: texts(c.Prefixes)}
	for _, r := range c.Refused {
		m.Refused = append(m.Refused, &peerv1.RefusedPrefix{Prefix: r.Prefix.String(), Reason: string(r.Reason), Detail: r.Detail})
	}
	for _, b := range c.Barriers {
		m.Barriers = append(m.Barriers, &peerv1.Barrier{Family: uint32(b.Family), Reason: string(b.Reason), Detail: b.Detail})
	}
	return resource(c.Node.String(), NodeConfigType, m)
}

// ParseNodeConfig reads what NodeConfigResource made.
func ParseNodeConfig(r *discovery.Resource) (mesh.NodeConfig, error) {
	var m peerv1.NodeConfig
	if err := unmarshal(r, NodeConfigType, &m); err != nil {
		return mesh.NodeConfig{}, err
	}
	var c mesh.NodeConfig
	var errs [4]error
	c.Node, errs[0] = mesh.ParseNodeID(m.GetNode())
	c.TunnelAddrs, errs[1] = parseAll(m.GetTunnelAddresses(), parseAddr)
	c.Prefixes, errs[2] = parseAll(m.GetPrefixes(), parsePrefix)
	for _, x := range m.GetBarriers() {
		f := mesh.Family(x.GetFamily())
		if uint32(f) != x.GetFamily() || !slices.Contains(mesh.Families[:], f) {
			// Not to be passed over: it says that something must not be done.
			errs[3] = fmt.Errorf("barrier of the address family %d: want 4 or 6", x.GetFamily())
			break
		}
		c.Barriers = append(c.Barriers, mesh.Barrier{Family: f, Reason: mesh.Reason(x.GetReason()), Detail: x.GetDetail()})
	}
	if err := errors.Join(errs[:]...); err != nil {
		return mesh.NodeConfig{}, fmt.Errorf("node config %s: %w", r.GetName(), err)
	}
	if c.Node.String() != r.GetName() {
		return mesh.NodeConfig{}, fmt.Errorf("node config %s: the resource is of %s", r.GetName(), c.Node)
	}
	for _, x := range m.GetRefused() {
		// Shown to people as it is: a prefix that was refused may well not parse.
		p, _ := netip.ParsePrefix(x.GetPrefix())
		c.Refused = append(c.Refused, mesh.RefusedPrefix{Prefix: p, Reason: mesh.Reason(x.GetReason()), Detail: x.GetDetail()})
	}
	return c, nil
}

// ClusterConfigResource returns c as a resource named for its cluster.
func ClusterConfigResource(c mesh.ClusterConfig) (*discovery.Resource, error) {
	m := &peerv1.ClusterConfig{Cluster: c.Cluster, Network: c.Network, Remote: texts(c.Remote), Protected: texts(c.Protected)}
	for _, x := range c.Conflicts {
		m.Conflicts = append(m.Conflicts, &peerv1.Conflict{Effect: x.Effect.String(), First: claimMessage(x.First), Second: claimMessage(x.Second)})
	}
	return resource(c.Cluster, ClusterConfigType, m)
}

func claimMessage(c mesh.Claim) *peerv1.Claim {
	return &peerv1.Claim{Cluster: c.Cluster, Kind: c.Kind.String(), Node: c.Node, Prefix: c.Prefix.String(), Order: c.Order}
}

// ParseClusterConfig reads what ClusterConfigResource made.
func ParseClusterConfig(r *discovery.Resource) (mesh.ClusterConfig, error) {
	var m peerv1.ClusterConfig
	if err := unmarshal(r, ClusterConfigType, &m); err != nil {
		return mesh.ClusterConfig{}, err
	}
	c := mesh.ClusterConfig{Cluster: m.GetCluster(), Network: m.GetNetwork()}
	if c.Cluster != r.GetName() {
		return mesh.ClusterConfig{}, fmt.Errorf("cluster config %s: the resource is of %q", r.GetName(), c.Cluster)
	}
	var errs [2]error
	c.Remote, errs[0] = parseAll(m.GetRemote(), parsePrefix)
	c.Protected, errs[1] = parseAll(m.GetProtected(), netip.ParsePrefix)
	if err := errors.Join(errs[:]...); err != nil {
		return mesh.ClusterConfig{}, fmt.Errorf("cluster config %s: %w", r.GetName(), err)
	}
	for _, x := range m.GetConflicts() {
		conflict, err := parseConflict(x)
		if err != nil {
			return mesh.ClusterConfig{}, fmt.Errorf("cluster config %s: %w", r.GetName(), err)
		}
		c.Conflicts = append(c.Conflicts, conflict)
	}
	return c, nil
}

func parseConflict(m *peerv1.Conflict) (mesh.Conflict, error) {
	var c mesh.Conflict
	var errs [3]error
	errs[0] = c.Effect.UnmarshalText([]byte(m.GetEffect()))
	c.First, errs[1] = parseClaim(m.GetFirst())
	c.Second, errs[2] = parseClaim(m.GetSecond())
	return c, errors.Join(errs[:]...)
}

func parseClaim(m *peerv1.Claim) (mesh.Claim, error) {
	c := mesh.Claim{Cluster: m.GetCluster(), Node: m.GetNode(), Order: m.GetOrder()}
	var errs [2]error
	errs[0] = c.Kind.UnmarshalText([]byte(m.GetKind()))
	c.Prefix, errs[1] = netip.ParsePrefix(m.GetPrefix())
	return c, errors.Join(errs[:]...)
}

func unmarshal(r *discovery.Resource, typeURL string, m proto.Message) error {
	if got := r.GetResource().GetTypeUrl(); got != typeURL {
		return fmt.Errorf("resource %s: type %q, want %q", r.GetName(), got, typeURL)
	}
	if err := proto.Unmarshal(r.GetResource().GetValue(), m); err != nil {
		return fmt.Errorf("resource %s: %w", r.GetName(), err)
	}
	return nil
}

func texts[T interface{ String() string }](in []T) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

func parseAll[T any](in []string, parse func(string) (T, error)) ([]T, error) {
	out := make([]T, 0, len(in))
	for _, s := range in {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return slices.Clip(out), nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	return p, mesh.ValidatePrefix(p)
}

func parseEndpoint(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return ap, err
	}
	if ap.Port() == 0 {
		return ap, fmt.Errorf("%v: no port", ap)
	}
	return ap, mesh.ValidateAddr(ap.Addr())
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, err
	}
	return a, mesh.ValidateAddr(a)
}
