package source

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// TLSDefault says which ports speak mesh mTLS where their Service does not say.
type TLSDefault uint8

// The defaults.
const (
	// TLSAuto: ports whose application protocol is grpc. A gRPC client that takes
	// its endpoints from xDS takes its credentials from there too.
	TLSAuto TLSDefault = iota
	// TLSAll: every TCP port.
	TLSAll
	// TLSNone: no port.
	TLSNone
)

var tlsDefaults = [...]string{TLSAuto: "auto", TLSAll: "all", TLSNone: "none"}

// String returns "auto", "all" or "none".
func (d TLSDefault) String() string {
	if int(d) < len(tlsDefaults) {
		return tlsDefaults[d]
	}
	return fmt.Sprintf("TLSDefault(%d)", d)
}

// MarshalText writes the name.
func (d TLSDefault) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *TLSDefault) UnmarshalText(b []byte) error {
	i := slices.Index(tlsDefaults[:], string(b))
	if i < 0 {
		return fmt.Errorf("default for TLS %q: want auto, all or none", b)
	}
	*d = TLSDefault(i)
	return nil
}

// speaksTLS reports whether a TCP port of an application protocol speaks mesh
// mTLS by default.
func (d TLSDefault) speaksTLS(appProtocol string) bool {
	return d == TLSAll || d == TLSAuto && appProtocol == "grpc"
}

const grpcWeb = "grpc-web"

// istioProtocols are the application protocols that Istio reads out of
// appProtocol and of port names
// (https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/).
var istioProtocols = map[string]bool{
	"grpc": true, grpcWeb: true, "http": true, "http2": true, "https": true, "hbone": true,
	"mongo": true, "mysql": true, "redis": true, "tcp": true, "tls": true,
}

// kubernetesProtocols are the names that Kubernetes has for appProtocol
// (KEP-3726), as Istio calls them.
var kubernetesProtocols = map[string]string{
	"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https",
}

// appProtocol returns a port's application protocol by Istio's rules: the field,
// or else what the port's name begins with, up to a dash. Where the field says
// something that Istio does not know it is returned as it is; where the name
// does, nothing is.
func appProtocol(p *corev1.ServicePort) string {
	if p.AppProtocol == nil {
		if protocolOf(p.Protocol) != corev1.ProtocolTCP {
			return ""
		}
		return istioProtocol(p.Name)
	}
	if s, ok := kubernetesProtocols[*p.AppProtocol]; ok {
		return s
	}
	if s := istioProtocol(*p.AppProtocol); s != "" {
		return s
	}
	return *p.AppProtocol
}

func istioProtocol(name string) string {
	name = strings.ToLower(name)
	if strings.HasPrefix(name, grpcWeb) {
		return grpcWeb
	}
	prefix, _, _ := strings.Cut(name, "-")
	if !istioProtocols[prefix] {
		return ""
	}
	return prefix
}

// protocolOf fills in the default as an API server does.
func protocolOf(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}
