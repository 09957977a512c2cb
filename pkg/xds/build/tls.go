package build

import (
	"fmt"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// What the bootstrap of gRPC calls its certificate provider (gRFC A29).
const (
	providerInstance = "default"
	certificateName  = "default"
	rootName         = "ROOTCA"
)

// CertificateDir is where a workload finds its certificate, its key and the
// mesh's root, as the files tls.crt, tls.key and ca.crt.
const CertificateDir = "/run/secrets/flatmesh.io"

// Secrets returns the two SDS resources to which the clusters of Envoys refer.
// They name files and hold no keys. Envoy reads rotated files again only where
// SDS names them, so they are not written into the clusters.
func Secrets() ([]*discovery.Resource, error) {
	file := func(name string) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: CertificateDir + "/" + name}}
	}
	watched := &core.WatchedDirectory{Path: CertificateDir}
	var out []*discovery.Resource
	for _, s := range []*tls.Secret{
		{Name: certificateName, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
			CertificateChain: file("tls.crt"), PrivateKey: file("tls.key"), WatchedDirectory: watched,
		}}},
		{Name: rootName, Type: &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{
			TrustedCa: file("ca.crt"), WatchedDirectory: watched,
		}}},
	} {
		r, err := resourceOf(s.GetName(), resource.SecretType, s)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// transportSocket returns how clients of a kind speak mTLS to the pods of a port,
// whether directly or through a gateway that reads only the server name.
func transportSocket(pack *packer, kind Kind, p ServicePort) (*core.TransportSocket, error) {
	ids, err := p.identities()
	if err != nil {
		return nil, err
	}
	context := &tls.UpstreamTlsContext{Sni: SNI(p.Port, p.Host())}
	if kind == GRPC {
		context.CommonTlsContext = providedTLS(ids)
	} else {
		context.CommonTlsContext = filesTLS(ids, p.application())
	}
	return &core.TransportSocket{
		Name:       "envoy.transport_sockets.tls", // gRPC demands this name
		ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: pack.any(context)},
	}, nil
}

// identities matches the SPIFFE IDs that the pods of a port may show.
func (p ServicePort) identities() ([]*matcher.StringMatcher, error) {
	if len(p.SANs) > 0 {
		out := make([]*matcher.StringMatcher, 0, len(p.SANs))
		for _, id := range slices.Compact(slices.Sorted(slices.Values(p.SANs))) {
			out = append(out, &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: id}})
		}
		return out, nil
	}
	if p.TrustDomain == "" {
		return nil, fmt.Errorf("%s: with neither SPIFFE IDs nor a trust domain any certificate would do", p.hostPort())
	}
	prefix := "spiffe://" + p.TrustDomain + "/ns/" + p.Service.Namespace + "/sa/"
	return []*matcher.StringMatcher{{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: prefix}}}, nil
}

// providedTLS takes the certificates from the client's bootstrap (gRFC A29).
func providedTLS(ids []*matcher.StringMatcher) *tls.CommonTlsContext {
	return &tls.CommonTlsContext{
		TlsCertificateProviderInstance: &tls.CertificateProviderPluginInstance{InstanceName: providerInstance, CertificateName: certificateName},
		ValidationContextType: &tls.CommonTlsContext_ValidationContext{ValidationContext: &tls.CertificateValidationContext{
			CaCertificateProviderInstance: &tls.CertificateProviderPluginInstance{InstanceName: providerInstance, CertificateName: rootName},
			//lint:ignore SA1019 gRPC reads no other field (gRFC A29).
			MatchSubjectAltNames: ids,
		}},
	}
}

// filesTLS takes the certificates from Secrets.
func filesTLS(ids []*matcher.StringMatcher, app application) *tls.CommonTlsContext {
	typed := make([]*tls.SubjectAltNameMatcher, 0, len(ids))
	for _, id := range ids {
		typed = append(typed, &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: id})
	}
	secret := func(name string) *tls.SdsSecretConfig {
		return &tls.SdsSecretConfig{Name: name, SdsConfig: overADS()}
	}
	c := &tls.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tls.SdsSecretConfig{secret(certificateName)},
		ValidationContextType: &tls.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tls.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tls.CertificateValidationContext{MatchTypedSubjectAltNames: typed},
				ValidationContextSdsSecretConfig: secret(rootName),
			},
		},
	}
	switch app {
	case http1:
		c.AlpnProtocols = []string{"http/1.1"}
	case http2:
		c.AlpnProtocols = []string{"h2"} // gRPC servers refuse a connection without
	case opaque:
	}
	return c
}
