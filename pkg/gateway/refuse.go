package gateway

import (
	"io"
	"net"
	"time"
)

// Reason is why a connection was refused.
type Reason string

// The reasons, as metrics and logs have them.
const (
	UnknownSNI    Reason = "unknown-sni"     // a service that is not exported, or not here
	NoSNI         Reason = "no-sni"          // TLS, but no server name
	Plaintext     Reason = "plaintext"       // no TLS
	BadHello      Reason = "bad-hello"       // TLS, but no ClientHello that can be read
	HelloTimeout  Reason = "hello-timeout"   // no whole ClientHello in time
	HelloTooLarge Reason = "hello-too-large" // a ClientHello beyond the bound
	ClientGone    Reason = "client-gone"     // closed before the ClientHello was whole, as TCP health checks do
	NoBackend     Reason = "no-backend"      // the service has no ready pods here
	ConnectFailed Reason = "connect-failed"  // no pod that was tried accepted
	TooMany       Reason = "too-many"        // the bounds on open connections
	Draining      Reason = "draining"        // cut by Drain before it was admitted
)

func reasons() []Reason {
	return []Reason{UnknownSNI, NoSNI, Plaintext, BadHello, HelloTimeout, HelloTooLarge, ClientGone, NoBackend, ConnectFailed, TooMany, Draining}
}

// TLS alerts, RFC 8446, section 6, and RFC 6066, section 3.
const (
	alertInternalError    = 80
	alertMissingExtension = 109 // RFC 8446, section 9.2: what to say where there is no SNI
	alertUnrecognizedName = 112
)

// fatalAlert is a TLS record with one fatal alert. Its version is the one that
// every client takes before a version is negotiated (RFC 8446, section 5.1).
func fatalAlert(description byte) []byte { return []byte{21, 3, 3, 0, 2, 2, description} }

const httpAnswer = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" +
	"This is a flatmesh gateway: it takes mesh TLS with a server name (SNI), not plaintext.\n"

// answer returns what the client is told, nil where nothing helps it.
func answer(r Reason, h *helloReader) []byte {
	switch r {
	case UnknownSNI:
		return fatalAlert(alertUnrecognizedName)
	case NoSNI:
		return fatalAlert(alertMissingExtension)
	case NoBackend, ConnectFailed, HelloTooLarge:
		return fatalAlert(alertInternalError)
	case BadHello:
		return h.alert
	case Plaintext:
		if h.looksLikeHTTP() {
			return []byte(httpAnswer)
		}
	}
	return nil
}

// advice is what the operator is told, once in a while, about clients that are
// refused for a reason.
func advice(r Reason) string {
	switch r {
	case NoSNI:
		return "a client sent no SNI; gRPC clients need GRPC_EXPERIMENTAL_XDS_SNI=true in their environment"
	case UnknownSNI:
		return "a client asked for a service that is not exported by this cluster, or does not exist"
	case Plaintext:
		return "a client spoke plaintext; gRPC clients need the xDS credentials, and the service mesh mTLS"
	case HelloTimeout:
		return "a client sent no ClientHello in time"
	case HelloTooLarge:
		return "a client sent a ClientHello beyond the bound"
	case BadHello:
		return "a client sent a ClientHello that cannot be read"
	case NoBackend:
		return "a client asked for a service without ready pods in this cluster"
	case ConnectFailed:
		return "no pod of a service accepted a connection"
	case TooMany:
		return "too many connections are open: raise the bounds, or run more gateways"
	default:
		return ""
	}
}

// What a refused client gets to read its answer before the connection is reset,
// which takes with it an answer that is still under way.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// tell sends b and waits for the client to close: to close first, with bytes of
// its unread, would reset the connection and lose the answer.
func tell(client *net.TCPConn, b []byte) {
	if client.SetDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	if _, err := client.Write(b); err != nil || client.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, client, lingerBytes) // whatever ends it, the connection is closed next
}
